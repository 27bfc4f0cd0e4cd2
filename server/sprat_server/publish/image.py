"""The image repository: python-tuf's repository abstraction over the tables `signed_metadata` and `draft_metadata`.

One writer at a time (advisory lock, held until the transaction ends). Nothing is served before the transaction
that signed it commits, so devices see a release, its updates and its metadata together or not at all.

The server signs snapshot and timestamp. Any other version of a role begins as a draft; the server adds what
signatures it may, and publishes drafts as soon as their thresholds are met (`publish.drafts`).
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import CryptoSigner, Signature
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from tuf.api.metadata import (
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

from sprat_server.publish import drafts, rotation
from sprat_server.publish.drafts import Draft, Need
from sprat_server.publish.keys import KeyRing, KeysUnusable, holder_of, key_path, keys_folder
from sprat_server.publish.lives import expiry, renewal
from sprat_server.publish.models import SignedMetadata
from sprat_server.publish.repository import newest, newest_metadata, newest_versions, was_named
from sprat_server.publish.rotation import AUTO, MODEL_PREFIX, ONLINE, TOP_LEVEL, NewKeys
from sprat_server.registry import service as registry
from sprat_server.settings import Settings
from sprat_shared.errors import Conflict, InvalidInput
from sprat_shared.trust.targets import IMAGE_REPOSITORY, role_of_model

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
_BY_SERVER: Final = "system:sprat"


class ImageRepository(Repository):
    """The image repository within one transaction.

    Args:
        session: the caller's transaction; it holds the writers' lock until it ends (`open_repository`).
        ring: the keys that the server holds.
        signs_alone: tells for which models the server may sign releases by itself.
        now: the present, for expiry.
    """

    def __init__(self, session: Session, ring: KeyRing, signs_alone: Callable[[str], bool], now: datetime) -> None:
        self._session, self._ring, self._may_sign_alone = session, ring, signs_alone
        self._now = now.replace(microsecond=0)
        self._lives: dict[str, timedelta] = {}  # longer ones than usual, of what is signed next

    # What python-tuf asks of a repository: snapshot and timestamp are edited through it.

    def open(self, role: str) -> Metadata[Any]:
        """Return a fresh copy of the newest published metadata of a role, or its first version, not signed yet."""
        row = newest(self._session, role)
        if row is not None:
            return Metadata[Any].from_bytes(row.body)
        kinds = {"root": Root, "targets": Targets, "snapshot": Snapshot, "timestamp": Timestamp}
        signed = kinds.get(role, Targets)()
        signed.version = 0  # close() makes it 1
        return Metadata(signed)

    def close(self, role: str, md: Metadata[Any]) -> None:
        """Sign the next version of snapshot or timestamp and add it."""
        self._next(role, md.signed)
        md.signatures.clear()
        signers = self._ring.signers(self.root().roles[role].keyids)
        if not signers:
            raise KeysUnusable(f"the {role} key is not in the keys folder; copy it from where the server made it")
        md.sign(signers[0])
        self._insert(role, md)

    @property
    def targets_infos(self) -> dict[str, MetaFile]:
        """Return the newest version of each targets role."""
        return {
            f"{role}.json": MetaFile(version)
            for role, version in newest_versions(self._session).items()
            if role not in {"root", *ONLINE}
        }

    @property
    def snapshot_info(self) -> MetaFile:
        """Return the newest version of the snapshot."""
        return MetaFile(newest_versions(self._session)["snapshot"])

    # What sprat asks.

    def initialise(self) -> None:
        """Sign the first version of each top-level role with keys that the server holds."""
        root = Root(consistent_snapshot=True)
        for role in TOP_LEVEL:
            root.add_key(self._ring.first(role).public_key, role)
        targets = Targets()
        targets.delegations = Delegations({}, {})
        for role, signed in (("root", root), ("targets", targets)):
            signed.version = 0
            md: Metadata[Any] = Metadata(signed)
            self._next(role, signed)
            md.sign(self._ring.first(role))
            self._insert(role, md)
        self.do_snapshot()
        self.do_timestamp()

    def signs_alone(self, model: str) -> bool:
        """Tell whether the server signs for a model by itself: settings allow it, and it has no keys of people."""
        role = drafts.role_in(self._working("targets"), role_of_model(model))
        own = {key.keyid for key in rotation.auto_keys(self._working("targets"))}
        return self._may_sign_alone(model) and (role is None or bool(own & set(role.keyids)))

    def is_delegated(self, model: str) -> bool:
        """Tell whether keys were given to a model's role, be it in a draft."""
        return drafts.role_in(self._working("targets"), role_of_model(model)) is not None

    def delegate(self, model: str) -> bool:
        """Give the role of a new model the server's own key if the server may sign for it; tell whether it has keys."""
        if not self.is_delegated(model) and self._may_sign_alone(model):
            targets = self._working("targets")
            auto = rotation.auto_keys(targets) or [self._ring.first(AUTO).public_key]
            rotation.give(targets, NewKeys(role_of_model(model), auto))
            self._propose("targets", targets, reason=f"a role for the new model {model}")
        return self.is_delegated(model)

    def set_targets(
        self, model: str, files: Iterable[TargetFile], *, reason: str, number: int | None = None, by: str = _BY_SERVER
    ) -> Draft:
        """Have the role of `model` name exactly `files`; published at once where the server can sign that by itself."""
        signed = Targets(targets={file.path: file for file in files})
        draft = self._propose(role_of_model(model), signed, number=number, reason=reason, by=by)
        self.settle()
        return draft

    def rotate(self, wanted: Sequence[NewKeys], *, by: str) -> list[str]:
        """Give roles other keys; return the roles of which new versions were published at once.

        Versions that need signatures of people wait as drafts. Where a draft of root or targets waits already it is
        amended, and must be signed anew.

        Raises:
            InvalidInput: a role does not exist, or keys and threshold make no sense for it.
        """
        root, targets = self._working("root"), self._working("targets")
        reason = "other keys for " + ", ".join(one.role for one in wanted)
        for one in wanted:
            for each in rotation.resolve(one, root, targets, self._ring, self._may_sign_alone):
                rotation.give(root if each.role in TOP_LEVEL else targets, each)
        if any(one.role in TOP_LEVEL for one in wanted):
            self._propose("root", root, reason=reason, by=by)
        if any(one.role not in TOP_LEVEL for one in wanted):
            self._propose("targets", targets, reason=reason, by=by)
        return self.settle()

    def sign(self, digest: str, signature: Signature, *, by: str) -> list[str]:
        """Add a signature to a draft; return the roles of which new versions were published with it.

        Raises:
            Conflict: the draft is not there any more, or has a signature by this key.
            InvalidInput: the key may not sign it, or the signature is not over its bytes.
        """
        draft = drafts.find(self._session, digest)
        what = f"{draft.role} {draft.row.version}"
        keys = {keyid: key for one in self.needs(draft) for keyid, key in one.keys.items()}
        key = keys.get(signature.keyid)
        if key is None:
            known = ", ".join(f"{keyid[:12]} ({holder_of(one) or 'unnamed'})" for keyid, one in keys.items())
            raise InvalidInput(
                f"key {signature.keyid[:12]} may not sign {what}; the keys of the role are: {known or 'none yet'}",
                code="signing.key",
            )
        if signature.keyid in draft.metadata.signatures:
            raise Conflict(
                f"{what} has a signature by key {signature.keyid[:12]} already; a threshold counts keys, so another "
                "one must sign",
                code="signing.twice",
            )
        try:
            key.verify_signature(signature, draft.metadata.signed_bytes)
        except UnverifiedSignatureError:
            raise InvalidInput(
                f"the signature by key {signature.keyid[:12]} is not over {what} as it waits here; "
                "export it again and sign that",
                code="signing.signature",
            ) from None
        drafts.add_signature(self._session, draft, signature, by)
        return self.settle()

    def withdraw(self, digest: str) -> Draft:
        """Drop a draft. Raises Conflict where it is not there."""
        draft = drafts.find(self._session, digest)
        drafts.drop(self._session, draft)
        return draft

    def needs(self, draft: Draft) -> list[Need]:
        """Return what a draft must have before it is published."""
        return drafts.needs(draft, self.root(), self.targets(), drafts.all_drafts(self._session))

    def due(self) -> list[str]:
        """Return the roles that are past half of their life."""
        return [
            role
            for role, row in newest_metadata(self._session).items()
            if self._now >= renewal(row.created_at, row.expires_at)
        ]

    def sign_again(self, roles: Iterable[str]) -> list[str]:
        """Sign a new version of these top-level roles; return those published, others wait as drafts."""
        chosen = set(roles)
        for role in ("root", "targets"):
            if role in chosen and drafts.of_role(self._session, role) is None:
                self._propose(role, self._working(role), reason="half of its life is over")
        published = self.settle()
        again = [name for name in ONLINE if name in chosen]
        if "snapshot" in again:
            self.do_snapshot(force=True)
        if again:
            self.do_timestamp(force=True)
        return sorted({*published, *again})

    def last_until(self, until: datetime) -> int:
        """Return the version of a timestamp that lives until then, signed now where the newest does not.

        Then a common one follows at once, so that devices which poll are served no longer life than before.
        """
        row, snapshot = newest(self._session, "timestamp"), newest(self._session, "snapshot")
        if row is None or snapshot is None:
            raise KeysUnusable("the image repository was not made yet; start the server once")
        if min(row.expires_at, snapshot.expires_at) >= until:
            return row.version
        if snapshot.expires_at < until:
            self._lives["snapshot"] = until - self._now
            self.do_snapshot(force=True)
        self._lives["timestamp"] = until - self._now
        self.do_timestamp(force=True)
        self._lives.clear()
        version = self.open("timestamp").signed.version
        self.do_timestamp(force=True)
        return int(version)

    def settle(self) -> list[str]:
        """Publish what has its signatures; return the roles."""
        published: list[str] = []
        while True:
            self._follow()
            chosen = drafts.ready(self.root(), self.open("targets"), self._published, drafts.all_drafts(self._session))
            for draft in chosen:
                self._insert(draft.role, draft.metadata)
                drafts.drop_role(self._session, draft.role)
                if draft.role.startswith(MODEL_PREFIX):
                    paths = draft.metadata.signed.targets
                    registry.mark_published(self._session, draft.role.removeprefix(MODEL_PREFIX), paths)
            if not chosen:
                break
            published += [draft.role for draft in chosen]
        if published:
            self.do_snapshot()
            self.do_timestamp(force=True)  # a new root alone is news for devices too
        return published

    def drop_retired_keys(self) -> list[Path]:
        """Delete the files of keys that neither published metadata nor drafts name, and return where they were.

        Those that were named once, or were made by a rotation that came to nothing; what else lies in the folder stays.
        The caller has committed what retired them: until then a crash leaves the old keys usable.
        """
        named = [self.root(), self.targets(), self._working("root"), self._working("targets")]
        unused = [keyid for keyid in self._ring if not any(_names(one, keyid) for one in named)]
        ours = [keyid for keyid in unused if self._ring.was_rotated(keyid) or was_named(self._session, keyid)]
        return [self._ring.drop(keyid) for keyid in ours]

    def _working(self, role: str) -> Any:
        """Return what a new version of root or targets starts from: the draft that waits, or what is published."""
        draft = drafts.of_role(self._session, role)
        return copy.deepcopy((self.open(role) if draft is None else draft.metadata).signed)

    def _propose(
        self, role: str, signed: Any, *, reason: str, number: int | None = None, by: str = _BY_SERVER
    ) -> Draft:
        row, before = newest(self._session, role), drafts.of_role(self._session, role)
        if before is not None and number is None and role in TOP_LEVEL and reason != before.row.reason:
            reason = f"{before.row.reason}; {reason}"  # what was asked for before stays in it
        signed.version = 0 if row is None else row.version
        self._next(role, signed)
        draft = drafts.store(self._session, role, signed, number=number, reason=reason, by=by)
        for signer in self._may_sign(draft):
            if signer.public_key.keyid not in draft.metadata.signatures:
                drafts.add_signature(self._session, draft, signer.sign(draft.metadata.signed_bytes), _BY_SERVER)
        return draft

    def _may_sign(self, draft: Draft) -> list[CryptoSigner]:
        """Return the keys with which the server signs a draft: all it holds for it, of models only where it may."""
        if draft.role.startswith(MODEL_PREFIX) and not self._may_sign_alone(draft.role.removeprefix(MODEL_PREFIX)):
            return []
        trusting = [self.root(), self._working("root"), self.targets(), self._working("targets")]
        keyids = dict.fromkeys(
            keyid for one in trusting if (role := drafts.role_in(one, draft.role)) for keyid in role.keyids
        )
        return self._ring.signers(keyids)

    def _follow(self) -> None:
        """Draft what a draft above makes necessary: metadata that keys sign which are about to be trusted."""
        waiting = {draft.role for draft in drafts.all_drafts(self._session) if draft.row.number is None}
        root, targets = self.root(), self.targets()
        if "root" in waiting and "targets" not in waiting and drafts.changes(root, self._working("root"), "targets"):
            self._propose("targets", self._working("targets"), reason="the targets role gets other keys")
        after = self._working("targets")
        for role in rotation.delegated(after):
            published = self._published(role)
            if (
                role not in waiting
                and published is not None
                and drafts.changes(targets, after, role)
                and not drafts.verified(after, role, published)
            ):
                self._propose(role, published.signed, reason=f"{role} gets other keys")

    def _published(self, role: str) -> Metadata[Any] | None:
        row = newest(self._session, role)
        return None if row is None else Metadata[Any].from_bytes(row.body)

    def _next(self, role: str, signed: Any) -> None:
        signed.version += 1
        life = self._lives.get(role, LIFE[role if role in TOP_LEVEL else _MODEL_ROLE])
        signed.expires = expiry(self._now, life)

    def _insert(self, role: str, md: Metadata[Any]) -> None:
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


def open_repository(session: Session, settings: Settings, now: datetime | None = None) -> ImageRepository:
    """Return the image repository, made with keys of the server if there is none yet.

    Raises:
        KeysUnusable: a key is missing, unreadable, or not the one that devices trust.
    """
    session.execute(select(func.pg_advisory_xact_lock(_LOCK_KEY)))  # before the keys are read: another may make some
    folder = keys_folder(session, settings)
    ring = KeyRing(folder)
    repository = ImageRepository(session, ring, settings.signs_alone, now or datetime.now(UTC))
    if newest(session, "root") is None:
        repository.initialise()
    else:
        _check_keys(settings, folder, ring, repository)
    return repository


def _check_keys(settings: Settings, folder: Path, ring: KeyRing, repository: ImageRepository) -> None:
    """Refuse to go on without the keys that the server must have at any hour."""
    root, targets = repository.root(), repository.targets()
    needed = {role: list(root.roles[role].keyids) for role in ONLINE}
    own = {key.keyid for key in rotation.auto_keys(targets)}
    for name, role in rotation.delegated(targets).items():
        if set(role.keyids) & own and settings.signs_alone(name.removeprefix(MODEL_PREFIX)):
            needed[AUTO] = sorted(set(role.keyids) & own)
            break
    for purpose, keyids in needed.items():
        if not any(keyid in ring for keyid in keyids):
            path = key_path(folder, purpose)
            state = "is not the key that devices trust" if path.exists() else "is missing"
            raise KeysUnusable(
                f"signing key {path} {state} (key id {keyids[0][:16]}); copy the keys from the machine on which the "
                "server made them, or from a backup"
            )


def _names(delegator: Root | Targets, keyid: str) -> bool:
    if isinstance(delegator, Root):
        return keyid in delegator.keys
    return delegator.delegations is not None and keyid in delegator.delegations.keys
