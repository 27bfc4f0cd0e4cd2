"""The image repository: python-tuf's repository abstraction over the table `signed_metadata`.

One writer at a time (advisory lock, held until the transaction ends). Nothing is served before the transaction
that signed it commits, so devices see a release, its updates and its metadata together or not at all.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import structlog
from securesystemslib.signer import CryptoSigner
from sqlalchemy import func, select, tuple_
from sqlalchemy.orm import Session
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization.json import JSONSerializer
from tuf.repository import Repository

from sprat_server.publish.keys import KeysUnusable, key_path, load_keys, make_missing_keys
from sprat_server.publish.lives import expiry, renewal
from sprat_server.publish.models import SignedMetadata
from sprat_server.settings import Settings
from sprat_shared.trust.targets import IMAGE_REPOSITORY, paths_of_model, role_of_model

TOP_LEVEL: Final = ("root", "targets", "snapshot", "timestamp")
OFFLINE: Final = frozenset({"root", "targets"})  # their keys may be taken away between the times they are needed
_MODEL_ROLE: Final = "m.*"
# How long each role's metadata are valid. A device that was off for longer than the timestamp's life is served the
# newest one with its next poll; the life bounds for how long a blocked device can be kept on old metadata.
LIFE: Final[Mapping[str, timedelta]] = {
    "root": timedelta(days=730),
    "targets": timedelta(days=365),
    _MODEL_ROLE: timedelta(days=365),
    "snapshot": timedelta(days=30),
    "timestamp": timedelta(days=7),
}
_SERIALIZER: Final = JSONSerializer(compact=True)
_LOCK_KEY: Final = 0x5350_5241_5449  # an arbitrary number that only this lock uses

_log = structlog.get_logger(__name__)


class ImageRepository(Repository):
    """The image repository within one transaction.

    Args:
        session: the caller's transaction; it holds the writers' lock until it ends.
        signers: private keys by purpose.
        now: the present, for expiry.
    """

    def __init__(self, session: Session, signers: Mapping[str, CryptoSigner], now: datetime) -> None:
        session.execute(select(func.pg_advisory_xact_lock(_LOCK_KEY)))
        self._session, self._signers, self._now = session, signers, now.replace(microsecond=0)
        self._loaded: dict[str, Metadata[Any]] = {}

    def open(self, role: str) -> Metadata[Any]:
        """Return a fresh copy of the newest metadata of a role, or its first version, not signed yet."""
        row = newest(self._session, role)
        if row is not None:
            return Metadata[Any].from_bytes(row.body)
        if role in TOP_LEVEL:
            signed = {"root": Root, "targets": Targets, "snapshot": Snapshot, "timestamp": Timestamp}[role]()
        else:
            signed = Targets()
        signed.version = 0  # close() makes it 1
        return Metadata(signed)

    def close(self, role: str, md: Metadata[Any]) -> None:
        """Sign the next version of a role and add it."""
        md.signed.version += 1
        md.signed.expires = expiry(self._now, LIFE[role if role in TOP_LEVEL else _MODEL_ROLE])
        md.signatures.clear()
        md.sign(self._signer(role))
        self._session.add(
            SignedMetadata(
                repository=IMAGE_REPOSITORY,
                role=role,
                version=md.signed.version,
                body=md.to_bytes(_SERIALIZER),
                created_at=self._now,
                expires_at=md.signed.expires,
            )
        )
        self._session.flush()

    def _signer(self, role: str) -> CryptoSigner:
        purpose = role if role in TOP_LEVEL else "models"
        if purpose not in self._signers:
            raise KeysUnusable(
                f"the {purpose} key is not in the keys folder and {role} must be signed now; bring it back for this, "
                "then take it away again"
            )
        return self._signers[purpose]

    @property
    def targets_infos(self) -> dict[str, MetaFile]:
        """Return the newest version of each targets role."""
        return {
            f"{role}.json": MetaFile(version)
            for role, version in newest_versions(self._session).items()
            if role not in {"root", "snapshot", "timestamp"}
        }

    @property
    def snapshot_info(self) -> MetaFile:
        """Return the newest version of the snapshot."""
        return MetaFile(newest_versions(self._session)["snapshot"])

    def initialise(self) -> None:
        """Sign the first version of each top-level role."""
        with self.edit_root() as root:
            root.consistent_snapshot = True
            for role in TOP_LEVEL:
                root.add_key(self._signers[role].public_key, role)
        with self.edit_targets() as targets:
            key = self._signers["models"].public_key
            targets.delegations = Delegations({key.keyid: key}, {})
        self._publish()

    def add_targets(self, model: str, files: Iterable[TargetFile]) -> None:
        """Sign `files` under the role of `model`, delegated to it now if it is new."""
        role = role_of_model(model)
        if newest(self._session, role) is None:
            with self.edit_targets() as targets:
                delegations = targets.delegations
                if delegations is None or delegations.roles is None:
                    raise KeysUnusable("the targets metadata in the database delegate nothing; restore the database")
                key = self._signers["models"].public_key
                delegations.roles[role] = DelegatedRole(
                    name=role, keyids=[key.keyid], threshold=1, terminating=True, paths=paths_of_model(model)
                )
        with self.edit_targets(role) as targets:
            for file in files:
                targets.targets[file.path] = file
        self._publish()

    def sign_again(self) -> list[str]:
        """Sign a new version of each role that is past half of its life; return the roles signed.

        Roles whose key was taken offline are left out, with a warning.
        """
        due = [
            role
            for role in newest_versions(self._session)
            if (row := newest(self._session, role)) is not None and self._now >= renewal(row.created_at, row.expires_at)
        ]
        for role in OFFLINE & set(due) - set(self._signers):
            _log.warning("publish.key-offline", role=role, advice="bring its key back and restart, before it expires")
            due.remove(role)
        for role in due:
            if role not in {"snapshot", "timestamp"}:
                with self.edit(role):
                    pass
        self._publish(snapshot="snapshot" in due, timestamp=bool(due))
        return due

    def _publish(self, *, snapshot: bool = False, timestamp: bool = False) -> None:
        self.do_snapshot(force=snapshot)
        self.do_timestamp(force=timestamp)


def open_repository(session: Session, settings: Settings, now: datetime | None = None) -> ImageRepository:
    """Return the image repository, made with its keys if there is none yet.

    Raises:
        KeysUnusable: a key is missing, unreadable, or not the one that devices trust.
    """
    session.execute(select(func.pg_advisory_xact_lock(_LOCK_KEY)))
    signers = load_keys(settings.keys_dir)
    root_row = newest(session, "root")
    if root_row is None:
        signers = make_missing_keys(settings.keys_dir, signers)
        repository = ImageRepository(session, signers, now or datetime.now(UTC))
        repository.initialise()
        return repository
    _check_keys(settings, signers, Metadata[Root].from_bytes(root_row.body).signed, newest(session, "targets"))
    return ImageRepository(session, signers, now or datetime.now(UTC))


def _check_keys(
    settings: Settings, signers: Mapping[str, CryptoSigner], root: Root, targets_row: SignedMetadata | None
) -> None:
    trusted = {role: set(root.roles[role].keyids) for role in TOP_LEVEL}
    delegations = None if targets_row is None else Metadata[Targets].from_bytes(targets_row.body).signed.delegations
    trusted["models"] = set() if delegations is None else set(delegations.keys)
    for purpose, keyids in trusted.items():
        signer = signers.get(purpose)
        if signer is None and purpose in OFFLINE:
            continue
        if signer is None or signer.public_key.keyid not in keyids:
            state = "is missing" if signer is None else "is not the key that devices trust"
            raise KeysUnusable(
                f"signing key {key_path(settings.keys_dir, purpose)} {state}; copy the keys from the machine on which "
                "the server first started, or from a backup"
            )


def ensure_repository(session: Session, settings: Settings) -> None:
    """Make the keys and the first metadata if there are none; check that the keys are the trusted ones.

    Raises:
        KeysUnusable: a key is missing, unreadable, or not the one that devices trust.
    """
    open_repository(session, settings)


def sign_again(session: Session, settings: Settings, now: datetime | None = None) -> list[str]:
    """Sign what is past half of its life again; return the roles. Costs one query each when nothing is due.

    Raises:
        KeysUnusable: a key is missing, unreadable, or not the one that devices trust.
    """
    return open_repository(session, settings, now).sign_again()


def newest(session: Session, role: str) -> SignedMetadata | None:
    """Return the newest metadata of a role."""
    return session.scalar(
        select(SignedMetadata)
        .where(SignedMetadata.repository == IMAGE_REPOSITORY, SignedMetadata.role == role)
        .order_by(SignedMetadata.version.desc())
        .limit(1)
    )


def newest_versions(session: Session) -> dict[str, int]:
    """Return the newest version of each role."""
    rows = session.execute(
        select(SignedMetadata.role, func.max(SignedMetadata.version))
        .where(SignedMetadata.repository == IMAGE_REPOSITORY)
        .group_by(SignedMetadata.role)
    )
    return dict(rows.all())


def read_metadata(session: Session, wanted: Iterable[tuple[str, int]]) -> dict[tuple[str, int], bytes]:
    """Return the signed bytes of (role, version) pairs; those that do not exist are left out."""
    pairs = list(wanted)
    if not pairs:
        return {}
    rows = session.execute(
        select(SignedMetadata.role, SignedMetadata.version, SignedMetadata.body).where(
            SignedMetadata.repository == IMAGE_REPOSITORY,
            tuple_(SignedMetadata.role, SignedMetadata.version).in_(pairs),
        )
    )
    return {(role, version): body for role, version, body in rows}


def root_bytes(session: Session) -> bytes:
    """Return the signed bytes of the newest root, the start of a device's trust.

    Raises:
        KeysUnusable: there is no repository yet.
    """
    row = newest(session, "root")
    if row is None:
        raise KeysUnusable("the image repository was not made yet; start the server once")
    return row.body
