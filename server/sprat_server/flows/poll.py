"""What one poll is answered: the desired state of a device, the metadata it lacks, and payloads that fit."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from sprat_server.db.blobs import Blobs
from sprat_server.fleet import service as fleet
from sprat_server.fleet.authentication import authenticate_device
from sprat_server.fleet.models import DeviceSlots
from sprat_server.observe.actors import Actor
from sprat_server.publish import repository
from sprat_server.registry import paths
from sprat_server.registry import service as registry
from sprat_server.registry.models import Graph, Model, Release, UpdateFile
from sprat_server.settings import Settings
from sprat_shared.errors import NotFound
from sprat_shared.protocol.poll import Desired, HeldMetadata, Part, PollAnswer
from sprat_shared.trust.targets import IMAGE_REPOSITORY, graph_path, role_of_model, update_path


@dataclass(frozen=True, slots=True)
class Poller:
    """What must be known about a device to answer a poll with 304.

    Attributes:
        device: its id.
        name: what people call it.
        counter: of its newest assignment.
        token_expires_at: when the token that it shows ends.
    """

    device: UUID
    name: str
    counter: int
    token_expires_at: datetime

    def expired(self, now: datetime) -> bool:
        """Return whether its token has ended."""
        return self.token_expires_at <= now

    @property
    def actor(self) -> Actor:
        """Return who acts, for the log."""
        return Actor(kind="device", id=str(self.device), name=self.name)


@dataclass(frozen=True, slots=True)
class Wish:
    """A desired release with the files that lead to it, as (digest, bytes)."""

    desired: Desired
    files: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Draft:
    """An answer whose payloads are still in the blob store, so that they are read after the transaction.

    Attributes:
        answer: desired state and metadata.
        dictionary: what both sides hold, for packing.
        payloads: the blobs that go with it, as (digest, bytes).
    """

    answer: PollAnswer
    dictionary: bytes
    payloads: tuple[tuple[str, int], ...]

    def pack(self, blobs: Blobs) -> bytes:
        """Return the body. A payload that the store lacks is left out: the device asks for it and is told so."""
        parts = list(self.answer.parts)
        for digest, length in self.payloads:
            with suppress(NotFound):
                parts.append(Part(kind="blob", name=digest, data=blobs.read(digest, max_bytes=length)))
        return replace(self.answer, parts=tuple(parts)).to_bytes(self.dictionary)


def etag_of(counter: int, timestamp_version: int) -> str:
    """Return the entity tag of a device's state: it changes with an assignment or with any signed metadata."""
    return f'"{counter}.{timestamp_version}"'


def identify(session: Session, shown: str) -> Poller:
    """Return who polls with this token; Unauthenticated as `fleet.authentication.authenticate_device`."""
    device = authenticate_device(session, shown)
    assert device.token_expires_at is not None  # noqa: S101 - it has the token (CHECK tokens_expire)
    return Poller(device.id, device.name, device.assignment_counter, device.token_expires_at)


def timestamp_version(session: Session) -> int:
    """Return the version of the newest timestamp; 0 before the repository was made."""
    return repository.newest_versions(session).get("timestamp", 0)


def build_answer(
    session: Session, settings: Settings, device_id: UUID, *, held: Sequence[HeldMetadata], inline_bytes: int
) -> Draft:
    """Return an answer with everything that the device lacks.

    Assignments are read before metadata: what an assignment names was signed before it, so the body never wishes
    for a release that its metadata do not vouch for.

    Args:
        session: the caller's transaction; only read.
        settings: of the server.
        device_id: who asks.
        held: the metadata that the device names.
        inline_bytes: the payloads may take so much together.
    """
    wishes = wishes_of(session, device_id)
    versions = repository.newest_versions(session)
    roles = ["root", "timestamp", "snapshot", "targets", *(role_of_model(wish.desired.model) for wish in wishes)]
    metadata, dictionary = _metadata(session, versions, roles, held)
    return Draft(
        answer=PollAnswer(
            poll_interval_s=settings.poll_interval_s,
            desired=tuple(wish.desired for wish in wishes),
            parts=tuple(metadata),
        ),
        dictionary=dictionary,
        payloads=_that_fit(wishes, inline_bytes),
    )


def wishes_of(session: Session, device_id: UUID) -> list[Wish]:
    """Return the desired release of each model, by model name, with the cheapest way there."""
    held = fleet.slots(session, device_ids=[device_id])
    wishes = []
    for assignment in fleet.current_assignments(session, device_ids=[device_id]):
        if assignment.number is not None:
            model = session.scalars(select(Model).where(Model.id == assignment.model_id)).one()
            slots = held.get((device_id, model.id))
            wishes.append(_wish(session, model, assignment.number, assignment.counter, slots))
    return sorted(wishes, key=lambda wish: wish.desired.model)


def _wish(session: Session, model: Model, number: int, counter: int, slots: DeviceSlots | None) -> Wish:
    release = registry.get_release(session, model, number)
    held = [] if slots is None else [slot for slot in (slots.active, slots.previous) if slot is not None]
    steps = paths.cheapest_from(registry.all_updates(session, model), held, number)
    desired = Desired(
        model=model.name,
        release=number,
        weights=release.weights_digest,
        assignment=counter,
        graph=graph_path(model.name, release.graph_digest),
        path=tuple(update_path(model.name, step.number, step.base_number) for step in steps),
        full=update_path(model.name, number, None),
    )
    return Wish(desired, _files(session, model, release, held, steps))


def _files(
    session: Session, model: Model, release: Release, held: Sequence[int], steps: Sequence[UpdateFile]
) -> tuple[tuple[str, int], ...]:
    files = [(step.blob, step.bytes) for step in steps]
    graphs = {digest for number in held for digest in _graphs(registry.get_release(session, model, number))}
    for digest in _graphs(release):
        if steps and digest not in graphs:
            graph = session.get_one(Graph, digest)
            files.append((graph.digest, graph.bytes))
    return tuple(files)


def _graphs(release: Release) -> list[str]:
    """Return the digests of the graphs that a device with this release keeps."""
    return [digest for digest in (release.graph_digest, release.statistics_graph) if digest is not None]


def _metadata(
    session: Session, versions: dict[str, int], roles: Iterable[str], held: Sequence[HeldMetadata]
) -> tuple[list[Part], bytes]:
    """Return the metadata that the device lacks, in the order of reading, and the dictionary for packing them."""
    have = {item.role: item.version for item in held if item.repository == IMAGE_REPOSITORY}
    lacking: list[tuple[str, int]] = []
    for role in dict.fromkeys(roles):
        newest = versions.get(role, 0)
        first = have.get(role, 0) + 1 if role == "root" else newest
        lacking += [(role, version) for version in range(first, newest + 1) if version and have.get(role) != version]
    bodies = repository.read_metadata(session, lacking)
    parts = [Part(kind="metadata", name=_name(role, version), data=bodies[role, version]) for role, version in lacking]
    named = [(item.role, item.version) for item in held]
    known = repository.read_metadata(session, named)
    all_known = all(item.repository == IMAGE_REPOSITORY for item in held) and set(named) <= set(known)
    return parts, b"".join(known[item] for item in named) if all_known else b""


def _name(role: str, version: int) -> str:
    return f"{IMAGE_REPOSITORY}/timestamp.json" if role == "timestamp" else f"{IMAGE_REPOSITORY}/{version}.{role}.json"


def _that_fit(wishes: Sequence[Wish], budget_bytes: int) -> tuple[tuple[str, int], ...]:
    chosen = []
    for digest, length in dict.fromkeys(file for wish in wishes for file in wish.files):
        if length <= budget_bytes:
            chosen.append((digest, length))
            budget_bytes -= length
    return tuple(chosen)
