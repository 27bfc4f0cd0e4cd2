"""The steps that a rollout takes by itself, once a person or a report has set it going: in the caller's transaction.

Locks are taken in one order, so that no two transactions wait for each other: groups (`fleet.groups`), model, moves,
rollout, the writers' of signed metadata, devices by id.
The moves lock is one for the server. Whoever may assign releases to many devices holds it alone, enrolment shares it:
two rollouts of different models cannot cross on the same devices, and no device joins unseen while a rollout succeeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final
from uuid import UUID

import structlog
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from sprat_server.access import audit
from sprat_server.fleet import service as fleet
from sprat_server.flows import gating
from sprat_server.observe.actors import SYSTEM
from sprat_server.registry.models import Model
from sprat_server.rollouts import service as rollouts
from sprat_server.rollouts.models import Rollout, RolloutDevice
from sprat_server.rollouts.waves import (
    DeviceState,
    RolloutState,
    Step,
    WaveState,
    in_order,
    next_step,
    reaches_everyone,
)

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


def first_other(rollout: Rollout, *releases: int | None) -> int | None:
    """Return the first of the releases that a device had and could go back to."""
    return next((number for number in releases if number not in {None, rollout.number}), None)


def advance(session: Session, rollout: Rollout, cause: str = "", *, room: int = 0) -> None:
    """Take the steps that are due; `room` devices more are exposed than a gate lets. The caller holds the lock."""
    while True:
        waves = rollouts.waves_of(session, rollout)
        gate, why = gating.view(session, rollout)
        if gate is not None:
            gate, cause = replace(gate, room=max(gate.room, room)), why
        match next_step(RolloutState(rollout.state), rollouts.views(session, rollout), gate):
            case Step.HOLD:
                return
            case Step.HALT:
                before, after = {"state": rollout.state}, {"state": RolloutState.HALTED.value, "reason": cause}
                stop(session, rollout, RolloutState.HALTED, cause)
                audit.record(session, SYSTEM, "rollout.halt", f"rollout:{rollout.id}", before, after)
                return
            case Step.CLOSE_WAVE:
                wave = next(wave for wave in waves if wave.state == WaveState.OPEN)
                rollouts.end_wave(session, wave, WaveState.SUCCEEDED)
            case Step.OPEN_WAVE:
                wave = next(wave for wave in waves if wave.state == WaveState.WAITING)
                rollouts.open_wave(session, wave)
                if gate is None:
                    _expose(session, rollout, rollouts.devices_of(session, rollout, ordinal=wave.ordinal))
            case Step.EXPOSE:
                wave = next(wave for wave in waves if wave.state == WaveState.OPEN)
                most, room = (0 if gate is None else gate.room), 0
                _expose(session, rollout, rollouts.devices_of(session, rollout, ordinal=wave.ordinal), most=most)
            case Step.SUCCEED:
                _succeed(session, rollout, rollouts.reached(session, rollout))
                return


def _expose(session: Session, rollout: Rollout, devices: Sequence[RolloutDevice], *, most: int | None = None) -> None:
    there = {device.device_id: device for device in devices if device.state == DeviceState.WAITING}
    waiting = {device_id: there[device_id] for device_id in in_order(there, rollout.id.bytes)[:most]}
    if not waiting:
        return
    wishes = fleet.running_wishes(session, rollout.model_id, waiting)
    held = fleet.slots(session, device_ids=waiting, model_id=rollout.model_id)
    counters = assign(session, rollout, dict.fromkeys(waiting, rollout.number), "rollout")
    for device_id, part in waiting.items():
        if device_id not in counters:
            part.state = DeviceState.LEFT
            continue
        part.state, part.exposed_by = DeviceState.EXPOSED, counters[device_id]
        slots = held.get((device_id, rollout.model_id))
        part.previous = first_other(rollout, wishes.get(device_id), None if slots is None else slots.active)
    session.flush()
    gating.on_exposed(session, rollout, [device_id for device_id in waiting if device_id in counters])


def stop(session: Session, rollout: Rollout, state: RolloutState, reason: str) -> None:
    """End a rollout before its time; exposed devices go back to the release they had."""
    for wave in rollouts.waves_of(session, rollout):
        if wave.state == WaveState.OPEN:
            rollouts.end_wave(session, wave, WaveState.HALTED)
    returned = take_back(session, rollout, rollouts.exposed_devices(session, rollout))
    rollouts.end(session, rollout, state, reason)
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


def _succeed(session: Session, rollout: Rollout, reached: set[UUID]) -> None:
    if rollout.whole_fleet and reaches_everyone([wave.reach for wave in rollouts.waves_of(session, rollout)]):
        late = dict.fromkeys(set(fleet.live_devices(session)) - reached, rollout.number)
        assign(session, rollout, late, "enrolment")
    waiting = [part for part in rollouts.exposed_devices(session, rollout) if part.exposed_by is None]
    take_back(session, rollout, waiting)  # they fetched it ahead, and no wave reaches them
    rollouts.end(session, rollout, RolloutState.SUCCEEDED)
    _log.info("rollout succeeded", rollout=str(rollout.id))


def model_of(session: Session, rollout: Rollout) -> Model:
    """Return the model of a rollout."""
    return session.scalars(select(Model).where(Model.id == rollout.model_id)).one()
