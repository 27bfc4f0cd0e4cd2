"""Move rollouts: what a person or a device's report sets off, over rollouts, fleet and registry, in one transaction.

Locks are taken in one order, so that no two transactions wait for each other: model, moves, rollout, the writers' of
signed metadata, devices by id.
The moves lock is one for the server. Whoever may assign releases to many devices holds it alone, enrolment shares it:
two rollouts of different models cannot cross on the same devices, and no device joins unseen while a rollout succeeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import structlog
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from sprat_server.access import audit
from sprat_server.fleet import reports
from sprat_server.fleet import service as fleet
from sprat_server.fleet.models import Device, DeviceReport
from sprat_server.fleet.service import Holders
from sprat_server.flows import direct, gating, live
from sprat_server.observe.actors import SYSTEM
from sprat_server.publish.image import open_repository
from sprat_server.registry import service as registry
from sprat_server.registry.models import Model
from sprat_server.rollouts import service as rollouts
from sprat_server.rollouts.gate_plan import GatePlan, Rule
from sprat_server.rollouts.models import Rollout, RolloutDevice
from sprat_server.rollouts.schemas import RolloutView
from sprat_server.rollouts.waves import (
    DeviceState,
    Prefetch,
    RolloutState,
    Step,
    WaveState,
    in_order,
    next_step,
    place_devices,
    reaches_everyone,
)
from sprat_server.settings import Settings
from sprat_shared.errors import Conflict, InvalidInput, NotFound
from sprat_shared.protocol.holdout_report import HoldoutReport
from sprat_shared.protocol.report import Outcome, Report, TrustReport, read_report

_MOVES_LOCK: Final = 0x5350_5241_5443  # an arbitrary number that only this lock uses

_log = structlog.get_logger(__name__)


def create(
    session: Session,
    *,
    model: str,
    release: int,
    reaches: Sequence[str],
    devices: Sequence[UUID] | None,
    by: str,
    gates: GatePlan | None = None,
) -> Rollout:
    """Add a rollout as a draft.

    Raises:
        NotFound: the model, the release or a device does not exist.
        InvalidInput: the waves make no plan, or the cohort is empty or names a device twice.
        Conflict: a device was revoked, or the release waits for signatures.
    """
    lineage = registry.get_model(session, model)
    registry.get_release(session, lineage, release)
    registry.require_published(session, lineage, release)
    if devices is not None:
        if not devices or len(set(devices)) != len(devices):
            raise InvalidInput("name each device of the cohort once, or leave the list out for the whole fleet")
        for device_id in devices:
            if fleet.get_device(session, device_id).revoked_at is not None:
                raise Conflict(f"device {device_id} was revoked; leave it out", code="device.revoked")
    plan = (gates or GatePlan()).as_json()
    return rollouts.create(
        session, model_id=lineage.id, number=release, reaches=reaches, devices=devices, by=by, gates=plan
    )


def prefetch(session: Session, rollout_id: UUID, settings: Settings) -> Rollout:
    """Have the cohort fetch the release of a draft and rebuild it; it waits there until the rollout is started.

    Asked again, it reaches devices that joined since, and those that failed.

    Raises:
        NotFound: there is none of this id.
        Conflict: as `start`.
    """
    rollout, model = _to_move(session, rollout_id, "prefetch")
    parts = {part.device_id: part for part in rollouts.devices_of(session, rollout)}
    cohort = _cohort(session, rollout)
    wishes = fleet.running_wishes(session, model.id, cohort)
    held = {device: row.active for (device, _), row in fleet.slots(session, model_id=model.id).items()}
    asked = {device_id for device_id, part in parts.items() if part.prefetch in {Prefetch.ASKED, Prefetch.READY}}
    lacking = [d for d in cohort - asked if rollout.number not in {held.get(d), wishes.get(d)}]
    live.bring_in(session, open_repository(session, settings), model, rollout.number)
    counters = _assign(session, rollout, dict.fromkeys(lacking, rollout.number), "prefetch")
    for device_id, counter in counters.items():
        part = parts.get(device_id) or RolloutDevice(rollout_id=rollout.id, device_id=device_id)
        part.prefetch, part.prefetched_by = Prefetch.ASKED, counter
        part.previous = _had(rollout, wishes.get(device_id), held.get(device_id))
        session.add(part)
    session.flush()
    direct.enqueue(session, model)
    return rollout


def start(session: Session, rollout_id: UUID, settings: Settings) -> Rollout:
    """Decide who is in which wave and open the first. The release is signed back in first where it was pruned.

    Raises:
        NotFound: there is none of this id.
        Conflict: it is no draft, another rollout of the model runs, or its release must be signed by people first.
    """
    rollout, model = _to_move(session, rollout_id, "start")
    cohort = _cohort(session, rollout)
    wishes = fleet.running_wishes(session, model.id, cohort)
    held = {device: row.active for (device, _), row in fleet.slots(session, model_id=model.id).items()}
    reaches = [wave.reach for wave in rollouts.waves_of(session, rollout)]
    live.bring_in(session, open_repository(session, settings), model, rollout.number)
    rollout.state, rollout.started_at = RolloutState.RUNNING, datetime.now(UTC)
    rollouts.place(
        session,
        rollout,
        place_devices(reaches, cohort, rollout.id.bytes),
        {d: wishes.get(d) == rollout.number == held.get(d) for d in cohort},
    )
    gating.begin(session, rollout, cohort)
    _advance(session, rollout)
    direct.enqueue(session, model)
    return rollout


def pause(session: Session, rollout_id: UUID, reason: str) -> Rollout:
    """Open no further wave; a failure still halts. Raises NotFound, and Conflict unless it runs."""
    rollout = _lock(session, rollout_id)
    rollouts.require(rollout, "pause")
    rollout.state, rollout.reason = RolloutState.PAUSED, reason
    session.flush()
    return rollout


def resume(session: Session, rollout_id: UUID) -> Rollout:
    """Go on where it was paused. Raises NotFound, and Conflict unless it is paused."""
    rollout = _lock(session, rollout_id)
    rollouts.require(rollout, "resume")
    rollout.state = RolloutState.RUNNING
    session.flush()
    _advance(session, rollout)
    return rollout


def promote(session: Session, rollout_id: UUID) -> Rollout:
    """Open the next wave on a person's word, whatever is proven by now; a gate that halts still does.

    Raises:
        NotFound: there is none of this id.
        Conflict: it does not run, the first failure decides in it, or no device waits for a wave.
    """
    rollout = _lock(session, rollout_id)
    rollouts.require(rollout, "promote")
    room = gating.waiting(session, rollout)
    if rollout.rule != Rule.EVIDENCE or not room:
        raise Conflict(
            f"rollout {rollout.id} has no wave that waits for evidence; `sprat rollout why` says what it waits for",
            code="rollout.nothing-to-promote",
        )
    _advance(session, rollout, room=room)
    return rollout


def abort(session: Session, rollout_id: UUID, reason: str) -> Rollout:
    """Stop for good; exposed devices go back to the release they had. Raises NotFound, and Conflict when it ended."""
    rollout = _lock(session, rollout_id)
    rollouts.require(rollout, "abort")
    _stop(session, rollout, RolloutState.ABORTED, reason)
    return rollout


def on_report(session: Session, device: Device, body: bytes, signature: bytes) -> DeviceReport:
    """Store a device's report and let the rollout that it answers take its next step.

    A report of no assignment says that the device does not believe what it was sent, or how its holdout drifts: it is
    kept, and logged.

    Args:
        session: the caller's transaction.
        device: who sent it, authenticated.
        body: the bytes as they came.
        signature: 64 bytes, over them.

    Raises:
        AccessDenied: the signature is not the device's, or it speaks for another device.
        Conflict: it is a replay.
        InvalidInput: it cannot be read, contradicts what was assigned, or names a release that does not exist.
    """
    reports.check_signature(device, body, signature)
    report = read_report(body)
    if isinstance(report, TrustReport):
        kept = reports.record_report(session, fleet.lock_device(session, device.id), report, body, signature)
        _log.warning("device.distrusts", device=str(device.id), code=report.error_code, detail=report.error_detail)
        return kept
    if isinstance(report, HoldoutReport):
        _reported_model(session, report)
        kept = reports.record_report(session, fleet.lock_device(session, device.id), report, body, signature)
        _log.info("device.holdout", device=str(device.id), model=report.model, samples=report.samples)
        return kept
    part = None
    if report.device == device.id:
        part = rollouts.exposure(session, device.id, report.assignment)
        part = part or rollouts.prefetch(session, device.id, report.assignment)
    rollout = None if part is None else _lock(session, part.rollout_id)
    locked = fleet.lock_device(session, device.id)
    model = _reported_model(session, report)
    row = reports.record_report(session, locked, report, body, signature)
    if row.model_id != model.id:
        raise InvalidInput(
            f"assignment {report.assignment} of device {device.id} is not of {model.name}", code="report.assignment"
        )
    if part is not None and rollout is not None:
        session.refresh(part)
        _judge(session, rollout, part, report, model)
    slots = fleet.slots(session, device_ids=[device.id], model_id=model.id).get((device.id, model.id))
    if slots is not None and slots.active is not None:
        direct.enqueue(session, model, [Holders(slots.active, slots.previous, None, devices=1)])
    return row


def on_device_left(session: Session, device_id: UUID) -> Device:
    """Revoke a device; rollouts wait for it no more.

    Raises:
        NotFound: there is none of this id.
    """
    fleet.get_device(session, device_id)
    session.execute(select(func.pg_advisory_xact_lock(_MOVES_LOCK)))
    rollouts.leave_drafts(session, device_id)
    parts = rollouts.live_parts(session, device_id)
    moving = [rollouts.lock(session, part.rollout_id) for part in parts]
    device = fleet.revoke(session, device_id)
    for part, rollout in zip(parts, moving, strict=True):
        session.refresh(part)
        if part.state in {DeviceState.WAITING, DeviceState.EXPOSED}:
            if part.state == DeviceState.EXPOSED:
                gating.on_left(session, rollout, device_id)
            part.state = DeviceState.LEFT
            session.flush()
        _advance(session, rollout)
    return device


def on_device_joined(session: Session, device_id: UUID) -> None:
    """Assign to a new device, for each model, the release that the whole fleet was brought to."""
    for model_id, number in sorted(rollouts.standing_releases(session).items()):
        fleet.assign(session, model_id, {device_id: number}, "enrolment")


def on_silence(session: Session, now: datetime | None = None) -> list[UUID]:
    """Count devices that have said nothing for too long as lost, where evidence decides; return the rollouts moved."""
    moved = []
    for rollout_id in rollouts.running(session):
        rollout = _lock(session, rollout_id)
        silent = gating.on_silence(session, rollout, now) if rollout.state in rollouts.LIVE else []
        for part in rollouts.parts(session, rollout, silent):
            part.state = DeviceState.FAILED
        if silent:
            session.flush()
            _advance(session, rollout)
            moved.append(rollout_id)
    return moved


def view(session: Session, rollout: Rollout) -> RolloutView:
    """Return a rollout as it is shown."""
    waves, parts = rollouts.waves_of(session, rollout), rollouts.devices_of(session, rollout)
    named = select(Device.id, Device.name).where(Device.id.in_([part.device_id for part in parts]))
    names = dict(session.execute(named).all())
    return RolloutView.of(rollout, _model_of(session, rollout).name, waves, parts, names)


def share_moves(session: Session) -> None:
    """Hold the moves lock with other enrolments until the transaction ends; taken before a device is added."""
    session.execute(select(func.pg_advisory_xact_lock_shared(_MOVES_LOCK)))


def _lock(session: Session, rollout_id: UUID) -> Rollout:
    session.execute(select(func.pg_advisory_xact_lock(_MOVES_LOCK)))
    return rollouts.lock(session, rollout_id)


def _to_move(session: Session, rollout_id: UUID, action: str) -> tuple[Rollout, Model]:
    """Lock a draft and its model for a move that assigns; Conflict where another rollout of the model is live."""
    model = _model_of(session, rollouts.get(session, rollout_id))
    registry.lock_model(session, model)
    rollout = _lock(session, rollout_id)
    rollouts.require(rollout, action)
    other = rollouts.live_rollout(session, model.id)
    if other is not None:
        raise Conflict(
            f"rollout {other.id} of {model.name} is {other.state}; abort it or let it end before you start another",
            code="rollout.busy",
        )
    return rollout, model


def _cohort(session: Session, rollout: Rollout) -> set[UUID]:
    there = set(fleet.live_devices(session))
    named = {device.device_id for device in rollouts.devices_of(session, rollout)}
    return there if rollout.whole_fleet else there & named


def _assign(
    session: Session, rollout: Rollout, wishes: Mapping[UUID, int | None], reason: fleet.Reason
) -> dict[UUID, int]:
    """Assign as `fleet.assign`; what other drafts had these devices fetch ahead is given up with it."""
    counters = fleet.assign(session, rollout.model_id, wishes, reason)
    rollouts.forget_prefetches(session, rollout.model_id, counters, but=rollout.id)
    return counters


def _had(rollout: Rollout, *releases: int | None) -> int | None:
    """Return the first of the releases that a device had and could go back to."""
    return next((number for number in releases if number not in {None, rollout.number}), None)


def _judge(session: Session, rollout: Rollout, part: RolloutDevice, report: Report, model: Model) -> None:
    if report.assignment == part.prefetched_by:
        there = report.outcome in {Outcome.READY, Outcome.COMMITTED, Outcome.RETURNED}
        part.prefetch = Prefetch.READY if there and report.release == rollout.number else Prefetch.FAILED
        session.flush()
        return
    if part.state != DeviceState.EXPOSED or report.outcome == Outcome.READY:
        return
    promised = registry.get_release(session, model, rollout.number).weights_digest
    serves_it = report.serving_release == rollout.number and report.serving_weights == promised
    if report.outcome in {Outcome.COMMITTED, Outcome.RETURNED} and serves_it:
        part.state = DeviceState.COMMITTED
    else:
        part.state = DeviceState.FAILED
    session.flush()
    gating.on_ended(session, rollout, part, report, committed=part.state == DeviceState.COMMITTED)
    detail = report.error_detail or report.error_code or f"serves {report.serving_release} {report.serving_weights}"
    _advance(session, rollout, f"device {part.device_id} reported {report.outcome.value}: {detail}")


def _advance(session: Session, rollout: Rollout, cause: str = "", *, room: int = 0) -> None:
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
                _stop(session, rollout, RolloutState.HALTED, cause)
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
    counters = _assign(session, rollout, dict.fromkeys(waiting, rollout.number), "rollout")
    for device_id, part in waiting.items():
        if device_id not in counters:
            part.state = DeviceState.LEFT
            continue
        part.state, part.exposed_by = DeviceState.EXPOSED, counters[device_id]
        slots = held.get((device_id, rollout.model_id))
        part.previous = _had(rollout, wishes.get(device_id), None if slots is None else slots.active)
    session.flush()
    gating.on_exposed(session, rollout, [device_id for device_id in waiting if device_id in counters])


def _stop(session: Session, rollout: Rollout, state: RolloutState, reason: str) -> None:
    for wave in rollouts.waves_of(session, rollout):
        if wave.state == WaveState.OPEN:
            rollouts.end_wave(session, wave, WaveState.HALTED)
    returned = _take_back(session, rollout, rollouts.exposed_devices(session, rollout))
    rollouts.end(session, rollout, state, reason)
    _log.warning("rollout stopped", rollout=str(rollout.id), state=state.value, reason=reason, returned=returned)


def _take_back(session: Session, rollout: Rollout, parts: Sequence[RolloutDevice]) -> int:
    """Assign to devices what they had before; return how many were."""
    exposed = {part.device_id: part for part in parts}
    goes_back = {device_id: part.previous for device_id, part in exposed.items()}
    counters = _assign(session, rollout, goes_back, "return")
    for device_id, counter in counters.items():
        exposed[device_id].returned_by = counter
    session.flush()
    return len(counters)


def _succeed(session: Session, rollout: Rollout, reached: set[UUID]) -> None:
    if rollout.whole_fleet and reaches_everyone([wave.reach for wave in rollouts.waves_of(session, rollout)]):
        late = dict.fromkeys(set(fleet.live_devices(session)) - reached, rollout.number)
        _assign(session, rollout, late, "enrolment")
    waiting = [part for part in rollouts.exposed_devices(session, rollout) if part.exposed_by is None]
    _take_back(session, rollout, waiting)  # they fetched it ahead, and no wave reaches them
    rollouts.end(session, rollout, RolloutState.SUCCEEDED)
    _log.info("rollout succeeded", rollout=str(rollout.id))


def _model_of(session: Session, rollout: Rollout) -> Model:
    return session.scalars(select(Model).where(Model.id == rollout.model_id)).one()


def _reported_model(session: Session, report: Report | HoldoutReport) -> Model:
    numbers = [report.release, *([report.serving_release] if isinstance(report, Report) else [])]
    try:
        model = registry.get_model(session, report.model)
        for number in numbers:
            if number is not None:
                registry.get_release(session, model, number)
    except NotFound as unknown:
        raise InvalidInput(f"report: {unknown}", code="report.unknown-release") from unknown
    return model
