"""Take what devices report: signed by them, each once. Callers own the transaction."""

from datetime import UTC, datetime
from uuid import UUID

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy.orm import Session

from sprat_server.fleet.models import Assignment, Device, DeviceReport, DeviceSlots
from sprat_shared.errors import AccessDenied, Conflict, InvalidInput
from sprat_shared.protocol.facts_report import FactsReport
from sprat_shared.protocol.report import AnyReport, Outcome, Report


def check_signature(device: Device, body: bytes, signature: bytes) -> None:
    """Raise unless `signature` over `body` was made with the device's key.

    Raises:
        AccessDenied: it was not.
    """
    try:
        Ed25519PublicKey.from_public_bytes(device.public_key).verify(signature, body)
    except InvalidSignature:
        raise AccessDenied(
            f"the report is not signed by the key of device {device.id}; sign the body as it is sent",
            code="report.bad-signature",
        ) from None


def record_report(session: Session, device: Device, report: AnyReport, body: bytes, signature: bytes) -> DeviceReport:
    """Store a report whose signature was checked, and what it says about the device's slots.

    Args:
        session: the caller's transaction.
        device: who sent it; locked by the caller.
        report: what `body` says.
        body: the bytes that were signed.
        signature: 64 bytes.

    Raises:
        AccessDenied: it speaks for another device.
        Conflict: its sequence is not larger than all before (a replay).
        InvalidInput: it answers an assignment that the device was never given, or of another model or release.
    """
    if report.device != device.id:
        raise AccessDenied(f"device {device.id} cannot report for {report.device}", code="report.other-device")
    if report.sequence <= device.report_sequence:
        raise Conflict(
            f"report {report.sequence} of device {device.id} was received already, or an older one after a newer; "
            f"the newest has {device.report_sequence}",
            code="report.replayed",
        )
    row = DeviceReport(device_id=device.id, sequence=report.sequence, body=body, signature=signature)
    if isinstance(report, Report):
        assignment = session.get(Assignment, (device.id, report.assignment))
        if assignment is None:
            raise InvalidInput(
                f"device {device.id} was never given assignment {report.assignment}", code="report.assignment"
            )
        row.model_id, row.assignment, row.outcome = assignment.model_id, report.assignment, report.outcome.value
        row.serving_number, row.serving_weights = report.serving_release, report.serving_weights
        if report.outcome != Outcome.READY:  # that release waits beside the slots
            _move_slots(session, assignment.model_id, report)
    if isinstance(report, FactsReport):
        device.attributes = dict(report.attributes)
    device.report_sequence = report.sequence
    device.agent = report.agent
    session.add(row)
    session.flush()
    return row


def _move_slots(session: Session, model_id: UUID, report: Report) -> None:
    now = datetime.now(UTC)
    held = session.get(DeviceSlots, (report.device, model_id))
    if held is None:
        held = DeviceSlots(
            device_id=report.device, model_id=model_id, active=None, previous=None, weights=None, outcome=""
        )
        session.add(held)
    if report.outcome == Outcome.ROLLED_BACK:
        held.previous, held.active = None, report.serving_release  # what was left had the other slot, and is given up
    elif report.serving_release != held.active:
        held.previous, held.active = held.active, report.serving_release
    held.weights, held.outcome, held.reported_at = report.serving_weights, report.outcome.value, now
    session.flush()
