"""The director's root: one for all devices of a project, signed by a key that may be offline; it names the online key.

The online key's file is named after its key id, so a rotation that is cut off leaves the key that devices trust where
it was: the new one counts from the commit of the root that names it.
"""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import structlog
from securesystemslib.signer import CryptoSigner
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from tuf.api.metadata import Metadata, Root
from tuf.api.serialization.json import JSONSerializer

from sprat_server.publish.keys import KeysUnusable, keys_folder, read_key, write_key
from sprat_server.publish.lives import expiry, renewal
from sprat_server.publish.models import SignedMetadata
from sprat_server.settings import Settings
from sprat_shared.trust.assignments import DIRECTOR_REPOSITORY

ONLINE_ROLES: Final = ("timestamp", "snapshot", "targets")
LIFE: Final = timedelta(days=730)
_SERIALIZER: Final = JSONSerializer(compact=True)
_LOCK_KEY: Final = 0x5350_5241_5445  # an arbitrary number that only this lock uses

_log = structlog.get_logger(__name__)


def root_key_path(folder: Path, keyid: str = "") -> Path:
    """Return the file of the first root key, or of the one with this id that took its place."""
    return folder / (f"director-root-{keyid[:16]}.pem" if keyid else "director-root.pem")


def online_key_path(folder: Path, keyid: str) -> Path:
    """Return the file of the online key with this id."""
    return folder / f"director-online-{keyid[:16]}.pem"


def newest(session: Session) -> SignedMetadata:
    """Return the newest root.

    Raises:
        KeysUnusable: there is none yet.
    """
    row = _newest(session)
    if row is None:
        raise KeysUnusable("the director repository was not made yet; start the server once")
    return row


def read(session: Session, versions: list[int]) -> dict[int, bytes]:
    """Return the signed bytes of these versions; those that do not exist are left out."""
    if not versions:
        return {}
    rows = session.execute(
        select(SignedMetadata.version, SignedMetadata.body).where(
            SignedMetadata.repository == DIRECTOR_REPOSITORY,
            SignedMetadata.role == "root",
            SignedMetadata.version.in_(versions),
        )
    )
    return dict(rows.all())


def online_signer(folder: Path, root: bytes) -> CryptoSigner:
    """Return the online key that this root names.

    Raises:
        KeysUnusable: it is not in the folder.
    """
    keyid = online_keyid(root)
    path = online_key_path(folder, keyid)
    signer = read_key(path)
    if signer is None or signer.public_key.keyid != keyid:
        state = "is missing" if signer is None else "is not the key that devices trust"
        raise KeysUnusable(
            f"signing key {path} {state}; copy the keys from the machine on which the server first started or the key "
            "was last replaced, or from a backup"
        )
    return signer


def online_keyid(root: bytes) -> str:
    """Return the id of the online key that this root names."""
    keyid: str = json.loads(root)["signed"]["roles"]["timestamp"]["keyids"][0]
    return keyid


def ensure(session: Session, settings: Settings) -> None:
    """Make the keys and the first root if there are none; check that the online key is here.

    Raises:
        KeysUnusable: a key is missing, unreadable, or not the one that devices trust.
    """
    session.execute(select(func.pg_advisory_xact_lock(_LOCK_KEY)))
    folder, row = keys_folder(session, settings), _newest(session)
    if row is not None:
        online_signer(folder, row.body)
        return
    root_key = read_key(root_key_path(folder))
    if root_key is None:
        root_key = CryptoSigner.generate_ed25519()
        write_key(root_key_path(folder), root_key)
    online = _make_online_key(folder)
    root = Root(consistent_snapshot=True)
    root.version = 0  # _sign makes it 1
    root.add_key(root_key.public_key, "root")
    for role in ONLINE_ROLES:
        root.add_key(online.public_key, role)
    _sign(session, root, [root_key], datetime.now(UTC))
    _log.warning(
        "the director's keys were made; whoever holds them can say which signed release a device runs: back them up, "
        "and keep the root key where only you can read it",
        files=[root_key_path(folder).name, online_key_path(folder, online.public_key.keyid).name],
    )


def sign_again(session: Session, settings: Settings, now: datetime | None = None) -> bool:
    """Sign the root anew if it is past half of its life and its key is here; return whether it was.

    Raises:
        KeysUnusable: there is no root yet, or the root key is not the one that devices trust.
    """
    now = now or datetime.now(UTC)
    row = newest(session)
    if now < renewal(row.created_at, row.expires_at):
        return False
    folder, root = keys_folder(session, settings), Metadata[Root].from_bytes(row.body).signed
    if _find_root_key(folder, root) is None:
        _log.warning("director.root-key-offline", expires_at=row.expires_at.isoformat(), advice="bring its key back")
        return False
    session.execute(select(func.pg_advisory_xact_lock(_LOCK_KEY)))
    if newest(session).version == row.version:
        _sign(session, root, [_root_key(folder, root)[1]], now)
    return True


def rotate_online_key(session: Session, settings: Settings, now: datetime | None = None) -> tuple[Path, Path]:
    """Replace the online key; return the file of the old one, of no use after the commit, and of the new one.

    Every device's metadata are signed with the new key at its next poll. A device clears the versions that it knows of
    a role whose keys change (TUF specification, section 5.3.11): whatever a thief signed is undone by this.

    Raises:
        KeysUnusable: there is no root yet; the root key is not here, or not the one that devices trust.
    """
    session.execute(select(func.pg_advisory_xact_lock(_LOCK_KEY)))
    row = newest(session)
    old = online_keyid(row.body)
    folder, root = keys_folder(session, settings), Metadata[Root].from_bytes(row.body).signed
    _, root_key = _root_key(folder, root)
    online = _make_online_key(folder)
    for role in ONLINE_ROLES:
        root.revoke_key(old, role)
        root.add_key(online.public_key, role)
    _sign(session, root, [root_key], now or datetime.now(UTC))
    return online_key_path(folder, old), online_key_path(folder, online.public_key.keyid)


def rotate_root_key(session: Session, settings: Settings, now: datetime | None = None) -> tuple[Path, Path]:
    """Replace the root key; return the file of the old one, of no use after the commit, and of the new one.

    The new root is signed by both keys, so devices follow from the old one (TUF specification, section 5.3.4).

    Raises:
        KeysUnusable: there is no root yet; the root key is not here, or not the one that devices trust.
    """
    session.execute(select(func.pg_advisory_xact_lock(_LOCK_KEY)))
    folder, root = keys_folder(session, settings), Metadata[Root].from_bytes(newest(session).body).signed
    path, old = _root_key(folder, root)
    new = CryptoSigner.generate_ed25519()
    new_path = root_key_path(folder, new.public_key.keyid)
    write_key(new_path, new)
    root.revoke_key(old.public_key.keyid, "root")
    root.add_key(new.public_key, "root")
    _sign(session, root, [old, new], now or datetime.now(UTC))
    return path, new_path


def _newest(session: Session) -> SignedMetadata | None:
    return session.scalar(
        select(SignedMetadata)
        .where(SignedMetadata.repository == DIRECTOR_REPOSITORY, SignedMetadata.role == "root")
        .order_by(SignedMetadata.version.desc())
        .limit(1)
    )


def _make_online_key(folder: Path) -> CryptoSigner:
    online = CryptoSigner.generate_ed25519()
    write_key(online_key_path(folder, online.public_key.keyid), online)
    return online


def _find_root_key(folder: Path, root: Root) -> tuple[Path, CryptoSigner] | None:
    """Return the file and the key that this root names, if it is here."""
    for path in (root_key_path(folder), *(root_key_path(folder, keyid) for keyid in root.roles["root"].keyids)):
        signer = read_key(path)
        if signer is not None and signer.public_key.keyid in root.roles["root"].keyids:
            return path, signer
    return None


def _root_key(folder: Path, root: Root) -> tuple[Path, CryptoSigner]:
    found = _find_root_key(folder, root)
    if found is None:
        here = root_key_path(folder).exists()
        state = "is not the one that devices trust" if here else "is not in the keys folder"
        raise KeysUnusable(
            f"the director's root key {root_key_path(folder)} {state} and its root must be signed now; bring it back"
        )
    return found


def _sign(session: Session, root: Root, signers: Sequence[CryptoSigner], now: datetime) -> None:
    now = now.replace(microsecond=0)
    root.version, root.expires = root.version + 1, expiry(now, LIFE)
    metadata = Metadata(root)
    for signer in signers:
        metadata.sign(signer, append=True)
    session.add(
        SignedMetadata(
            repository=DIRECTOR_REPOSITORY,
            role="root",
            version=root.version,
            body=metadata.to_bytes(_SERIALIZER),
            created_at=now,
            expires_at=root.expires,
        )
    )
    session.flush()
