"""What sites and their plans look like: as they are, and what applying a plan would do. Only reads."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from sprat_server.db.sets import among
from sprat_server.fleet import service as fleet
from sprat_server.fleet.models import Device
from sprat_server.registry import paths
from sprat_server.registry import service as registry
from sprat_server.registry.models import Model
from sprat_server.rollouts import quarantine
from sprat_server.rollouts import service as rollouts
from sprat_server.sites import records
from sprat_server.sites.models import Site, SitePlanMember, SitePlanRow
from sprat_server.sites.schemas import (
    FetchPreview,
    MemberPreview,
    SiteDeviceView,
    SitePlanMemberView,
    SitePlanModuleView,
    SitePlanPreview,
    SitePlanView,
    SiteView,
)
from sprat_server.sites.states import SIGNED, UNDER_WAY, MemberStatus, PlanStatus
from sprat_shared.errors import InvalidInput
from sprat_shared.protocol.site_plan import check_address

ADDRESS: Final = "site-address"
"""The attribute by which a device says where other members of its site reach it."""
_SILENT: Final = timedelta(minutes=30)
_SOON: Final = timedelta(days=7)


def address_of(device: Device, *, holds: bool) -> str | None:
    """Return where a device said that other members reach it; None: it said nothing, and need not.

    Args:
        device: of the site.
        holds: it holds a module, so that others must reach it.

    Raises:
        InvalidInput: it said nothing although it holds a module, or what is no address; the message names the device.
    """
    said = device.attributes.get(ADDRESS)
    if said is None and not holds:
        return None
    if said is None:
        raise InvalidInput(
            f"{device.name} holds a module, and said no {ADDRESS}, so no other device can reach it (docs/site.md)",
            code="site.no-address",
        )
    try:
        return check_address(said)
    except InvalidInput as bad:
        raise InvalidInput(f"{device.name}: {ADDRESS}: {bad}", code="site.no-address") from bad


def lacking(session: Session, model_id: UUID, number: int, devices: Sequence[UUID]) -> list[UUID]:
    """Return the devices that neither hold a release, as far as they said, nor are to have it already."""
    held = fleet.slots(session, device_ids=devices, model_id=model_id)
    wished = {
        one.device_id
        for one in fleet.current_assignments(session, device_ids=devices, model_id=model_id)
        if one.number == number
    }
    return [
        device
        for device in devices
        if device not in wished
        and ((row := held.get((device, model_id))) is None or number not in {row.active, row.previous})
    ]


def site_view(session: Session, site: Site) -> SiteView:
    """Return a site as it is shown."""
    rows = records.devices_of(session, site)
    devices = _devices(session, [row.device_id for row in rows])
    views = [
        SiteDeviceView.of(
            row,
            name=devices[row.device_id].name,
            address=devices[row.device_id].attributes.get(ADDRESS),
            revoked=devices[row.device_id].revoked_at is not None,
            last_seen_at=devices[row.device_id].last_seen_at,
        )
        for row in rows
    ]
    serving = records.in_state(session, site.id, PlanStatus.SERVING)
    moving = records.in_state(session, site.id, *UNDER_WAY)
    return SiteView.of(
        site,
        sorted(views, key=lambda one: one.name),
        serving=None if serving is None else serving.number,
        under_way=None if moving is None else moving.number,
    )


def plan_view(session: Session, site: Site, plan: SitePlanRow, now: datetime | None = None) -> SitePlanView:
    """Return a plan as it is shown."""
    members = records.members_of(session, plan)
    hosts = {UUID(host) for said in plan.content["modules"].values() for host in said["hosts"]}
    asked = {UUID(device) for said in plan.content["tasks"].values() for device in said["routes"]}
    devices = _devices(session, {*hosts, *asked, *(one.device_id for one in members)})
    modules = [
        SitePlanModuleView(
            model=model,
            release=said["release"],
            id=said["id"],
            hosts=[devices[UUID(host)].name for host in said["hosts"]],
            memory_bytes=said["memory_bytes"],
        )
        for model, said in sorted(plan.content["modules"].items())
    ]
    shown = [
        SitePlanMemberView(
            device=one.device_id,
            name=devices[one.device_id].name,
            address=one.address,
            state=one.state,  # type: ignore[arg-type] # a CHECK constraint knows them
            phase=one.phase,  # type: ignore[arg-type] # likewise
            error_code=one.error_code,
            error_detail=one.error_detail,
            said_at=one.said_at,
            last_seen_at=devices[one.device_id].last_seen_at,
        )
        for one in members
    ]
    return SitePlanView(
        site=site.name,
        number=plan.number,
        state=plan.state,  # type: ignore[arg-type] # likewise
        reason=plan.reason,
        tasks={
            name: said | {"routes": _named(said["routes"], devices)} for name, said in plan.content["tasks"].items()
        },
        modules=modules,
        placement=plan.content["placement"],
        tests=plan.content["tests"],
        members=sorted(shown, key=lambda one: one.name),
        warnings=_warnings(plan, members, devices, now or datetime.now(UTC)),
        digest=plan.digest,
        bytes=plan.bytes,
        made_by=plan.made_by,
        created_at=plan.created_at,
        applied_at=plan.applied_at,
        deadline_at=plan.deadline_at,
        switched_at=plan.switched_at,
        expires_at=plan.expires_at,
        ended_at=plan.ended_at,
    )


def _named(
    routes: Mapping[str, Mapping[str, Sequence[str]]], devices: Mapping[UUID, Device]
) -> dict[str, dict[str, list[str]]]:
    """Return routes by the names of devices."""
    return {
        devices[UUID(device)].name: {step: [devices[UUID(host)].name for host in way] for step, way in said.items()}
        for device, said in routes.items()
    }


def _warnings(
    plan: SitePlanRow, members: Sequence[SitePlanMember], devices: Mapping[UUID, Device], now: datetime
) -> list[str]:
    """Return what stands in the way of answers by a plan now."""
    if plan.state not in SIGNED:
        return []
    found = []
    for member in members:
        device = devices[member.device_id]
        if member.state == MemberStatus.LEFT:
            found.append(f"{device.name} left")
            continue
        if member.state == MemberStatus.REFUSED:
            found.append(f"{device.name} refused: {member.error_code}")
        elif plan.state == PlanStatus.SERVING and member.state != MemberStatus.SERVING:
            found.append(f"{device.name} has not said that it serves")
        if device.last_seen_at is not None and device.last_seen_at < now - _SILENT:
            found.append(f"{device.name} was not heard since {device.last_seen_at:%Y-%m-%d %H:%M} UTC")
        if device.attributes.get(ADDRESS) != member.address:
            found.append(
                f"{device.name} is at {device.attributes.get(ADDRESS)} now, not at {member.address}; plan anew"
            )
    if plan.expires_at is not None and plan.expires_at < now + _SOON:
        found.append(f"it ends at {plan.expires_at:%Y-%m-%d %H:%M} UTC")
    return sorted(found)


def preview(session: Session, site: Site, plan: SitePlanRow) -> SitePlanPreview:
    """Return what applying a plan would do: who fetches what in how many bytes, and who holds how much."""
    rows = records.devices_of(session, site)
    devices = _devices(session, [row.device_id for row in rows])
    modules: Mapping[str, Any] = plan.content["modules"]
    old = records.in_state(session, site.id, PlanStatus.SERVING)
    before: Mapping[str, Any] = {} if old is None or old.id == plan.id else old.content["modules"]
    fetches = {one.device_id: _fetches(session, one.device_id, modules) for one in rows}
    members = [
        MemberPreview(
            device=row.device_id,
            name=devices[row.device_id].name,
            memory_bytes=row.memory_bytes,
            holds_bytes=_held_bytes(row.device_id, [modules]),
            while_replacing_bytes=_held_bytes(row.device_id, [modules, before]),
            fetches=fetches[row.device_id],
        )
        for row in rows
    ]
    return SitePlanPreview(
        site=site.name,
        number=plan.number,
        members=sorted(members, key=lambda one: one.name),
        figures=(plan.content["placement"] or {}).get("figures"),
        obstacles=obstacles(session, site, plan),
    )


def obstacles(session: Session, site: Site, plan: SitePlanRow) -> list[str]:
    """Return what stands in the way of applying a plan."""
    found = []
    if plan.state != PlanStatus.PLANNED:
        found.append(f"it is {plan.state}, and a plan is applied once; plan anew")
    elif plan.number < (newest := records.newest_applied(session, site)):
        found.append(f"plan {newest} was applied since, and this one was made for what was before; plan anew")
    if (other := records.in_state(session, site.id, *UNDER_WAY)) is not None and other.id != plan.id:
        found.append(f"plan {other.number} is {other.state}; abort it, or let it end")
    rows = records.devices_of(session, site)
    devices = _devices(session, [row.device_id for row in rows])
    modules: Mapping[str, Any] = plan.content["modules"]
    hosts = {UUID(host) for said in modules.values() for host in said["hosts"]}
    for device in devices.values():
        if device.revoked_at is not None:
            found.append(f"{device.name} was revoked; take it out of the site")
            continue
        try:
            address_of(device, holds=device.id in hosts)
        except InvalidInput as bad:
            found.append(str(bad))
    strangers = _devices(session, hosts - devices.keys()).values()
    found += [f"{device.name} is of the site no more; plan anew" for device in strangers]
    for row in rows:
        holds = _held_bytes(row.device_id, [modules])
        if row.memory_bytes is not None and holds > row.memory_bytes:
            name = devices[row.device_id].name
            found.append(f"the modules of {name} take {holds} bytes, and it has {row.memory_bytes} for them")
    return found + _of_releases(session, modules)


def _of_releases(session: Session, modules: Mapping[str, Any]) -> list[str]:
    found = []
    for name, said in sorted(modules.items()):
        model, number = registry.get_model(session, name), said["release"]
        if number in quarantine.quarantined(session, model.id):
            found.append(f"{name}@{number} is in quarantine; take another release")
        to_fetch = lacking(session, model.id, number, [UUID(host) for host in said["hosts"]])
        rollout = rollouts.live_rollout(session, model.id)
        if to_fetch and rollout is not None:
            found.append(
                f"rollout {rollout.id} of {name} is {rollout.state}, and fetching {name}@{number} would take devices "
                "from it; let it end first"
            )
    return found


def _fetches(session: Session, device: UUID, modules: Mapping[str, Any]) -> list[FetchPreview]:
    """Return what a device lacks of the modules that it is to hold, and the bytes of the cheapest way there."""
    found = []
    for name, said in sorted(modules.items()):
        model, number = registry.get_model(session, name), said["release"]
        if str(device) in said["hosts"] and lacking(session, model.id, number, [device]):
            found.append(FetchPreview(model=name, release=number, bytes=_bytes(session, model, number, device)))
    return found


def _bytes(session: Session, model: Model, number: int, device: UUID) -> int:
    slots = fleet.slots(session, device_ids=[device], model_id=model.id).get((device, model.id))
    held = [] if slots is None else [one for one in (slots.active, slots.previous) if one is not None]
    return sum(step.bytes for step in paths.cheapest_from(registry.all_updates(session, model), held, number))


def _held_bytes(device: UUID, plans: Iterable[Mapping[str, Any]]) -> int:
    """Return the memory of the modules that a device holds by some plans, each release once."""
    held = {
        said["id"]: int(said["memory_bytes"])
        for modules in plans
        for said in modules.values()
        if str(device) in said["hosts"]
    }
    return sum(held.values())


def _devices(session: Session, ids: Iterable[UUID]) -> dict[UUID, Device]:
    rows = session.scalars(select(Device).where(among(Device.id, list(ids))))
    return {row.id: row for row in rows}
