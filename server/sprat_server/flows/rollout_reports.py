"""What devices set off in rollouts: they report, leave, join, or say nothing for too long. One transaction each."""

from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from uuid import UUID

import structlog
from sqlalchemy.orm import Session

from sprat_server.fleet import drift_records, reports
from sprat_server.fleet import service as fleet
from sprat_server.fleet.models import Device, DeviceReport
from sprat_server.fleet.service import Holders
from sprat_server.flows import direct, gating, sharing_steps, site_steps, targeting
from sprat_server.flows import rollout_steps as steps
from sprat_server.observe import outbox
from sprat_server.registry import service as registry
from sprat_server.registry.models import Model
from sprat_server.rollouts import service as rollouts
from sprat_server.rollouts.models import Rollout, RolloutDevice
from sprat_server.rollouts.retries import DRIFTED, Failure, class_of, judges_the_model
from sprat_server.rollouts.waves import DeviceState, Prefetch
from sprat_server.sites import measure_records
from sprat_server.sites import records as sites
from sprat_shared.errors import InvalidInput, NotFound
from sprat_shared.protocol.facts_report import FactsReport
from sprat_shared.protocol.holdout_report import HoldoutReport
from sprat_shared.protocol.measures_report import MeasuresReport
from sprat_shared.protocol.report import Outcome, Report, TrustReport, read_report
from sprat_shared.protocol.site_report import SiteReport

_log = structlog.get_logger(__name__)


def on_report(session: Session, device: Device, body: bytes, signature: bytes) -> DeviceReport:
    """Store a device's report and let the rollout that it answers take its next step.

    A report of no assignment says that the device does not believe what it was sent, how its holdout drifts, what it
    is or measured, or how far it is with a plan of its site: it is kept and logged, and that plan goes on.

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
    targeting.share(session)
    row = (
        _take_answer(session, device, report, body, signature)
        if isinstance(report, Report)
        else _take_word(session, device, report, body, signature)
    )
    targeting.look_again(session, device.id)
    return row


def _take_word(
    session: Session,
    device: Device,
    report: TrustReport | HoldoutReport | FactsReport | SiteReport | MeasuresReport,
    body: bytes,
    signature: bytes,
) -> DeviceReport:
    """Keep a report of no assignment."""
    said = {"device": str(device.id)}
    model = _reported_model(session, report) if isinstance(report, HoldoutReport) else None
    measured = measure_records.check_known(session, report) if isinstance(report, MeasuresReport) else {}
    if isinstance(report, SiteReport):
        steps.lock_moves(session)
    kept = reports.record_report(session, fleet.lock_device(session, device.id), report, body, signature)
    if isinstance(report, HoldoutReport) and model is not None:
        drift_records.keep_samples(session, device.id, model.id, report)
    match report:
        case TrustReport():
            _log.warning("device.distrusts", **said, code=report.error_code, detail=report.error_detail)
            data = {"name": device.name, "code": report.error_code, "detail": report.error_detail}
            outbox.tell(session, "device.distrusts", f"device:{device.id}", data)
        case HoldoutReport():
            _log.info("device.holdout", **said, model=report.model, samples=report.samples)
        case FactsReport():
            _log.info("device.facts", **said)
        case SiteReport():
            _log.info("device.site", **said, site=report.site, plan=report.plan, state=report.state)
            site_steps.on_site_report(session, device, report)
        case MeasuresReport():
            _log.info("device.measures", **said, modules=len(report.modules), links=len(report.links))
            measure_records.keep(session, report, measured)
    return kept


def _take_answer(session: Session, device: Device, report: Report, body: bytes, signature: bytes) -> DeviceReport:
    """Keep a report of an assignment, and let its rollout go on."""
    part, plan_id = None, None
    if report.device == device.id:
        part = rollouts.exposure(session, device.id, report.assignment)
        part = part or rollouts.prefetch(session, device.id, report.assignment)
        plan_id = sites.held_plan(session, device.id, report.assignment)
    rollout = None if part is None else steps.lock(session, part.rollout_id)
    if plan_id is not None:
        steps.lock_moves(session)
    locked = fleet.lock_device(session, device.id)
    model = _reported_model(session, report)
    row = reports.record_report(session, locked, report, body, signature)
    if row.model_id != model.id:
        raise InvalidInput(
            f"assignment {report.assignment} of device {device.id} is not of {model.name}", code="report.assignment"
        )
    if report.evidence is not None and report.evidence.input_drift is not None:
        drift_records.keep_move(session, device.id, model.id, report.evidence.input_drift)
    if part is not None and rollout is not None:
        session.refresh(part)
        _judge(session, rollout, part, report, model)
    if plan_id is not None:
        site_steps.on_answer(session, plan_id, device, report)
    slots = fleet.slots(session, device_ids=[device.id], model_id=model.id).get((device.id, model.id))
    if slots is not None and slots.active is not None:
        direct.enqueue(session, model, [Holders(slots.active, slots.previous, None, devices=1)])
    return row


def on_device_left(session: Session, device_id: UUID) -> Device:
    """Revoke a device; rollouts wait for it no more.

    Raises:
        NotFound: there is none of this id.
    """
    return on_devices_left(session, [device_id])[0]


def on_devices_left(session: Session, device_ids: Collection[UUID]) -> list[Device]:
    """Revoke devices, all or none; rollouts wait for them no more, and look once at what that sets off.

    Raises:
        NotFound: there is none of one of these ids.
    """
    for device_id in device_ids:
        fleet.get_device(session, device_id)
    targeting.share(session)
    steps.lock_moves(session)
    rollouts.leave_drafts(session, device_ids)
    parts = rollouts.live_parts(session, device_ids)
    moving = {rollout_id: rollouts.lock(session, rollout_id) for rollout_id in sorted({p.rollout_id for p in parts})}
    left = [_leaves(session, device_id) for device_id in sorted(device_ids)]
    for part in parts:
        session.refresh(part)
        if part.state in {DeviceState.WAITING, DeviceState.EXPOSED}:
            if part.state == DeviceState.EXPOSED:
                gating.on_left(session, moving[part.rollout_id], part.device_id)
            part.state, part.retry_at = DeviceState.LEFT, None
            session.flush()
    for rollout in moving.values():
        steps.advance(session, rollout)
    site_steps.on_left(session, device_ids, "left")
    sites.leave_sites(session, device_ids)
    return left


def _leaves(session: Session, device_id: UUID) -> Device:
    device = fleet.revoke(session, device_id)
    outbox.tell(session, "device.left", f"device:{device.id}", {"name": device.name, "group": device.device_group})
    targeting.look_again(session, device_id)
    return device


def on_device_joined(session: Session, device_id: UUID) -> None:
    """Assign to a new device, for each model, the release that the whole fleet was brought to."""
    for model_id, number in sorted(rollouts.standing_releases(session).items()):
        fleet.assign(session, model_id, {device_id: number}, "enrolment")


def on_silence(session: Session, now: datetime | None = None) -> list[UUID]:
    """Count devices that have said nothing for too long as lost, where evidence decides; return the rollouts moved."""
    moved = []
    for rollout_id in rollouts.running(session):
        rollout = steps.lock(session, rollout_id)
        silent = gating.on_silence(session, rollout, now) if rollout.state in rollouts.LIVE else []
        for part in rollouts.parts(session, rollout, silent):
            part.state, part.failure = DeviceState.FAILED, Failure.SILENCE
        if silent:
            session.flush()
            steps.advance(session, rollout)
            moved.append(rollout_id)
    return moved


def retry(session: Session, now: datetime | None = None) -> int:
    """Ask devices again whose wait after a failure that may pass is over; return how many.

    Within the rollout's windows, and also while it is paused: whoever is asked was exposed before.
    """
    at, asked = now or datetime.now(UTC), 0
    for rollout_id, devices in rollouts.due_for_retry(session, at).items():
        rollout = steps.lock(session, rollout_id)
        if rollout.state not in rollouts.LIVE or not steps.limits(session, rollout, at).open:
            continue
        due = [part for part in rollouts.parts(session, rollout, devices) if part.retry_at is not None]
        for part in due:
            part.retries += 1
        asked += len(steps.offer(session, rollout, due))
    return asked


def _judge(session: Session, rollout: Rollout, part: RolloutDevice, report: Report, model: Model) -> None:
    if report.assignment == part.prefetched_by:
        there = report.outcome in {Outcome.READY, Outcome.COMMITTED, Outcome.RETURNED}
        part.prefetch = Prefetch.READY if there and report.release == rollout.number else Prefetch.FAILED
        session.flush()
        return
    if report.assignment != part.exposed_by or report.outcome == Outcome.READY:
        return  # it answers what was replaced meanwhile, or has nothing to say yet
    left_it = part.state == DeviceState.COMMITTED and part.returned_by is None and report.error_code == DRIFTED
    if part.state != DeviceState.EXPOSED and not left_it:
        return
    number = fleet.assigned(session, {part.device_id: report.assignment})[part.device_id]
    promised = None if number is None else registry.get_release(session, model, number).weights_digest
    serves_it = report.serving_release == number and report.serving_weights == promised
    part.retry_at, rung = None, None  # it has tried again by itself
    if report.outcome in {Outcome.COMMITTED, Outcome.RETURNED} and serves_it:
        part.state, part.failure = DeviceState.COMMITTED, None
    else:
        part.failure = class_of(report.outcome, report.error_code)
        wait_s = rollouts.plan_of(rollout).retries.wait_s(Failure(part.failure), part.retries)
        if wait_s is not None and rollout.state in rollouts.LIVE:
            part.retry_at = datetime.now(UTC) + timedelta(seconds=wait_s)
            session.flush()
            return
        if judges_the_model(report.outcome, report.error_code):
            rung = sharing_steps.rung_of(session, model, part)
        part.state = DeviceState.FAILED if rung is None or rung.below is None else DeviceState.EXPOSED
    session.flush()
    gating.on_ended(session, rollout, part, report, committed=part.state == DeviceState.COMMITTED)
    detail = report.error_detail or report.error_code or f"serves {report.serving_release} {report.serving_weights}"
    steps.advance(session, rollout, f"device {part.device_id} reported {report.outcome.value}: {detail}")
    if rung is not None:
        sharing_steps.go_down(session, rollout, part, rung, report)


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
