"""/api/v1/devices and /api/v1/enrolment-tokens: the fleet, as operators see it."""

from collections.abc import Sequence
from uuid import UUID

from fastapi import APIRouter
from sqlalchemy import select

from sprat_server.access import audit
from sprat_server.api.auth import Operator, Viewer
from sprat_server.api.paging import Page, Paging
from sprat_server.db.paging import take_page
from sprat_server.db.session import SessionDep
from sprat_server.fleet import service as fleet
from sprat_server.fleet.models import Device, DeviceReport
from sprat_server.fleet.schemas import DeviceView, MadeEnrolmentToken, NewEnrolmentToken, ReportView, RevokeDevice
from sprat_server.flows import fleet_views, rollout

router = APIRouter(tags=["devices"])


@router.post("/enrolment-tokens", status_code=201)
def create_enrolment_token(body: NewEnrolmentToken, session: SessionDep, operator: Operator) -> MadeEnrolmentToken:
    """Make a token with which devices may join. Its text is in this answer and nowhere else."""
    token, text = fleet.create_enrolment_token(
        session, uses=body.uses, expires_s=body.expires_s, group=body.group or "default", by=operator
    )
    after = {"uses": token.uses, "group": token.device_group, "expires_at": token.expires_at.isoformat()}
    audit.record(session, operator, "enrolment-token.create", f"enrolment-token:{token.id}", after=after)
    return MadeEnrolmentToken.of(token, text)


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
def revoke_device(device_id: UUID, body: RevokeDevice, session: SessionDep, operator: Operator) -> DeviceView:
    """Refuse a device at once and for good; rollouts wait for it no more."""
    device = rollout.on_device_left(session, device_id)
    after = {"name": device.name, "reason": body.reason}
    audit.record(session, operator, "device.revoke", f"device:{device.id}", after=after)
    return _views(session, [device])[0]


def _views(session: SessionDep, devices: Sequence[Device]) -> list[DeviceView]:
    on_devices = fleet_views.models_on(session, [device.id for device in devices])
    return [DeviceView.of(device, on_devices[device.id]) for device in devices]
