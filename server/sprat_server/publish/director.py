"""The director repository: what each device should run, signed for it alone, at the poll that needs it.

Beside releases it signs the plans of the device's site: which ones it holds, and what it does by each.

Its root is one for all devices of a project, its key may be taken offline. Timestamp, snapshot and targets are each
device's own, signed by one online key and kept in `director_metadata` until something changes: an assignment, the
cheapest path, the profile, the policy, the online key, or half of a life is over. What is signed names, for each
assigned model, the full update of the release with the length and hash that the image repository signs for the same
path, and the path of updates (`sprat_shared.trust.assignments`). Its timestamp says when it was signed
(`sprat_shared.trust.signed_time`).

One writer for each device (advisory lock, held until the transaction ends): replicas that are asked at the same time
sign one version, and what is signed later was read later.
"""

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self
from uuid import UUID

from securesystemslib.signer import Signer
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session
from tuf.api.metadata import Metadata, MetaFile, Signed, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization.json import JSONSerializer

from sprat_server.publish import director_root
from sprat_server.publish.keys import keys_folder
from sprat_server.publish.lives import expiry, renewal
from sprat_server.publish.models import DirectorMetadata, SignedMetadata
from sprat_server.settings import Settings
from sprat_shared.trust.assignments import Assigned, bound_to
from sprat_shared.trust.signed_time import SignedTime
from sprat_shared.trust.site_targets import SignedPlan

ROLES: Final = ("timestamp", "snapshot", "targets")
LIFE: Final[Mapping[str, timedelta]] = {
    "targets": timedelta(days=365),
    "snapshot": timedelta(days=30),
    "timestamp": timedelta(days=7),
}
_SERIALIZER: Final = JSONSerializer(compact=True)
_LOCK_CLASS: Final = 0x5350_4444  # an arbitrary number: the first half of the locks of devices' metadata


@dataclass(frozen=True, slots=True)
class Wish:
    """A release that a device should run, with what the image repository signs for its full update.

    Attributes:
        assigned: the release and the path there.
        length: bytes of the full update.
        sha256: digest of the full update, in hexadecimal.
        payloads: the blobs on the path that the device lacks, as (digest, bytes); they are not signed here.
        steps: target paths of updates that may stay signed as the path of a device that has come to the release.
    """

    assigned: Assigned
    length: int
    sha256: str
    payloads: tuple[tuple[str, int], ...] = ()
    steps: Collection[str] = ()

    @property
    def path(self) -> str:
        """Return the target path."""
        return self.assigned.full

    def to_target(self) -> TargetFile:
        """Return the TUF target."""
        custom = {"custom": self.assigned.to_custom()}
        return TargetFile(self.length, {"sha256": self.sha256}, self.path, custom)


@dataclass(frozen=True, slots=True)
class PlanWish:
    """A plan of a site that a device should hold, serve by, or drain.

    Attributes:
        signed: the plan and its phase.
        length: bytes of the plan's file.
        sha256: digest of the file, in hexadecimal.
        payloads: the file, as (digest, bytes), where the device lacks it; it is not signed here.
    """

    signed: SignedPlan
    length: int
    sha256: str
    payloads: tuple[tuple[str, int], ...] = ()

    @property
    def path(self) -> str:
        """Return the target path."""
        return self.signed.path

    def to_target(self) -> TargetFile:
        """Return the TUF target."""
        custom = {"custom": self.signed.to_custom()}
        return TargetFile(self.length, {"sha256": self.sha256}, self.path, custom)


@dataclass(frozen=True, slots=True)
class Wishes:
    """All that a device should have: releases, by model name, and plans of its site, by path."""

    releases: Sequence[Wish] = ()
    plans: Sequence[PlanWish] = ()

    @property
    def all(self) -> Sequence[Wish | PlanWish]:
        """Return both, plans first: they are small, and say what the releases are for."""
        return [*self.plans, *self.releases]


@dataclass(frozen=True, slots=True)
class Current:
    """A device's newest metadata.

    Attributes:
        versions: of the root and of the device's own roles.
        wishes: what the targets say.
        due_at: when one of the device's own roles is to be signed again.
    """

    versions: Mapping[str, int]
    wishes: Wishes
    due_at: datetime


def current(
    session: Session,
    settings: Settings,
    device_id: UUID,
    wanted: Callable[[], Wishes],
    *,
    held: Mapping[str, int] | None = None,
    nonce: str | None = None,
    now: datetime | None = None,
) -> Current:
    """Return the newest metadata of a device, signed now where they do not say what is wanted or are due.

    Args:
        session: the caller's transaction; nothing is written where nothing is to be signed.
        settings: of the server; they say where the online key is.
        device_id: whose.
        wanted: reads what the device should run; read again under the lock before anything is signed.
        held: versions that the device holds, by role: what is older is forgotten; None: that is not known.
        nonce: of a device that asks for a proof of the time: a timestamp is signed that repeats it.
        now: the present.

    Raises:
        KeysUnusable: there is no root yet, or the online key is not here.
    """
    now = (now or datetime.now(UTC)).replace(microsecond=0)
    state = _State.read(session, device_id, wanted(), now)
    if state.stale or nonce is not None:
        session.execute(select(func.pg_advisory_xact_lock(_LOCK_CLASS, func.hashtext(str(device_id)))))
        session.expire_all()
        state = _State.read(session, device_id, wanted(), now)
        state.sign(session, settings, device_id, SignedTime(at=now, nonce=nonce))
        if held is not None:
            _forget(session, device_id, state.kept, held)
    versions = {role: row.version for role, row in state.kept.items()}
    due_at = min(renewal(row.created_at, row.expires_at) for row in state.kept.values())
    return Current({"root": state.root.version} | versions, state.wishes, due_at)


def sign_for_bundle(
    session: Session, settings: Settings, device_id: UUID, *, until: datetime, now: datetime | None = None
) -> dict[str, int]:
    """Sign a timestamp and a snapshot that a bundle carries to a device, valid until then; return all versions.

    They name the device: whoever carries several devices' metadata cannot make one believe the versions of another.
    Where they live longer than others a common timestamp follows at once: a device that polls is served that one, so
    nobody can keep it on old metadata for longer than by withholding a common one.

    Args:
        session: the caller's transaction, in which `current` was called.
        settings: of the server; they say where the online key is.
        device_id: whose.
        until: when they may expire at the earliest.
        now: the present.

    Raises:
        KeysUnusable: the online key is not here.
    """
    now = (now or datetime.now(UTC)).replace(microsecond=0)
    session.execute(select(func.pg_advisory_xact_lock(_LOCK_CLASS, func.hashtext(str(device_id)))))
    root, kept = director_root.newest(session), _newest(session, device_id)
    signer = director_root.online_signer(keys_folder(session, settings), root.body)
    versions = {role: kept[role].version + (role != "targets") for role in ROLES}
    wanted = until - now
    snapshot = Snapshot(
        meta={"targets.json": MetaFile(versions["targets"])}, unrecognized_fields=bound_to(device_id, {})
    )
    _add(session, device_id, signer, "snapshot", snapshot, versions["snapshot"], now, max(wanted, LIFE["snapshot"]))
    time = SignedTime(at=now).to_fields()
    stamps = [(bound_to(device_id, time), max(wanted, LIFE["timestamp"]))]
    if wanted > LIFE["timestamp"]:
        stamps.append((time, LIFE["timestamp"]))
    for version, (said, life) in enumerate(stamps, start=versions["timestamp"]):
        stamp = Timestamp(snapshot_meta=MetaFile(versions["snapshot"]), unrecognized_fields=said)
        _add(session, device_id, signer, "timestamp", stamp, version, now, life)
    session.flush()
    return {"root": root.version, **versions}


def read_metadata(session: Session, device_id: UUID, wanted: Iterable[tuple[str, int]]) -> dict[tuple[str, int], bytes]:
    """Return the signed bytes of (role, version) pairs, as a device may have them; those not kept are left out."""
    roots: list[int] = []
    own: dict[str, list[int]] = {}
    for role, version in wanted:
        (roots if role == "root" else own.setdefault(role, [])).append(version)
    found = {("root", version): body for version, body in director_root.read(session, roots).items()}
    for role, versions in own.items():
        rows = session.execute(
            select(DirectorMetadata.version, DirectorMetadata.body).where(
                DirectorMetadata.device_id == device_id,
                DirectorMetadata.role == role,
                DirectorMetadata.version.in_(versions),
            )
        )
        found |= {(role, version): body for version, body in rows}
    return found


def _newest(session: Session, device_id: UUID) -> dict[str, DirectorMetadata]:
    """Return the newest row of each role, as far as there are any; a device has few."""
    rows = select(DirectorMetadata).where(DirectorMetadata.device_id == device_id).order_by(DirectorMetadata.version)
    return {row.role: row for row in session.scalars(rows)}


@dataclass(slots=True)
class _State:
    """What is kept of a device, what should be, and which roles must be signed for that."""

    root: SignedMetadata
    kept: dict[str, DirectorMetadata]
    wishes: Wishes
    stale: set[str]

    @classmethod
    def read(cls, session: Session, device_id: UUID, wishes: Wishes, now: datetime) -> Self:
        root, kept = director_root.newest(session), _newest(session, device_id)
        return cls(root, kept, wishes, _stale(kept, wishes, director_root.online_keyid(root.body), now))

    def sign(self, session: Session, settings: Settings, device_id: UUID, time: SignedTime) -> None:
        """Add the next version of each role that is stale."""
        if time.nonce is not None:
            self.stale.add("timestamp")
        if not self.stale:
            return  # another replica was asked at the same time, and did it
        signer = director_root.online_signer(keys_folder(session, settings), self.root.body)
        versions = {
            role: (self.kept[role].version if role in self.kept else 0) + (role in self.stale) for role in ROLES
        }
        targets = {wish.path: wish.to_target() for wish in self.wishes.all}
        contents: dict[str, Signed] = {
            "targets": Targets(targets=targets),
            "snapshot": Snapshot(meta={"targets.json": MetaFile(versions["targets"])}),
            "timestamp": Timestamp(snapshot_meta=MetaFile(versions["snapshot"]), unrecognized_fields=time.to_fields()),
        }
        for role in self.stale:
            self.kept[role] = _add(
                session, device_id, signer, role, contents[role], versions[role], time.at, LIFE[role]
            )
        session.flush()


def _add(  # noqa: PLR0917 - all that a row of metadata says
    session: Session,
    device_id: UUID,
    signer: Signer,
    role: str,
    signed: Signed,
    version: int,
    now: datetime,
    life: timedelta,
) -> DirectorMetadata:
    signed.version, signed.expires = version, expiry(now, life)
    metadata: Metadata[Any] = Metadata(signed)
    metadata.sign(signer)
    row = DirectorMetadata(
        device_id=device_id,
        role=role,
        version=version,
        body=metadata.to_bytes(_SERIALIZER),
        created_at=now,
        expires_at=signed.expires,
    )
    session.add(row)
    return row


def _stale(kept: Mapping[str, DirectorMetadata], wishes: Wishes, keyid: str, now: datetime) -> set[str]:
    """Return the roles that must be signed; none where everything kept still holds."""
    stale = {role for role in ROLES if role not in kept}
    for role, row in kept.items():
        said = json.loads(row.body)
        signed_by = {signature["keyid"] for signature in said["signatures"]}
        outdated = role == "targets" and not _says(said["signed"]["targets"], wishes)
        if outdated or signed_by != {keyid} or now >= renewal(row.created_at, row.expires_at):
            stale.add(role)
    if "targets" in stale:
        stale.add("snapshot")
    return stale | {"timestamp"} if stale else stale


def _says(signed: Mapping[str, Any], wishes: Wishes) -> bool:
    """Whether these targets say what is wanted.

    A device that has come to its release needs no path: the one that brought it there is no reason to sign anew, as
    long as the image repository signs its steps too.
    """
    if {wish.path for wish in wishes.all} != signed.keys():
        return False
    if any(plan.to_target().to_dict() != signed[plan.path] for plan in wishes.plans):
        return False
    for wish in wishes.releases:
        said = signed[wish.assigned.full]
        path = tuple(said["custom"]["sprat"]["path"])
        if not wish.assigned.path and set(path) <= set(wish.steps):
            wish = replace(wish, assigned=replace(wish.assigned, path=path))  # noqa: PLW2901 - the same, as it came
        if wish.to_target().to_dict() != said:
            return False
    return True


def _forget(session: Session, device_id: UUID, kept: Mapping[str, DirectorMetadata], held: Mapping[str, int]) -> None:
    """Delete all but the newest and what the device holds: it will name no other as its dictionary."""
    for role, row in kept.items():
        session.execute(
            delete(DirectorMetadata).where(
                DirectorMetadata.device_id == device_id,
                DirectorMetadata.role == role,
                DirectorMetadata.version.not_in([row.version, held.get(role, 0)]),
            )
        )
