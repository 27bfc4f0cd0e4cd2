"""What sites and their plans look like: as they are, and what applying a plan would do. Only reads."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, Final
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from sprat_server.db.sets import among
from sprat_server.fleet.models import Device
from sprat_server.flows import site_fetching
from sprat_server.flows.site_addresses import ADDRESS, address_of
from sprat_server.placement.memory import lacking
from sprat_server.placement.schedule import Turn
from sprat_server.registry import service as registry
from sprat_server.rollouts import quarantine
from sprat_server.rollouts import service as rollouts
from sprat_server.sites import records
from sprat_server.sites.models import Site, SitePlanMember, SitePlanRow
from sprat_server.sites.previews import FetchPreview, MemberPreview, SitePlanPreview
from sprat_server.sites.schemas import SiteDeviceView, SitePlanMemberView, SitePlanModuleView, SitePlanView, SiteView
from sprat_server.sites.states import SIGNED, UNDER_WAY, MemberStatus, PlanStatus
from sprat_shared.errors import InvalidInput

NO_ROOM: Final = "site.no-room"
_WAYS: Final = {
    "": "; plan anew",
    "infeasible": ", and no plans in between help: of up to three there are none",
    "nothing": ", and no plans in between were found in the time; give it more --seconds",
}
_SILENT: Final = timedelta(minutes=30)
_SOON: Final = timedelta(days=7)


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
    fetching = site_fetching.progress(session, plan, members)
    shown = [
        SitePlanMemberView(
            device=one.device_id,
            name=devices[one.device_id].name,
            address=one.address,
            state=one.state,  # type: ignore[arg-type] # a CHECK constraint knows them
            phase=one.phase,  # type: ignore[arg-type] # likewise
            fetching=fetching.get(one.device_id, (None, None))[0],
            turn_at=fetching.get(one.device_id, (None, None))[1],
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
        cause=plan.cause,  # type: ignore[arg-type] # likewise
        parent=plan.parent,
        improvement=plan.improvement,
        steps=[one.number for one in records.steps_of(session, plan)],
        wished_by=plan.wished_by,
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
    planned = site_fetching.planned(session, site, modules)
    members = [
        MemberPreview(
            device=row.device_id,
            name=devices[row.device_id].name,
            memory_bytes=row.memory_bytes,
            holds_bytes=_held_bytes(row.device_id, [modules]),
            while_replacing_bytes=_held_bytes(row.device_id, [modules, before]),
            fetches=_fetches(planned.turns.get(row.device_id), modules),
        )
        for row in rows
    ]
    return SitePlanPreview(
        site=site.name,
        number=plan.number,
        members=sorted(members, key=lambda one: one.name),
        figures=(plan.content["placement"] or {}).get("figures"),
        fetched_s=planned.schedule.ends_s,
        fetched_bound_s=planned.schedule.bound_s,
        steps=[one.number for one in records.steps_of(session, plan) if one.state == PlanStatus.PLANNED],
        obstacles=[
            *obstacles(session, site, plan),
            *(f"{one} ({NO_ROOM})" for one in short_of_memory(session, site, plan)),
        ],
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
    ends_s = site_fetching.planned(session, site, modules).schedule.ends_s
    if ends_s > site.hold_s:
        found.append(
            f"fetching takes {ends_s:.0f} s by what was said of the links, and all must be ready in "
            f"{site.hold_s:.0f} s; raise --hold-s, or say what the links carry"
        )
    return found + _of_releases(session, modules)


def short_of_memory(session: Session, site: Site, plan: SitePlanRow) -> list[str]:
    """Return which devices have no room for the modules of two plans at once, on the way from what serves to a plan."""
    serving = records.in_state(session, site.id, PlanStatus.SERVING)
    if serving is None or serving.id == plan.id:
        return []
    rows = records.devices_of(session, site)
    memory = {str(row.device_id): row.memory_bytes for row in rows if row.memory_bytes is not None}
    names = {str(one.id): one.name for one in _devices(session, [row.device_id for row in rows]).values()}
    steps = [one for one in records.steps_of(session, plan) if one.state == PlanStatus.PLANNED]
    way, found = [serving, *steps, plan], []
    for before, after in pairwise(way):
        for device, nbytes in sorted(lacking(memory, _sizes(before, after), _held(before), _held(after)).items()):
            found.append(
                f"{names[device]} lacks {nbytes} bytes for the modules of plans {before.number} and {after.number} at "
                f"once, which it holds while one takes the place of the other{_WAYS[_way_to(plan)]}"
            )
    return found


def _way_to(plan: SitePlanRow) -> str:
    """Return what is known of plans in between that lead to a plan."""
    between = plan.content.get("between")
    return "" if between is None or between["steps"] else str(between["proven"])


def _held(plan: SitePlanRow) -> dict[str, frozenset[str]]:
    return {said["id"]: frozenset(said["hosts"]) for said in plan.content["modules"].values()}


def _sizes(*plans: SitePlanRow) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for said in (said for plan in plans for said in plan.content["modules"].values()):
        sizes[said["id"]] = max(sizes.get(said["id"], 0), int(said["memory_bytes"]))
    return sizes


def _of_releases(session: Session, modules: Mapping[str, Any]) -> list[str]:
    found = []
    for name, said in sorted(modules.items()):
        model, number = registry.get_model(session, name), said["release"]
        if number in quarantine.quarantined(session, model.id):
            found.append(f"{name}@{number} is in quarantine; take another release")
        to_fetch = site_fetching.lacking(session, model.id, number, [UUID(host) for host in said["hosts"]])
        rollout = rollouts.live_rollout(session, model.id)
        if to_fetch and rollout is not None:
            found.append(
                f"rollout {rollout.id} of {name} is {rollout.state}, and fetching {name}@{number} would take devices "
                "from it; let it end first"
            )
    return found


def _fetches(turn: Turn | None, modules: Mapping[str, Any]) -> list[FetchPreview]:
    return [
        FetchPreview(
            model=one.module,
            release=modules[one.module]["release"],
            bytes=one.nbytes,
            starts_s=one.starts_s,
            ends_s=one.ends_s,
        )
        for one in (() if turn is None else turn.fetches)
    ]


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
