"""Bundles: what polls would bring to devices, for somebody to carry there. Signed in one transaction, then streamed."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy.orm import Session
from tuf.api.metadata import Metadata

from sprat_server.db.blobs import Blobs
from sprat_server.fleet import service as fleet
from sprat_server.flows import poll
from sprat_server.publish import director, repository
from sprat_server.publish.director import PlanWish, Wish
from sprat_server.publish.image import open_repository
from sprat_server.registry import service as registry
from sprat_server.registry.models import Graph
from sprat_server.settings import Settings
from sprat_shared.errors import Conflict, InvalidInput
from sprat_shared.ids import parse_digest
from sprat_shared.protocol.bundle import MOST_DEVICES, Head, pack_metadata
from sprat_shared.protocol.poll import TOP_ROLES, HeldMetadata, Part
from sprat_shared.trust.assignments import DIRECTOR_REPOSITORY
from sprat_shared.trust.targets import IMAGE_REPOSITORY, role_of_model

MOST_DAYS: Final = 90


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose payloads are still in the blob store.

    Attributes:
        head: what is in it.
        metadata: the sections before the payloads.
        valid_until: when the first of its metadata expires.
    """

    head: Head
    metadata: tuple[bytes, ...]
    valid_until: datetime

    @property
    def digest(self) -> str:
        """Return the digest of all that stands before the payloads; it covers theirs."""
        return f"sha256:{hashlib.sha256(b''.join([self.head.to_bytes(), *self.metadata])).hexdigest()}"

    def require_payloads(self, blobs: Blobs) -> None:
        """Return if the store has every payload; BlobUnknown otherwise."""
        for sha256 in self.head.payloads:
            blobs.length(f"sha256:{sha256.hex()}")

    def stream(self, blobs: Blobs) -> Iterator[bytes]:
        """Yield the file's bytes."""
        yield self.head.to_bytes()
        yield from self.metadata
        for sha256 in self.head.payloads:
            for piece in blobs.stream(f"sha256:{sha256.hex()}"):
                yield bytes(piece)


def devices_with(session: Session, model: str) -> list[UUID]:
    """Return the devices that are assigned a release of a model and were not revoked.

    Raises:
        NotFound: there is no such model.
    """
    current = fleet.current_assignments(session, model_id=registry.get_model(session, model).id)
    assigned = {assignment.device_id for assignment in current if assignment.number is not None}
    return sorted(assigned & set(fleet.live_devices(session)))


def export(
    session: Session,
    settings: Settings,
    device_ids: Sequence[UUID],
    *,
    valid_days: int | None = None,
    full: bool = False,
) -> Bundle:
    """Sign what devices should run, for a bundle.

    Args:
        session: the caller's transaction.
        settings: of the server.
        device_ids: the devices, each once.
        valid_days: for how long it must be good; None: for as long as what is signed anyway, three days at least.
        full: with full updates too, for devices that may hold something else than their last report says.

    Raises:
        NotFound: a device does not exist.
        InvalidInput: none is named, or too many are.
        Conflict: a device was revoked or should run nothing, or metadata that people sign expire earlier.
        KeysUnusable: a key is not here.
    """
    if not 1 <= len(device_ids) <= MOST_DEVICES:
        raise InvalidInput(
            f"a bundle is for 1 to {MOST_DEVICES} devices, not for {len(device_ids)}", code="bundle.empty"
        )
    now = datetime.now(UTC).replace(microsecond=0)
    until = now + timedelta(days=valid_days or 0)
    stamp = open_repository(session, settings, now).last_until(until)
    newest = repository.newest_versions(session) | {"timestamp": stamp}
    signed: dict[UUID, list[HeldMetadata]] = {}
    wishes: list[Wish] = []
    plans: list[PlanWish] = []
    for device_id in sorted(set(device_ids)):
        if fleet.get_device(session, device_id).revoked_at is not None:
            raise Conflict(f"device {device_id} was revoked; leave it out", code="device.revoked")
        own = poll.directed(session, settings, device_id).wishes
        if not own.releases:
            raise Conflict(
                f"device {device_id} should run nothing, so there is nothing to bring; start a rollout to it first",
                code="bundle.nothing-assigned",
            )
        wishes += own.releases
        plans += own.plans
        versions = director.sign_for_bundle(session, settings, device_id, until=until, now=now)
        signed[device_id] = _files(DIRECTOR_REPOSITORY, versions, [])
    models = sorted({role_of_model(wish.assigned.model) for wish in wishes})
    common = _parts(repository.read_metadata, session, _files(IMAGE_REPOSITORY, newest, models))
    own_parts = {
        device_id: _parts(lambda s, pairs, of=device_id: director.read_metadata(s, of, pairs), session, files)
        for device_id, files in signed.items()
    }
    valid_until = _valid_until([*common, *(part for parts in own_parts.values() for part in parts)], until)
    first, sections = pack_metadata(common, own_parts)
    payloads = _payloads(session, wishes, plans, full=full)
    head = Head(len(first), {device_id: len(section) for device_id, section in sections.items()}, payloads)
    return Bundle(head, (first, *sections.values()), valid_until)


def _files(name: str, versions: Mapping[str, int], models: Sequence[str]) -> list[HeldMetadata]:
    """Return the files of a repository in the order of reading: every root, for nobody knows which a device holds."""
    roots = [HeldMetadata(name, "root", number) for number in range(1, versions["root"] + 1)]
    return [*roots, *(HeldMetadata(name, role, versions[role]) for role in (*TOP_ROLES[1:], *models))]


def _parts(read: Any, session: Session, files: Sequence[HeldMetadata]) -> list[Part]:
    found = read(session, [(file.role, file.version) for file in files])
    return [Part(kind="metadata", name=poll.file_name(file), data=found[file.role, file.version]) for file in files]


def _valid_until(parts: Sequence[Part], wanted: datetime) -> datetime:
    """Return when the first of the files expires; roots that others follow count no more."""
    lives: dict[str, datetime] = {}
    for part in parts:  # of roots, the last one of each repository stays
        repository_name, _, file = part.name.partition("/")
        name = f"{repository_name}/root" if file.endswith(".root.json") else part.name
        expires = Metadata[Any].from_bytes(part.data).signed.expires
        lives[name] = expires if name.endswith("/root") else min(expires, lives.get(name, expires))
    earliest, name = min((expires, name) for name, expires in lives.items())
    if earliest < wanted:
        raise Conflict(
            f"{name} expires at {earliest:%Y-%m-%d %H:%M} UTC, and the bundle must be good until "
            f"{wanted:%Y-%m-%d %H:%M}: have it signed again first, or ask for fewer days",
            code="bundle.expires-earlier",
        )
    return earliest


def _payloads(session: Session, wishes: Sequence[Wish], plans: Sequence[PlanWish], *, full: bool) -> dict[bytes, int]:
    found = {digest: length for wish in wishes for digest, length in wish.payloads}
    found |= {digest: length for plan in plans for digest, length in plan.payloads}
    found |= {f"sha256:{plan.sha256}": plan.length for plan in plans if full}
    for wish in wishes if full else ():
        found[f"sha256:{wish.sha256}"] = wish.length
        release = registry.get_release(session, registry.get_model(session, wish.assigned.model), wish.assigned.release)
        for digest in (release.graph_digest, release.statistics_graph):
            if digest is not None:
                found[digest] = session.get_one(Graph, digest).bytes
    return {parse_digest(digest): length for digest, length in sorted(found.items())}
