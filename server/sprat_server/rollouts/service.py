"""Read and move rollouts. What moves do to devices is for `flows`; callers own the transaction."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from sprat_server.rollouts.models import Rollout, RolloutDevice, Wave
from sprat_server.rollouts.waves import (
    ALLOWED,
    DeviceState,
    RolloutState,
    WaveState,
    WaveView,
    check_reaches,
    reaches_everyone,
)
from sprat_shared.errors import Conflict, NotFound

LIVE = (RolloutState.RUNNING, RolloutState.PAUSED)
UNFINISHED = (RolloutState.DRAFT, *LIVE)


def create(
    session: Session,
    *,
    model_id: UUID,
    number: int,
    reaches: Sequence[str],
    devices: Sequence[UUID] | None,
    by: str,
    gates: dict[str, Any] | None = None,
) -> Rollout:
    """Add a draft.

    Args:
        session: the caller's transaction.
        model_id: the model.
        number: of the release to bring out.
        reaches: of the waves, as `waves.check_reaches` takes them.
        devices: the cohort; None: every device that is there at the start.
        by: who makes it.
        gates: what is asked of its gate, as `gate_plan.GatePlan` reads it.

    Raises:
        InvalidInput: the waves make no plan.
    """
    check_reaches(reaches)
    rollout = Rollout(model_id=model_id, number=number, whole_fleet=devices is None, created_by=by, gates=gates or {})
    session.add(rollout)
    session.flush()
    session.add_all(Wave(rollout_id=rollout.id, ordinal=i, reach=reach) for i, reach in enumerate(reaches, start=1))
    session.flush()
    session.add_all(RolloutDevice(rollout_id=rollout.id, device_id=device) for device in devices or ())
    session.flush()
    session.refresh(rollout)
    return rollout


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
    "prefetch": "fetched ahead",
    "start": "started",
    "pause": "paused",
    "resume": "resumed",
    "promote": "promoted",
    "abort": "aborted",
}


def live_rollout(session: Session, model_id: UUID) -> Rollout | None:
    """Return the running or paused rollout of a model."""
    return session.scalar(select(Rollout).where(Rollout.model_id == model_id, Rollout.state.in_(LIVE)))


def waves_of(session: Session, rollout: Rollout) -> list[Wave]:
    """Return the waves in order."""
    return list(session.scalars(select(Wave).where(Wave.rollout_id == rollout.id).order_by(Wave.ordinal)))


def devices_of(session: Session, rollout: Rollout, *, ordinal: int | None = None) -> list[RolloutDevice]:
    """Return each device's part, first waves first; only those of one wave where `ordinal` is given."""
    query = select(RolloutDevice).where(RolloutDevice.rollout_id == rollout.id)
    if ordinal is not None:
        query = query.where(RolloutDevice.ordinal == ordinal)
    return list(session.scalars(query.order_by(RolloutDevice.ordinal.nulls_last(), RolloutDevice.device_id)))


def parts(session: Session, rollout: Rollout, devices: Collection[UUID]) -> list[RolloutDevice]:
    """Return the parts of these devices."""
    query = select(RolloutDevice).where(RolloutDevice.rollout_id == rollout.id)
    return list(session.scalars(query.where(RolloutDevice.device_id.in_(devices))))


def running(session: Session) -> list[UUID]:
    """Return the rollouts that run or are paused, in one order."""
    return list(session.scalars(select(Rollout.id).where(Rollout.state.in_(LIVE)).order_by(Rollout.id)))


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
) -> None:
    """Write which device is in which wave; those that have the release already count as committed."""
    known = {device.device_id: device for device in devices_of(session, rollout)}
    for device_id, ordinal in places.items():
        device = known.get(device_id) or RolloutDevice(rollout_id=rollout.id, device_id=device_id)
        device.ordinal = ordinal
        device.state = DeviceState.COMMITTED if has_it.get(device_id) and ordinal is not None else DeviceState.WAITING
        session.add(device)
    for device_id, device in known.items():
        if device_id not in places:
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
    rollout.state, rollout.ended_at = state, datetime.now(UTC)
    rollout.reason = reason if reason is not None else rollout.reason
    session.flush()


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
        .where(RolloutDevice.device_id.in_(list(device_ids)), RolloutDevice.rollout_id.in_(drafts))
        .values(prefetch=None, prefetched_by=None, previous=None)
    )


def live_parts(session: Session, device_id: UUID) -> list[RolloutDevice]:
    """Return the parts of a device in rollouts that run or are paused."""
    return list(
        session.scalars(
            select(RolloutDevice)
            .join(Rollout, Rollout.id == RolloutDevice.rollout_id)
            .where(RolloutDevice.device_id == device_id, Rollout.state.in_(LIVE))
            .order_by(Rollout.id)
        )
    )


def leave_drafts(session: Session, device_id: UUID) -> None:
    """Take a revoked device out of rollouts that have not started."""
    drafts = select(Rollout.id).where(Rollout.state == RolloutState.DRAFT)
    session.execute(
        update(RolloutDevice)
        .where(RolloutDevice.device_id == device_id, RolloutDevice.rollout_id.in_(drafts))
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
