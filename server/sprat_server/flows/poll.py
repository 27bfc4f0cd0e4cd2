"""What one poll is answered: the metadata of both repositories that a device lacks, and payloads that fit."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from sprat_server.db.blobs import Blobs
from sprat_server.fleet import policies
from sprat_server.fleet import service as fleet
from sprat_server.fleet.authentication import authenticate_device
from sprat_server.fleet.models import Assignment, Device, DeviceSlots
from sprat_server.flows import live
from sprat_server.observe.actors import Actor
from sprat_server.publish import director, repository
from sprat_server.publish.director import Current, PlanWish, Wish, Wishes
from sprat_server.registry import paths
from sprat_server.registry import service as registry
from sprat_server.registry.models import Graph, Model, Release, UpdateFile
from sprat_server.settings import Settings
from sprat_server.sites import records as sites
from sprat_server.sites.states import MemberStatus
from sprat_shared.errors import NotFound
from sprat_shared.ids import parse_digest
from sprat_shared.protocol.poll import TOP_ROLES, HeldMetadata, Part, PollAnswer
from sprat_shared.trust.assignments import DIRECTOR_REPOSITORY, Assigned
from sprat_shared.trust.site_targets import Phase, SignedPlan
from sprat_shared.trust.targets import IMAGE_REPOSITORY, role_of_model, update_path

_LOOKS: Final = (
    3  # at metadata that are published while they are read; what devices then get is put right by the next poll
)


@dataclass(frozen=True, slots=True)
class Poller:
    """The device that polls: its id, what people call it, and when the token that it shows ends."""

    device: UUID
    name: str
    token_expires_at: datetime

    def expired(self, now: datetime) -> bool:
        """Return whether its token has ended."""
        return self.token_expires_at <= now

    @property
    def actor(self) -> Actor:
        """Return who acts, for the log."""
        return Actor(kind="device", id=str(self.device), name=self.name)


@dataclass(frozen=True, slots=True)
class Draft:
    """An answer whose payloads are still in the blob store, so that they are read after the transaction.

    Attributes:
        answer: the metadata.
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


@dataclass(frozen=True, slots=True)
class Reading:
    """What the database says to one poll.

    Attributes:
        draft: the answer; None where the device holds the newest of all that it needs.
        due_at: until then nothing new comes of itself: it is when the director is to sign again.
    """

    draft: Draft | None
    due_at: datetime


def identify(session: Session, shown: str) -> Poller:
    """Return who polls with this token; Unauthenticated as `fleet.authentication.authenticate_device`."""
    device = authenticate_device(session, shown)
    assert device.token_expires_at is not None  # noqa: S101 - it has the token (CHECK tokens_expire)
    return Poller(device.id, device.name, device.token_expires_at)


def read(
    session: Session,
    settings: Settings,
    device_id: UUID,
    *,
    held: Sequence[HeldMetadata],
    inline_bytes: int,
    nonce: str | None = None,
) -> Reading:
    """Return what the device lacks; the director signs first what it must.

    Assignments are read before the image repository's metadata: what an assignment names was signed before it, so the
    body never assigns a release that its metadata do not vouch for. Where those changed meanwhile both are read again:
    no path leads over an update that was pruned just then. Payloads come with the assignment that needs them, not with
    later metadata: a trial may last for days.

    Args:
        session: the caller's transaction.
        settings: of the server.
        device_id: who asks.
        held: the metadata that the device names, in the order of the dictionary.
        inline_bytes: the payloads may take so much together.
        nonce: to be signed with the time; None where none is asked for.

    Raises:
        KeysUnusable: something must be signed and the director's online key is not here.
    """
    own = {item.role: item.version for item in held if item.repository == DIRECTOR_REPOSITORY}
    published = repository.newest_versions(session)
    for _ in range(_LOOKS):
        before = published
        current = directed(session, settings, device_id, held=own, nonce=nonce)
        published = repository.newest_versions(session)
        if published == before:
            break
    models = [role_of_model(wish.assigned.model) for wish in current.wishes.releases]
    lacking = [
        *_lacking(IMAGE_REPOSITORY, {role: published[role] for role in (*TOP_ROLES, *models)}, held),
        *_lacking(DIRECTOR_REPOSITORY, {role: current.versions[role] for role in TOP_ROLES}, held),
    ]
    if not lacking:
        return Reading(None, current.due_at)
    files = _read_metadata(session, device_id, {*lacking, *held})
    known = b"".join(files[item] for item in held) if set(held) <= files.keys() else b""
    parts = tuple(Part(kind="metadata", name=file_name(item), data=files[item]) for item in lacking)
    answer = PollAnswer(poll_interval_s=settings.poll_interval_s, parts=parts)
    assigned_now = HeldMetadata(DIRECTOR_REPOSITORY, "targets", current.versions["targets"]) in lacking
    payloads = _that_fit(current.wishes.all, inline_bytes) if assigned_now else ()
    return Reading(Draft(answer, known, payloads), current.due_at)


def directed(
    session: Session,
    settings: Settings,
    device_id: UUID,
    *,
    held: dict[str, int] | None = None,
    nonce: str | None = None,
) -> Current:
    """Return the director's newest metadata for a device, as `director.current`."""
    return director.current(session, settings, device_id, lambda: wishes_of(session, device_id), held=held, nonce=nonce)


def wishes_of(session: Session, device_id: UUID) -> Wishes:
    """Return the release that a device should run of each model, with the cheapest way there, and its site's plans."""
    device = fleet.get_device(session, device_id)
    slots = fleet.slots(session, device_ids=[device_id])
    wishes = []
    for assignment in fleet.current_assignments(session, device_ids=[device_id]):
        model = session.scalars(select(Model).where(Model.id == assignment.model_id)).one()
        wishes.append(_wish(session, device, model, assignment, slots.get((device_id, model.id))))
    releases = sorted((wish for wish in wishes if wish is not None), key=lambda wish: wish.assigned.model)
    return Wishes(releases, _plans(session, device_id))


def _plans(session: Session, device_id: UUID) -> list[PlanWish]:
    found = []
    for plan, member in sites.memberships(session, [device_id]):
        if member.phase is None or plan.digest is None or plan.bytes is None:
            continue
        site = sites.site_of(session, plan)
        signed = SignedPlan(device=device_id, site=site.name, number=plan.number, phase=Phase(member.phase))
        payloads = ((plan.digest, plan.bytes),) if member.state == MemberStatus.ASKED else ()
        found.append(PlanWish(signed, plan.bytes, parse_digest(plan.digest).hex(), payloads))
    return sorted(found, key=lambda one: one.path)


def _wish(
    session: Session, device: Device, model: Model, assignment: Assignment, slots: DeviceSlots | None
) -> Wish | None:
    if assignment.number is None:
        return None
    release = registry.get_release(session, model, assignment.number)
    full = next(file for file in registry.updates_of(session, release) if file.base_number is None)
    held = [] if slots is None else [slot for slot in (slots.active, slots.previous) if slot is not None]
    there = release.number in held
    steps = [] if there else paths.cheapest_from(live.signed_updates(session, model), held, release.number)
    assigned = Assigned(
        device=device.id,
        model=model.name,
        release=release.number,
        assignment=assignment.counter,
        path=tuple(update_path(model.name, step.number, step.base_number) for step in steps),
        profile=device.profile,
        prefetch=assignment.reason == "prefetch",
        policy=policies.policy_of(session, model.id, device.profile),
    )
    return Wish(
        assigned,
        full.bytes,
        parse_digest(full.blob).hex(),
        payloads=_files(session, model, release, held, steps),
        steps=live.signed_paths(session, model) if there else (),
    )


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


def _lacking(repository_name: str, newest: dict[str, int], held: Sequence[HeldMetadata]) -> list[HeldMetadata]:
    """Return the files of a repository that the device lacks, in the order of reading: every root, the newest else."""
    have = {item.role: item.version for item in held if item.repository == repository_name}
    lacking = []
    for role, version in newest.items():
        if have.get(role) != version:
            first = have.get(role, 0) + 1 if role == "root" else version
            lacking += [HeldMetadata(repository_name, role, number) for number in range(first, version + 1)]
    return lacking


def _read_metadata(session: Session, device_id: UUID, wanted: Iterable[HeldMetadata]) -> dict[HeldMetadata, bytes]:
    """Return the signed bytes of these files, those of the director as this device may have them."""
    image, own = (
        [(item.role, item.version) for item in wanted if item.repository == name]
        for name in (IMAGE_REPOSITORY, DIRECTOR_REPOSITORY)
    )
    found = {
        IMAGE_REPOSITORY: repository.read_metadata(session, image),
        DIRECTOR_REPOSITORY: director.read_metadata(session, device_id, own),
    }
    return {HeldMetadata(name, *pair): body for name, bodies in found.items() for pair, body in bodies.items()}


def file_name(file: HeldMetadata) -> str:
    """Return the name of a metadata file, such as `image/4.snapshot.json`."""
    version = "" if file.role == "timestamp" else f"{file.version}."
    return f"{file.repository}/{version}{file.role}.json"


def _that_fit(wishes: Sequence[Wish | PlanWish], budget_bytes: int) -> tuple[tuple[str, int], ...]:
    chosen = []
    for digest, length in dict.fromkeys(file for wish in wishes for file in wish.payloads):
        if length <= budget_bytes:
            chosen.append((digest, length))
            budget_bytes -= length
    return tuple(chosen)
