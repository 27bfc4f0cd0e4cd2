"""/api/v1/groups: filters of devices under a name, and the devices for which they hold."""

from typing import Annotated
from uuid import UUID

from fastapi import Path
from sqlalchemy import select

from sprat_server.access import audit
from sprat_server.api.auth import Operator, Viewer
from sprat_server.api.described import raises
from sprat_server.api.paging import Page, Paging, SortedPaging
from sprat_server.api.preconditions import Seen
from sprat_server.api.routes import operators_router
from sprat_server.db.paging import take_page
from sprat_server.db.session import SessionDep
from sprat_server.fleet import groups
from sprat_server.fleet.models import Device, SavedGroup
from sprat_server.fleet.schemas import DeviceView, EditedGroup, GroupView, NewGroup
from sprat_server.flows import fleet_views, targeting

router = operators_router(prefix="/groups", tags=["groups"])

Name = Annotated[str, Path(max_length=63, description="Of the group.")]


@router.post("", status_code=201, responses=raises(conflict=["group.name-taken"]))
def create_group(body: NewGroup, session: SessionDep, operator: Operator) -> GroupView:
    """Save a filter under a name; from then on its devices are kept as they change."""
    group = targeting.create_group(session, body.name, body.where, by=operator)
    audit.record(session, operator, "group.create", f"group:{group.name}", after={"where": body.where})
    return _view(session, group)


@router.get("")
def list_groups(session: SessionDep, _viewer: Viewer, page: Paging) -> Page[GroupView]:
    """List saved groups, by name."""
    rows, following = take_page(
        session,
        select(SavedGroup),
        key=SavedGroup.name,
        parse=str,
        cursor=page.cursor,
        limit=page.limit,
        newest_first=False,
    )
    counts = groups.counts(session)
    return Page(items=[GroupView.of(row, counts.get(row.id, 0)) for row in rows], next=following)


@router.get("/{name}", responses=raises(not_found=["group.unknown"]))
def get_group(name: Name, session: SessionDep, _viewer: Viewer) -> GroupView:
    """Show a saved group."""
    return _view(session, groups.find(session, name))


@router.put("/{name}", responses=raises(not_found=["group.unknown"]))
def edit_group(name: Name, body: EditedGroup, session: SessionDep, operator: Operator, seen: Seen) -> GroupView:
    """Give a saved group another filter."""
    seen.require(session, f"group:{name}", lambda: _view(session, groups.find(session, name)))
    before = {"where": groups.find(session, name).expression}
    group, moved = targeting.edit_group(session, name, body.where)
    after = {"where": body.where, "joined": moved.joined, "left": moved.left}
    audit.record(session, operator, "group.edit", f"group:{name}", before, after)
    return _view(session, group)


@router.delete("/{name}", responses=raises(not_found=["group.unknown"]))
def delete_group(name: Name, session: SessionDep, operator: Operator, seen: Seen) -> GroupView:
    """Delete a saved group; its devices stay as they are."""
    seen.require(session, f"group:{name}", lambda: _view(session, groups.find(session, name)))
    group = groups.find(session, name)
    shown = _view(session, group)
    groups.remove(session, group)
    audit.record(session, operator, "group.delete", f"group:{name}", before={"where": shown.where})
    return shown


@router.get("/{name}/devices", responses=raises(not_found=["group.unknown"]))
def list_group_devices(name: Name, session: SessionDep, _viewer: Viewer, page: SortedPaging) -> Page[DeviceView]:
    """List the devices of a saved group, newest first."""
    rows, following = page.take(
        session, select(Device).where(targeting.meant(session, where=None, group=name)), key=Device.id, parse=UUID
    )
    return Page(items=fleet_views.device_views(session, rows), next=following)


def _view(session: SessionDep, group: SavedGroup) -> GroupView:
    return GroupView.of(group, groups.count(session, group))
