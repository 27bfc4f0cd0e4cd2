"""/api/v1/devices, /api/v1/enrolment-tokens and -requests: the fleet, and who joins it, as operators see it."""

from datetime import UTC, datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import Body, Query
from sqlalchemy import select
from sqlalchemy.orm import Session

from sprat_server.access import audit
from sprat_server.access.tokens import Identity
from sprat_server.api.auth import Asker, Operator, Viewer
from sprat_server.api.described import raises
from sprat_server.api.paging import Page, Paging, SortedPaging
from sprat_server.api.preconditions import Seen
from sprat_server.api.routes import operators_router
from sprat_server.db.paging import take_sorted_page
from sprat_server.db.session import SessionDep
from sprat_server.fleet import device_orders
from sprat_server.fleet import enrolment as fleet_enrolment
from sprat_server.fleet import service as fleet
from sprat_server.fleet.models import Device, DeviceReport, EnrolmentRequest
from sprat_server.fleet.schemas import (
    AcceptDevice,
    AcceptDevices,
    BulkLabels,
    BulkLeave,
    DeviceCount,
    DeviceView,
    EnrolmentRequestView,
    LeaveReason,
    MadeEnrolmentToken,
    NewEnrolmentToken,
    Preview,
    PreviewView,
    ReplaceDevice,
    ReportView,
)
from sprat_server.flows import enrolment, fleet_views, rollout_reports, targeting
from sprat_shared.protocol.enrol import fingerprint

router = operators_router(tags=["devices"])

Where = Annotated[
    str | None, Query(max_length=2000, description='A filter, such as `labels.site = "lab"` (docs/targeting.md).')
]
SortBy = Annotated[
    str | None, Query(pattern=device_orders.PATTERN, description="With a hyphen before it, the largest first.")
]
Labels = Annotated[
    dict[str, str | None],
    Body(openapi_examples={"lab": {"summary": "one set, one removed", "value": {"site": "lab", "ring": None}}}),
]


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
def list_enrolment_requests(session: SessionDep, _viewer: Viewer, page: SortedPaging) -> Page[EnrolmentRequestView]:
    """List devices without a token that wait for an operator's word, or were rejected lately, newest first."""
    rows, following = page.take(
        session,
        select(EnrolmentRequest).where(EnrolmentRequest.expires_at >= datetime.now(UTC)),
        key=EnrolmentRequest.id,
        parse=UUID,
    )
    return Page(items=[EnrolmentRequestView.of(row) for row in rows], next=following)


@router.post(
    "/enrolment-requests/accept", responses=raises(not_found=["enrolment.unknown"], conflict=["enrolment.name-taken"])
)
def accept_devices(body: AcceptDevices, session: SessionDep, operator: Operator) -> list[DeviceView]:
    """Let devices that wait join, all or none."""
    joined = [enrolment.accept(session, one, group=body.group, by=operator) for one in dict.fromkeys(body.requests)]
    return fleet_views.device_views(session, joined)


@router.post(
    "/enrolment-requests/{request_id}/accept",
    responses=raises(not_found=["enrolment.unknown"], conflict=["enrolment.name-taken", "enrolment.was-rejected"]),
)
def accept_device(request_id: UUID, body: AcceptDevice, session: SessionDep, operator: Operator) -> DeviceView:
    """Let a device that waits join."""
    device = enrolment.accept(session, request_id, group=body.group, by=operator)
    return fleet_views.device_views(session, [device])[0]


@router.post("/enrolment-requests/{request_id}/reject", responses=raises(not_found=["enrolment.unknown"]))
def reject_device(request_id: UUID, body: LeaveReason, session: SessionDep, operator: Operator) -> EnrolmentRequestView:
    """Refuse a device that waits; it may ask again when its request has expired."""
    row = fleet_enrolment.reject(session, request_id)
    shown = EnrolmentRequestView.of(row)
    after = {"name": row.name, "key": shown.fingerprint, "reason": body.reason}
    audit.record(session, operator, "device.reject", f"enrolment:{row.id}", after=after)
    return shown


@router.get("/devices")
def list_devices(
    session: SessionDep, _viewer: Viewer, page: Paging, where: Where = None, sort: SortBy = None
) -> Page[DeviceView]:
    """List devices, newest first, or as `sort` says; `where` leaves revoked ones out."""
    query = select(Device)
    if where is not None:
        query = query.where(Device.revoked_at.is_(None), targeting.meant(session, where=where, group=None))
    if sort is None:
        rows, following = page.take(session, query, key=Device.id, parse=UUID)
    else:
        order = device_orders.of(sort)
        rows, following = take_sorted_page(
            session, query, order=order, key=Device.id, cursor=page.cursor, limit=page.limit
        )
    return Page(items=fleet_views.device_views(session, rows), next=following)


@router.post("/devices/preview", responses=raises(not_found=["group.unknown"], invalid=["filter.bad", "filter.which"]))
def preview_devices(body: Preview, session: SessionDep, _asker: Asker) -> PreviewView:
    """Say how many live devices a filter or a saved group means, and show some of them."""
    return targeting.preview(session, body)


@router.post("/devices/labels", responses=raises(not_found=["group.unknown"], invalid=["label.too-many"]))
def label_devices(body: BulkLabels, session: SessionDep, operator: Operator) -> DeviceCount:
    """Change labels of all live devices that a filter or a saved group means, all or none."""
    count = targeting.label_all(session, body)
    audit.record(session, operator, "device.label-all", "devices", after=body.model_dump() | {"devices": count})
    return DeviceCount(devices=count)


@router.get("/devices/{device_id}/labels", responses=raises(not_found=["device.unknown"]))
def get_labels(device_id: UUID, session: SessionDep, _viewer: Viewer) -> dict[str, str]:
    """Show the labels of a device by themselves: their entity tag changes with them alone."""
    return dict(fleet.get_device(session, device_id).labels)


@router.patch(
    "/devices/{device_id}/labels",
    responses=raises(not_found=["device.unknown"], invalid=["label.bad", "label.too-many"]),
)
def label_device(device_id: UUID, body: Labels, session: SessionDep, operator: Operator, seen: Seen) -> DeviceView:
    """Change labels of a device, as a JSON merge patch: a text sets a label, null removes it."""
    seen.require(session, f"device:{device_id}/labels", lambda: dict(fleet.get_device(session, device_id).labels))
    device, before = targeting.label(session, device_id, body)
    were = {key: before.get(key) for key in body}
    audit.record(session, operator, "device.label", f"device:{device.id}", were, body)
    return fleet_views.device_views(session, [device])[0]


@router.get("/devices/{device_id}", responses=raises(not_found=["device.unknown"]))
def get_device(device_id: UUID, session: SessionDep, _viewer: Viewer) -> DeviceView:
    """Show a device: what it should run, and what it said it runs."""
    return fleet_views.device_views(session, [fleet.get_device(session, device_id)])[0]


@router.get("/devices/{device_id}/reports", responses=raises(not_found=["device.unknown"]))
def list_reports(device_id: UUID, session: SessionDep, _viewer: Viewer, page: SortedPaging) -> Page[ReportView]:
    """List what a device reported, newest first."""
    fleet.get_device(session, device_id)
    rows, following = page.take(
        session, select(DeviceReport).where(DeviceReport.device_id == device_id), key=DeviceReport.sequence, parse=int
    )
    return Page(items=[ReportView.of(row) for row in rows], next=following)


@router.post("/devices/revoke", responses=raises(not_found=["group.unknown"], conflict=["device.other-count"]))
def revoke_devices(body: BulkLeave, session: SessionDep, operator: Operator) -> DeviceCount:
    """Refuse many devices at once and for good, all or none; rollouts wait for them no more."""
    meant = targeting.counted(session, where=body.where, group=body.group, devices=body.devices)
    return DeviceCount(devices=len(_let_go(session, operator, "revoke", meant, body.reason)))


@router.post("/devices/decommission", responses=raises(not_found=["group.unknown"]))
def decommission_devices(body: BulkLeave, session: SessionDep, operator: Operator) -> DeviceCount:
    """Let many devices go for good, all or none: revoke them, and forget what they hold."""
    meant = targeting.counted(session, where=body.where, group=body.group, devices=body.devices)
    return DeviceCount(devices=len(_let_go(session, operator, "decommission", meant, body.reason)))


@router.post("/devices/{device_id}/revoke", responses=raises(not_found=["device.unknown"]))
def revoke_device(device_id: UUID, body: LeaveReason, session: SessionDep, operator: Operator) -> DeviceView:
    """Refuse a device at once and for good; rollouts wait for it no more. What it holds is remembered."""
    return fleet_views.device_views(session, _let_go(session, operator, "revoke", [device_id], body.reason))[0]


@router.post("/devices/{device_id}/decommission", responses=raises(not_found=["device.unknown"]))
def decommission_device(device_id: UUID, body: LeaveReason, session: SessionDep, operator: Operator) -> DeviceView:
    """Let a device go for good: revoke it and forget what it holds, so that no release is kept for it."""
    return fleet_views.device_views(session, _let_go(session, operator, "decommission", [device_id], body.reason))[0]


@router.post(
    "/devices/{device_id}/replace",
    status_code=201,
    responses=raises(not_found=["device.unknown"], conflict=["device.is-revoked"]),
)
def replace_device(device_id: UUID, body: ReplaceDevice, session: SessionDep, operator: Operator) -> MadeEnrolmentToken:
    """Make a one-time token with which a device takes this one's place, with a new key; the old key is dead then."""
    device = fleet.get_device(session, device_id)
    token, text = fleet_enrolment.create_enrolment_token(
        session, uses=1, expires_s=body.expires_s, group=device.device_group, by=operator, replaces=device
    )
    after = {"name": device.name, "enrolment-token": str(token.id), "expires_at": token.expires_at.isoformat()}
    audit.record(session, operator, "device.replace", f"device:{device.id}", _standing(device), after)
    return MadeEnrolmentToken.of(token, text)


def _let_go(
    session: Session, operator: Identity, verb: Literal["revoke", "decommission"], device_ids: list[UUID], reason: str
) -> list[Device]:
    """Revoke devices, and forget what they hold where they are decommissioned; one audit record for each."""
    before = {device_id: _standing(fleet.get_device(session, device_id)) for device_id in device_ids}
    left = rollout_reports.on_devices_left(session, device_ids)
    for device in left:
        if verb == "decommission":
            fleet.forget_slots(session, device.id)
        after = {"name": device.name, "reason": reason}
        audit.record(session, operator, f"device.{verb}", f"device:{device.id}", before[device.id], after)
    if not left:
        audit.record(session, operator, f"device.{verb}", "devices", after={"devices": 0, "reason": reason})
    return left


def _standing(device: Device) -> dict[str, str | None]:
    """Return what of a device its leaving or being replaced ends, for the audit log."""
    revoked_at = None if device.revoked_at is None else device.revoked_at.isoformat()
    return {"key": fingerprint(device.public_key), "revoked_at": revoked_at}
