"""Read and move rollouts. What moves do to devices is for `flows`; callers own the transaction."""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import delete, func, or_, select, update
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import Session

from sprat_server.db.sets import among
from sprat_server.rollouts.models import Rollout, RolloutDevice, Wave
from sprat_server.rollouts.plan import RolloutPlan
from sprat_server.rollouts.reaches import check_reaches, reaches_everyone
from sprat_server.rollouts.waves import ALLOWED, DeviceState, Prefetch, RolloutState, WaveState, WaveView
from sprat_shared.errors import Conflict, NotFound

LIVE = (RolloutState.RUNNING, RolloutState.PAUSED)
UNFINISHED = (RolloutState.DRAFT, *LIVE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A rollout to be added.

    Attributes:
        model_id: the model.
        number: of the release to bring out.
        reaches: of the waves, as `reaches.check_reaches` takes them.
        devices: the cohort; None: every device that is there at the start.
        by: who makes it, and
        by_id: the id of that actor.
        gates: what is asked of its gate, as `gate_plan.GatePlan` reads it.
        plan: what else is asked.
        name: what people call it.
        digest: of all that is asked.
        start_at: when it starts by itself.
    """

    model_id: UUID
    number: int
    reaches: Sequence[str]
    devices: Sequence[UUID] | None
    by: str
    by_id: str | None = None
    gates: dict[str, Any] = field(default_factory=dict)
    plan: RolloutPlan = field(default_factory=RolloutPlan)
    name: str | None = None
    digest: str | None = None
    start_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Tally:
    """How many devices of a rollout are in which state.

    Attributes:
        states: of all of them.
        waves: of those that are in each wave.
        prefetches: how far those are that were asked to fetch ahead and have not left.
        exposed: devices that were ever offered the release.
        unplaced: devices that are in no wave, and not held back.
        retrying: failed devices that are asked again,
        retry_at: the first of them at.
    """

    states: Counter[DeviceState]
    waves: Mapping[int, Counter[DeviceState]]
    prefetches: Counter[Prefetch]
    exposed: int
    unplaced: int
    retrying: int
    retry_at: datetime | None


def create(session: Session, draft: Draft) -> Rollout:
    """Add a draft.

    Raises:
        InvalidInput: the waves make no plan.
        Conflict: another rollout has the name.
    """
    check_reaches(draft.reaches)
    if draft.name is not None and (other := named(session, draft.name)) is not None:
        raise Conflict(
            f"rollout {other.id} is named {draft.name} and is {other.state}; choose another name, or abort that one",
            code="rollout.name-taken",
        )
    rollout = Rollout(
        model_id=draft.model_id,
        number=draft.number,
        whole_fleet=draft.devices is None and not draft.plan.says_devices,
        created_by=draft.by,
        creator_id=draft.by_id,
        gates=draft.gates,
        plan=draft.plan.as_json(),
        name=draft.name,
        digest=draft.digest,
        start_at=draft.start_at,
    )
    session.add(rollout)
    session.flush()
    set_waves(session, rollout, draft.reaches)
    session.add_all(RolloutDevice(rollout_id=rollout.id, device_id=device) for device in draft.devices or ())
    session.flush()
    session.refresh(rollout)
    return rollout


def set_waves(session: Session, rollout: Rollout, reaches: Sequence[str]) -> None:
    """Write the waves of a draft in the place of those it had."""
    session.execute(delete(Wave).where(Wave.rollout_id == rollout.id))
    session.add_all(Wave(rollout_id=rollout.id, ordinal=i, reach=reach) for i, reach in enumerate(reaches, start=1))
    session.flush()


def named(session: Session, name: str) -> Rollout | None:
    """Return the rollout of this name that was not aborted."""
    return session.scalar(select(Rollout).where(Rollout.name == name, Rollout.state != RolloutState.ABORTED))


def of_digest(session: Session, digest: str) -> Rollout | None:
    """Return the newest rollout for which the same was asked and that was not aborted."""
    query = select(Rollout).where(Rollout.digest == digest, Rollout.state != RolloutState.ABORTED)
    return session.scalar(query.order_by(Rollout.id.desc()).limit(1))


def plan_of(rollout: Rollout) -> RolloutPlan:
    """Return how a rollout is to be run."""
    return RolloutPlan.of(rollout.plan)


def get(session: Session, rollout_id: UUID) -> Rollout:
    """Return the rollout.

    Raises:
        NotFound: there is none of this id.
    """
    rollout = session.get(Rollout, rollout_id)
    if rollout is None:
        raise NotFound(f"there is no rollout {rollout_id}; `sprat rollout list` shows them", code="rollout.unknown")
    return rollout


def lock(session: Session, rollout_id: UUID) -> Rollout:
    """Return the rollout, its row locked until the transaction ends: its moves come one after the other.

    Raises:
        NotFound: there is none of this id.
    """
    get(session, rollout_id)
    locked = select(Rollout).where(Rollout.id == rollout_id).with_for_update()
    return session.scalars(locked.execution_options(populate_existing=True)).one()


def require(rollout: Rollout, action: str) -> None:
    """Return if `action` may be asked for in the rollout's state.

    Raises:
        Conflict: it may not.
    """
    if RolloutState(rollout.state) not in ALLOWED[action]:
        raise Conflict(
            f"a rollout that is {rollout.state} cannot be {_PARTICIPLE[action]}; {rollout.id} stays as it is",
            code="rollout.wrong-state",
        )


_PARTICIPLE = {
    "approve": "approved",
    "prefetch": "fetched ahead",
    "start": "started",
    "pause": "paused",
    "resume": "resumed",
    "promote": "promoted",
    "abort": "aborted",
    "undo": "undone",
}


def live_rollout(session: Session, model_id: UUID) -> Rollout | None:
    """Return the running or paused rollout of a model."""
    return session.scalar(select(Rollout).where(Rollout.model_id == model_id, Rollout.state.in_(LIVE)))


def waves_of(session: Session, rollout: Rollout) -> list[Wave]:
    """Return the waves in order."""
    return list(session.scalars(select(Wave).where(Wave.rollout_id == rollout.id).order_by(Wave.ordinal)))


def tally(session: Session, rollout: Rollout) -> Tally:
    """Count a rollout's devices, in one statement."""
    groups = session.execute(
        select(
            RolloutDevice.ordinal,
            RolloutDevice.state,
            RolloutDevice.prefetch,
            func.count(),
            func.count(RolloutDevice.exposed_by),
            func.count(RolloutDevice.retry_at),
            func.min(RolloutDevice.retry_at),
        )
        .where(RolloutDevice.rollout_id == rollout.id)
        .group_by(RolloutDevice.ordinal, RolloutDevice.state, RolloutDevice.prefetch)
    ).all()
    states: Counter[DeviceState] = Counter()
    waves: dict[int, Counter[DeviceState]] = defaultdict(Counter)
    prefetches: Counter[Prefetch] = Counter()
    exposed = unplaced = retrying = 0
    for ordinal, state, prefetch, count, were_exposed, are_retried, _ in groups:
        states[DeviceState(state)] += count
        if ordinal is not None:
            waves[ordinal][DeviceState(state)] += count
        elif state != DeviceState.CONTROL:
            unplaced += count
        if prefetch is not None and state != DeviceState.LEFT:
            prefetches[Prefetch(prefetch)] += count
        exposed += were_exposed
        retrying += are_retried
    retry_at = min((first for *_, first in groups if first is not None), default=None)
    return Tally(states, waves, prefetches, exposed, unplaced, retrying, retry_at)


def devices_of(session: Session, rollout: Rollout, *, ordinal: int | None = None) -> list[RolloutDevice]:
    """Return each device's part, first waves first; only those of one wave where `ordinal` is given."""
    query = select(RolloutDevice).where(RolloutDevice.rollout_id == rollout.id)
    if ordinal is not None:
        query = query.where(RolloutDevice.ordinal == ordinal)
    return list(session.scalars(query.order_by(RolloutDevice.ordinal.nulls_last(), RolloutDevice.device_id)))


def parts(session: Session, rollout: Rollout, devices: Collection[UUID]) -> list[RolloutDevice]:
    """Return the parts of these devices."""
    query = select(RolloutDevice).where(RolloutDevice.rollout_id == rollout.id)
    return list(session.scalars(query.where(among(RolloutDevice.device_id, devices))))


def running(session: Session) -> list[UUID]:
    """Return the rollouts that run or are paused, in one order."""
    return list(session.scalars(select(Rollout.id).where(Rollout.state.in_(LIVE)).order_by(Rollout.id)))


def held(session: Session) -> list[UUID]:
    """Return the rollouts that run and whose gates hold them with nobody left to hear, in one order."""
    return list(session.scalars(select(Rollout.id).where(Rollout.held_since.is_not(None)).order_by(Rollout.id)))


def exposed_devices(session: Session, rollout: Rollout) -> list[RolloutDevice]:
    """Return the parts of devices that were offered the release, or fetched it ahead, and were not assigned back."""
    return list(
        session.scalars(
            select(RolloutDevice).where(
                RolloutDevice.rollout_id == rollout.id,
                or_(RolloutDevice.exposed_by.is_not(None), RolloutDevice.prefetched_by.is_not(None)),
                RolloutDevice.returned_by.is_(None),
            )
        )
    )


def reached(session: Session, rollout: Rollout) -> set[UUID]:
    """Return the devices that have a part in a rollout."""
    return set(session.scalars(select(RolloutDevice.device_id).where(RolloutDevice.rollout_id == rollout.id)))


def views(session: Session, rollout: Rollout) -> list[WaveView]:
    """Return the waves as the decision sees them. One aggregate over the devices, however many there are."""
    states: dict[int, set[DeviceState]] = defaultdict(set)
    there = select(RolloutDevice.ordinal, RolloutDevice.state).where(RolloutDevice.rollout_id == rollout.id).distinct()
    for ordinal, state in session.execute(there):
        if ordinal is not None:
            states[ordinal].add(DeviceState(state))
    return [WaveView(WaveState(wave.state), frozenset(states[wave.ordinal])) for wave in waves_of(session, rollout)]


def place(
    session: Session,
    rollout: Rollout,
    places: Mapping[UUID, int | None],
    has_it: Mapping[UUID, bool],
    controls: Collection[UUID] = (),
) -> None:
    """Write which device is in which wave, or held back; those that have the release already count as committed."""
    known = {device.device_id: device for device in devices_of(session, rollout)}
    for device_id, ordinal in places.items():
        device = known.get(device_id) or RolloutDevice(rollout_id=rollout.id, device_id=device_id)
        device.ordinal = ordinal
        device.state = DeviceState.COMMITTED if has_it.get(device_id) and ordinal is not None else DeviceState.WAITING
        session.add(device)
    for device_id in controls:
        device = known.get(device_id) or RolloutDevice(rollout_id=rollout.id, device_id=device_id)
        device.state = DeviceState.CONTROL
        session.add(device)
    for device_id, device in known.items():
        if device_id not in places and device_id not in controls:
            device.state = DeviceState.LEFT
    session.flush()


def open_wave(session: Session, wave: Wave) -> None:
    """Mark a wave as open."""
    wave.state, wave.opened_at = WaveState.OPEN, datetime.now(UTC)
    session.flush()


def end_wave(session: Session, wave: Wave, state: WaveState) -> None:
    """Mark an open wave as succeeded or halted."""
    wave.state, wave.ended_at = state, datetime.now(UTC)
    session.flush()


def end(session: Session, rollout: Rollout, state: RolloutState, reason: str | None = None) -> None:
    """End a rollout: succeeded, halted or aborted."""
    rollout.state, rollout.ended_at, rollout.held_since = state, datetime.now(UTC), None
    rollout.reason = reason if reason is not None else rollout.reason
    session.flush()


def in_flight(session: Session, rollout: Rollout) -> int:
    """Return how many devices are exposed and have not ended."""
    exposed = select(func.count()).where(
        RolloutDevice.rollout_id == rollout.id, RolloutDevice.state == DeviceState.EXPOSED
    )
    return session.scalar(exposed) or 0


def due_for_retry(session: Session, now: datetime) -> dict[UUID, list[UUID]]:
    """Return by rollout the devices of live ones whose wait before a retry is over."""
    rows = session.execute(
        select(RolloutDevice.rollout_id, RolloutDevice.device_id)
        .join(Rollout, Rollout.id == RolloutDevice.rollout_id)
        .where(RolloutDevice.retry_at <= now, Rollout.state.in_(LIVE))
        .order_by(RolloutDevice.rollout_id, RolloutDevice.device_id)
    )
    due: dict[UUID, list[UUID]] = defaultdict(list)
    for rollout_id, device_id in rows:
        due[rollout_id].append(device_id)
    return dict(due)


def due_to_start(session: Session, now: datetime) -> list[UUID]:
    """Return the drafts whose time to start has come, those that wait longest first."""
    due = select(Rollout.id).where(Rollout.state == RolloutState.DRAFT, Rollout.start_at <= now)
    return list(session.scalars(due.order_by(Rollout.start_at, Rollout.id)))


def windowed(session: Session) -> list[UUID]:
    """Return the running rollouts that have maintenance windows."""
    windows = func.jsonb_array_length(func.coalesce(Rollout.plan["windows"], func.jsonb_build_array()))
    return list(session.scalars(select(Rollout.id).where(Rollout.state == RolloutState.RUNNING, windows > 0)))


def not_taken(session: Session, model_id: UUID, device_ids: Collection[UUID]) -> dict[UUID, tuple[int, int | None]]:
    """Return of devices that never took what the model's newest rollout to them offered: its counter, what they had.

    They failed it, or had not answered when a later rollout superseded it.
    """
    part = RolloutDevice
    newest = (
        select(part.device_id, part.state, part.previous, part.exposed_by, Rollout.state)
        .ext(distinct_on(part.device_id))
        .join(Rollout, Rollout.id == part.rollout_id)
        .where(Rollout.model_id == model_id, among(part.device_id, device_ids), part.exposed_by.is_not(None))
        .order_by(part.device_id, part.exposed_by.desc())
    )
    lost = {DeviceState.FAILED, DeviceState.EXCUSED}
    return {
        device: (counter, previous)
        for device, state, previous, counter, ended in session.execute(newest)
        if counter is not None
        and (state in lost or (state == DeviceState.EXPOSED and ended == RolloutState.SUPERSEDED))
    }


def exposure(session: Session, device_id: UUID, counter: int) -> RolloutDevice | None:
    """Return the part of a device in the rollout that made this assignment; None where none did."""
    return session.scalar(
        select(RolloutDevice).where(RolloutDevice.device_id == device_id, RolloutDevice.exposed_by == counter)
    )


def prefetch(session: Session, device_id: UUID, counter: int) -> RolloutDevice | None:
    """Return the part of a device in the rollout that asked it, by this assignment, to fetch ahead."""
    return session.scalar(
        select(RolloutDevice).where(RolloutDevice.device_id == device_id, RolloutDevice.prefetched_by == counter)
    )


def forget_prefetches(session: Session, model_id: UUID, device_ids: Collection[UUID], *, but: UUID | None) -> None:
    """Believe no more that these devices hold what other rollouts of the model had them fetch ahead.

    A newer assignment of the model gives that up, but for one by the rollout `but`.
    """
    drafts = select(Rollout.id).where(Rollout.model_id == model_id, Rollout.state == RolloutState.DRAFT)
    if but is not None:
        drafts = drafts.where(Rollout.id != but)
    session.execute(
        update(RolloutDevice)
        .where(among(RolloutDevice.device_id, device_ids), RolloutDevice.rollout_id.in_(drafts))
        .values(prefetch=None, prefetched_by=None, previous=None)
    )


def live_parts(session: Session, devices: Collection[UUID]) -> list[RolloutDevice]:
    """Return the parts of devices in rollouts that run or are paused."""
    return list(
        session.scalars(
            select(RolloutDevice)
            .join(Rollout, Rollout.id == RolloutDevice.rollout_id)
            .where(among(RolloutDevice.device_id, devices), Rollout.state.in_(LIVE))
            .order_by(Rollout.id, RolloutDevice.device_id)
        )
    )


def leave_drafts(session: Session, devices: Collection[UUID]) -> None:
    """Take revoked devices out of rollouts that have not started."""
    drafts = select(Rollout.id).where(Rollout.state == RolloutState.DRAFT)
    session.execute(
        update(RolloutDevice)
        .where(among(RolloutDevice.device_id, devices), RolloutDevice.rollout_id.in_(drafts))
        .values(state=DeviceState.LEFT)
    )


def unfinished_releases(session: Session, model_id: UUID) -> set[int]:
    """Return the releases of a model that rollouts which are not over lead to, drafts among them."""
    return set(
        session.scalars(select(Rollout.number).where(Rollout.model_id == model_id, Rollout.state.in_(UNFINISHED)))
    )


def releases_to_return_to(session: Session, model_id: UUID) -> set[int]:
    """Return the releases of a model that devices go back to if a rollout that is not over halts."""
    rows = session.scalars(
        select(RolloutDevice.previous)
        .join(Rollout, Rollout.id == RolloutDevice.rollout_id)
        .where(Rollout.model_id == model_id, Rollout.state.in_(UNFINISHED))
        .distinct()
    )
    return {number for number in rows if number is not None}


def standing_releases(session: Session) -> dict[UUID, int]:
    """Return for each model the release that a new device gets: of the newest whole-fleet rollout that succeeded."""
    ended = session.scalars(
        select(Rollout)
        .where(Rollout.state == RolloutState.SUCCEEDED, Rollout.whole_fleet)
        .order_by(Rollout.ended_at.desc(), Rollout.id.desc())
    )
    standing: dict[UUID, int] = {}
    for rollout in ended:
        if rollout.model_id not in standing and reaches_everyone([w.reach for w in waves_of(session, rollout)]):
            standing[rollout.model_id] = rollout.number
    return standing
