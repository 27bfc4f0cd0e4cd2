"""The steps that a rollout takes by itself, once a person or a report has set it going: in the caller's transaction.

Locks are taken in one order, so that no two transactions wait for each other: groups (`fleet.groups`), model, moves,
rollout, the writers' of signed metadata, devices by id.
The moves lock is one for the server. Whoever may assign releases to many devices holds it alone, enrolment shares it:
two rollouts of different models cannot cross on the same devices, and no device joins unseen while a rollout succeeds.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import structlog
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from sprat_server.access import audit
from sprat_server.fleet import service as fleet
from sprat_server.flows import gating
from sprat_server.observe import outbox
from sprat_server.observe.actors import SYSTEM
from sprat_server.registry.models import Model
from sprat_server.rollouts import service as rollouts
from sprat_server.rollouts.models import Rollout, RolloutDevice
from sprat_server.rollouts.reaches import in_order, reaches_everyone
from sprat_server.rollouts.waves import (
    DeviceState,
    GateView,
    Limits,
    RolloutState,
    Step,
    WaveState,
    next_step,
    room_for,
)
from sprat_shared.trust.windows import any_open

_MOVES_LOCK: Final = 0x5350_5241_5443  # an arbitrary number that only this lock uses

_log = structlog.get_logger(__name__)


def share_moves(session: Session) -> None:
    """Hold the moves lock with other enrolments until the transaction ends; taken before a device is added."""
    session.execute(select(func.pg_advisory_xact_lock_shared(_MOVES_LOCK)))


def lock_moves(session: Session) -> None:
    """Hold the moves lock alone until the transaction ends."""
    session.execute(select(func.pg_advisory_xact_lock(_MOVES_LOCK)))


def lock(session: Session, rollout_id: UUID) -> Rollout:
    """Return the rollout, it and the moves locked until the transaction ends. Raises NotFound."""
    lock_moves(session)
    return rollouts.lock(session, rollout_id)


def assign(
    session: Session, rollout: Rollout, wishes: Mapping[UUID, int | None], reason: fleet.Reason
) -> dict[UUID, int]:
    """Assign as `fleet.assign`; what other drafts had these devices fetch ahead is given up with it."""
    counters = fleet.assign(session, rollout.model_id, wishes, reason)
    rollouts.forget_prefetches(session, rollout.model_id, counters, but=rollout.id)
    return counters


def had(session: Session, rollout: Rollout, devices: Collection[UUID]) -> dict[UUID, int | None]:
    """Return the release that each device has and could go back to; None where it has none but the rollout's own.

    What it should run, unless it never took that: then what it holds.
    """
    wishes = fleet.running_wishes(session, rollout.model_id, devices)
    held = fleet.slots(session, device_ids=devices, model_id=rollout.model_id)
    not_taken = rollouts.not_taken(session, rollout.model_id, devices)
    offers = fleet.assigned(session, {device: counter for device, (counter, _) in not_taken.items()})
    back: dict[UUID, int | None] = {}
    for device in devices:
        slots, wish = held.get((device, rollout.model_id)), wishes.get(device)
        active = None if slots is None else slots.active
        _, before = not_taken.get(device, (None, None))
        choices = (active, before) if wish is not None and wish == offers.get(device) else (wish, active)
        back[device] = next((number for number in choices if number not in {None, rollout.number}), None)
    return back


def limits(session: Session, rollout: Rollout, now: datetime | None = None) -> Limits:
    """Return what of its plan holds a rollout back now: its windows, and its devices in flight."""
    plan = rollouts.plan_of(rollout)
    free = None if plan.in_flight is None else max(plan.in_flight - rollouts.in_flight(session, rollout), 0)
    return Limits(open=any_open(plan.windows, now or datetime.now(UTC)), free=free)


def advance(session: Session, rollout: Rollout, cause: str = "", *, room: int = 0, now: datetime | None = None) -> None:
    """Take the steps that are due. The caller holds the lock.

    Args:
        session: the caller's transaction.
        rollout: it.
        cause: why it halts, if it does, where the first failure decides.
        room: so many devices more are exposed than a gate lets.
        now: the time by which windows are open; None: the present.
    """
    while True:
        waves = rollouts.waves_of(session, rollout)
        gate, why = gating.view(session, rollout)
        if gate is not None:
            gate, cause = replace(gate, room=max(gate.room, room)), why
        bounds = limits(session, rollout, now)
        match next_step(RolloutState(rollout.state), rollouts.views(session, rollout), gate, bounds):
            case Step.HOLD:
                _note_hold(session, rollout, gate, why, now or datetime.now(UTC))
                return
            case Step.HALT:
                _halt(session, rollout, cause)
                return
            case Step.CLOSE_WAVE:
                wave = next(wave for wave in waves if wave.state == WaveState.OPEN)
                rollouts.end_wave(session, wave, WaveState.SUCCEEDED)
            case Step.OPEN_WAVE:
                rollouts.open_wave(session, next(wave for wave in waves if wave.state == WaveState.WAITING))
            case Step.EXPOSE:
                wave = next(wave for wave in waves if wave.state == WaveState.OPEN)
                most, room = room_for(gate, bounds), 0
                _expose(session, rollout, rollouts.devices_of(session, rollout, ordinal=wave.ordinal), most=most)
            case Step.SUCCEED:
                _succeed(session, rollout, rollouts.reached(session, rollout))
                return


def end_hold(session: Session, rollout: Rollout, now: datetime) -> bool:
    """Halt a rollout that its gate has held for too long with nobody left to hear; return whether. Holds the lock.

    Devices would else run a release for ever of which neither harm nor its absence is shown.
    """
    ends = gating.hold_ends(rollout)
    if ends is None or now < ends:
        return False
    _, why = gating.view(session, rollout)
    held_s = (now - (rollout.held_since or now)).total_seconds()
    _halt(session, rollout, f"nothing is proven either way, and nobody was awaited for {held_s:,.0f} s: {why}")
    return True


def tell(session: Session, rollout: Rollout, kind: str, **more: Any) -> None:
    """Write an event about a rollout, with what there is to know of it."""
    data = {"model": model_of(session, rollout).name, "release": rollout.number, "reason": rollout.reason} | more
    outbox.tell(session, f"rollout.{kind}", f"rollout:{rollout.id}", data)


def stop(
    session: Session, rollout: Rollout, state: RolloutState, reason: str, *, keep: Collection[DeviceState] = ()
) -> None:
    """End a rollout before its time; exposed devices go back to the release they had, but for those in a state to keep.

    Nobody is asked again who failed.
    """
    for wave in rollouts.waves_of(session, rollout):
        if wave.state == WaveState.OPEN:
            rollouts.end_wave(session, wave, WaveState.HALTED)
    parts = rollouts.exposed_devices(session, rollout)
    for part in parts:
        part.retry_at = None
    returned = take_back(session, rollout, [part for part in parts if part.state not in keep])
    rollouts.end(session, rollout, state, reason)
    tell(session, rollout, state.value, returned=returned)
    _log.warning("rollout stopped", rollout=str(rollout.id), state=state.value, reason=reason, returned=returned)


def take_back(session: Session, rollout: Rollout, parts: Sequence[RolloutDevice]) -> int:
    """Assign to devices what they had before; return how many were."""
    exposed = {part.device_id: part for part in parts}
    goes_back = {device_id: part.previous for device_id, part in exposed.items()}
    counters = assign(session, rollout, goes_back, "return")
    for device_id, counter in counters.items():
        exposed[device_id].returned_by = counter
    session.flush()
    return len(counters)


def offer(session: Session, rollout: Rollout, parts: Sequence[RolloutDevice]) -> set[UUID]:
    """Assign the release to devices, which are awaited from now on; return those that are still there.

    A device that went down a ladder (`sharing_steps`) is offered the level again where it was.
    """
    before = {part.device_id: part.exposed_by for part in parts if part.exposed_by is not None}
    offered = fleet.assigned(session, before)
    return offer_each(session, rollout, {part: offered.get(part.device_id) or rollout.number for part in parts})


def offer_each(
    session: Session, rollout: Rollout, wishes: Mapping[RolloutDevice, int], reason: fleet.Reason = "rollout"
) -> set[UUID]:
    """Assign a release of its own to each device, as `offer`."""
    offered = {part.device_id: part for part in wishes}
    counters = assign(session, rollout, {part.device_id: number for part, number in wishes.items()}, reason)
    for device_id, counter in counters.items():
        part = offered[device_id]
        part.state, part.exposed_by, part.returned_by, part.retry_at = DeviceState.EXPOSED, counter, None, None
    session.flush()
    return set(counters)


def model_of(session: Session, rollout: Rollout) -> Model:
    """Return the model of a rollout."""
    return session.scalars(select(Model).where(Model.id == rollout.model_id)).one()


def _halt(session: Session, rollout: Rollout, cause: str) -> None:
    before, after = {"state": rollout.state}, {"state": RolloutState.HALTED.value, "reason": cause}
    stop(session, rollout, RolloutState.HALTED, cause)
    audit.record(session, SYSTEM, "rollout.halt", f"rollout:{rollout.id}", before, after)


def _note_hold(session: Session, rollout: Rollout, gate: GateView | None, why: str, now: datetime) -> None:
    runs = rollout.state == RolloutState.RUNNING
    if not runs or gate is None or gate.room or rollouts.in_flight(session, rollout):
        rollout.held_since = None
    elif rollout.held_since is None:
        rollout.held_since = now
        session.flush()
        tell(session, rollout, "held", reason=why, halts_at=str(gating.hold_ends(rollout)))


def _expose(session: Session, rollout: Rollout, devices: Sequence[RolloutDevice], *, most: int | None = None) -> None:
    there = {device.device_id: device for device in devices if device.state == DeviceState.WAITING}
    waiting = {device_id: there[device_id] for device_id in in_order(there, rollout.id.bytes)[:most]}
    if not waiting:
        return
    before = had(session, rollout, waiting)
    for device_id, part in waiting.items():
        part.previous = before[device_id]
    exposed = offer(session, rollout, list(waiting.values()))
    for device_id in waiting.keys() - exposed:
        waiting[device_id].state = DeviceState.LEFT
    session.flush()
    gating.on_exposed(session, rollout, [device_id for device_id in waiting if device_id in exposed])


def _succeed(session: Session, rollout: Rollout, reached: set[UUID]) -> None:
    if rollout.whole_fleet and reaches_everyone([wave.reach for wave in rollouts.waves_of(session, rollout)]):
        late = dict.fromkeys(set(fleet.live_devices(session)) - reached, rollout.number)
        assign(session, rollout, late, "enrolment")
    waiting = [part for part in rollouts.exposed_devices(session, rollout) if part.exposed_by is None]
    take_back(session, rollout, waiting)  # they fetched it ahead, and no wave reaches them
    rollouts.end(session, rollout, RolloutState.SUCCEEDED)
    tell(session, rollout, "succeeded")
    _log.info("rollout succeeded", rollout=str(rollout.id))
