"""/api/v1/devices, /api/v1/enrolment-tokens and -requests: the fleet, and who joins it, as operators see it."""

from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

from fastapi import APIRouter
from sqlalchemy import select

from sprat_server.access import audit
from sprat_server.api.auth import Operator, Viewer
from sprat_server.api.paging import Page, Paging
from sprat_server.db.paging import take_page
from sprat_server.db.session import SessionDep
from sprat_server.fleet import enrolment as fleet_enrolment
from sprat_server.fleet import service as fleet
from sprat_server.fleet.models import Device, DeviceReport, EnrolmentRequest
from sprat_server.fleet.schemas import (
    AcceptDevice,
    DeviceView,
    EnrolmentRequestView,
    LeaveReason,
    MadeEnrolmentToken,
    NewEnrolmentToken,
    ReplaceDevice,
    ReportView,
)
from sprat_server.flows import enrolment, fleet_views, rollout_reports
from sprat_shared.protocol.enrol import fingerprint

router = APIRouter(tags=["devices"])


@router.post("/enrolment-tokens", status_code=201)
def create_enrolment_token(body: NewEnrolmentToken, session: SessionDep, operator: Operator) -> MadeEnrolmentToken:
    """Make a token with which devices may join. Its text is in this answer and nowhere else."""
    token, text = fleet_enrolment.create_enrolment_token(
        session, uses=body.uses, expires_s=body.expires_s, group=body.group or "default", by=operator
    )
    after = {"uses": token.uses, "group": token.device_group, "expires_at": token.expires_at.isoformat()}
    audit.record(session, operator, "enrolment-token.create", f"enrolment-token:{token.id}", after=after)
    return MadeEnrolmentToken.of(token, text)


@router.get("/enrolment-requests")
def list_enrolment_requests(session: SessionDep, _viewer: Viewer, page: Paging) -> Page[EnrolmentRequestView]:
    """List devices without a token that wait for an operator's word, or were rejected lately, newest first."""
    rows, following = take_page(
        session,
        select(EnrolmentRequest).where(EnrolmentRequest.expires_at >= datetime.now(UTC)),
        key=EnrolmentRequest.id,
        parse=UUID,
        cursor=page.cursor,
        limit=page.limit,
    )
    return Page(items=[EnrolmentRequestView.of(row) for row in rows], next=following)


@router.post("/enrolment-requests/{request_id}/accept")
def accept_device(request_id: UUID, body: AcceptDevice, session: SessionDep, operator: Operator) -> DeviceView:
    """Let a device that waits join."""
    device = enrolment.accept(session, request_id, group=body.group, by=operator)
    return _views(session, [device])[0]


@router.post("/enrolment-requests/{request_id}/reject")
def reject_device(request_id: UUID, body: LeaveReason, session: SessionDep, operator: Operator) -> EnrolmentRequestView:
    """Refuse a device that waits; it may ask again when its request has expired."""
    row = fleet_enrolment.reject(session, request_id)
    shown = EnrolmentRequestView.of(row)
    after = {"name": row.name, "key": shown.fingerprint, "reason": body.reason}
    audit.record(session, operator, "device.reject", f"enrolment:{row.id}", after=after)
    return shown


@router.get("/devices")
def list_devices(session: SessionDep, _viewer: Viewer, page: Paging) -> Page[DeviceView]:
    """List devices, newest first."""
    rows, following = take_page(
        session, select(Device), key=Device.id, parse=UUID, cursor=page.cursor, limit=page.limit
    )
    return Page(items=_views(session, rows), next=following)


@router.get("/devices/{device_id}")
def get_device(device_id: UUID, session: SessionDep, _viewer: Viewer) -> DeviceView:
    """Show a device: what it should run, and what it said it runs."""
    return _views(session, [fleet.get_device(session, device_id)])[0]


@router.get("/devices/{device_id}/reports")
def list_reports(device_id: UUID, session: SessionDep, _viewer: Viewer, page: Paging) -> Page[ReportView]:
    """List what a device reported, newest first."""
    fleet.get_device(session, device_id)
    rows, following = take_page(
        session,
        select(DeviceReport).where(DeviceReport.device_id == device_id),
        key=DeviceReport.sequence,
        parse=int,
        cursor=page.cursor,
        limit=page.limit,
    )
    return Page(items=[ReportView.of(row) for row in rows], next=following)


@router.post("/devices/{device_id}/revoke")
def revoke_device(device_id: UUID, body: LeaveReason, session: SessionDep, operator: Operator) -> DeviceView:
    """Refuse a device at once and for good; rollouts wait for it no more. What it holds is remembered."""
    before = _standing(fleet.get_device(session, device_id))
    device = rollout_reports.on_device_left(session, device_id)
    after = {"name": device.name, "reason": body.reason}
    audit.record(session, operator, "device.revoke", f"device:{device.id}", before, after)
    return _views(session, [device])[0]


@router.post("/devices/{device_id}/decommission")
def decommission_device(device_id: UUID, body: LeaveReason, session: SessionDep, operator: Operator) -> DeviceView:
    """Let a device go for good: revoke it and forget what it holds, so that no release is kept for it."""
    before = _standing(fleet.get_device(session, device_id))
    device = rollout_reports.on_device_left(session, device_id)
    fleet.forget_slots(session, device_id)
    after = {"name": device.name, "reason": body.reason}
    audit.record(session, operator, "device.decommission", f"device:{device.id}", before, after)
    return _views(session, [device])[0]


@router.post("/devices/{device_id}/replace", status_code=201)
def replace_device(device_id: UUID, body: ReplaceDevice, session: SessionDep, operator: Operator) -> MadeEnrolmentToken:
    """Make a one-time token with which a device takes this one's place, with a new key; the old key is dead then."""
    device = fleet.get_device(session, device_id)
    token, text = fleet_enrolment.create_enrolment_token(
        session, uses=1, expires_s=body.expires_s, group=device.device_group, by=operator, replaces=device
    )
    after = {"name": device.name, "enrolment-token": str(token.id), "expires_at": token.expires_at.isoformat()}
    audit.record(session, operator, "device.replace", f"device:{device.id}", _standing(device), after)
    return MadeEnrolmentToken.of(token, text)


def _standing(device: Device) -> dict[str, str | None]:
    """Return what of a device its leaving or being replaced ends, for the audit log."""
    revoked_at = None if device.revoked_at is None else device.revoked_at.isoformat()
    return {"key": fingerprint(device.public_key), "revoked_at": revoked_at}


def _views(session: SessionDep, devices: Sequence[Device]) -> list[DeviceView]:
    on_devices = fleet_views.models_on(session, [device.id for device in devices])
    return [DeviceView.of(device, on_devices[device.id]) for device in devices]
