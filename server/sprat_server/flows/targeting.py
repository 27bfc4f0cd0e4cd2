"""Which devices are meant: filters over fleet and registry, and saved groups kept as devices change.

Callers own the transaction. Filters name models by name; here they get their ids.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy import ColumnElement, exists, func, select
from sqlalchemy.orm import Session

from sprat_server.db.sets import among
from sprat_server.fleet import groups, labels
from sprat_server.fleet import service as fleet
from sprat_server.fleet.filter_grammar import parse, pointing
from sprat_server.fleet.filter_sql import condition
from sprat_server.fleet.filters import DeviceFacts, Expression, ModelState
from sprat_server.fleet.groups import Moved
from sprat_server.fleet.models import Device, SavedGroup, SavedGroupMember
from sprat_server.fleet.schemas import BulkLabels, Preview, PreviewView
from sprat_server.flows.fleet_views import device_views
from sprat_server.observe.actors import Actor
from sprat_server.registry.models import Model
from sprat_shared.errors import Conflict, InvalidInput


def read(session: Session, text: str) -> Expression:
    """Read a filter whose models exist.

    Raises:
        BadFilter: it cannot be read, or names a model that does not exist.
    """
    expression = parse(text)
    known = _ids(session, expression.models)
    for name, at in expression.models.items():
        if name not in known:
            there = session.scalars(select(Model.name).order_by(Model.name).limit(10)).all()
            raise pointing(text, at, f"there is no model {name!r}; known are {', '.join(there) or 'none yet'}")
    return expression


def fits(session: Session, expression: Expression, now: datetime | None = None) -> ColumnElement[bool]:
    """Return the condition on `Device` that a filter stands for."""
    return condition(expression.root, _ids(session, expression.models), now or datetime.now(UTC))


def matching(session: Session, text: str, devices: Iterable[UUID] | None = None) -> set[UUID]:
    """Return the live devices for which a filter holds, among some of them or (None) in the whole fleet.

    Raises:
        BadFilter: as `read`.
    """
    query = select(Device.id).where(Device.revoked_at.is_(None), fits(session, read(session, text)))
    return set(session.scalars(query if devices is None else query.where(among(Device.id, devices))))


def members(session: Session, name: str) -> set[UUID]:
    """Return the devices of a saved group. Raises NotFound."""
    group = groups.find(session, name)
    return set(session.scalars(select(SavedGroupMember.device_id).where(SavedGroupMember.group_id == group.id)))


def preview(session: Session, asked: Preview) -> PreviewView:
    """Return how many live devices a filter or a saved group means, and the first of them by name.

    Raises:
        InvalidInput: it says neither, or both.
        BadFilter, NotFound: the filter cannot be read; there is no such group.
    """
    query = select(Device).where(Device.revoked_at.is_(None), meant(session, where=asked.where, group=asked.group))
    live = select(func.count()).select_from(Device).where(Device.revoked_at.is_(None))
    return PreviewView(
        count=session.scalar(select(func.count()).select_from(query.subquery())) or 0,
        live=session.scalar(live) or 0,
        sample=device_views(session, session.scalars(query.order_by(Device.name).limit(asked.limit)).all()),
    )


def meant(session: Session, *, where: str | None, group: str | None) -> ColumnElement[bool]:
    """Return the condition on `Device` of a filter, or of being in a saved group: one of both.

    Raises:
        InvalidInput: it says neither, or both.
        BadFilter, NotFound: the filter cannot be read; there is no such group.
    """
    if (where is None) == (group is None):
        raise InvalidInput("say which devices: by a filter (where), or by a saved group (group)", code="filter.which")
    if where is not None:
        return fits(session, read(session, where))
    inside = SavedGroupMember.group_id == groups.find(session, group or "").id
    return exists().where(inside, SavedGroupMember.device_id == Device.id).correlate(Device)


def label(session: Session, device_id: UUID, changes: Mapping[str, str | None]) -> tuple[Device, dict[str, str]]:
    """Change the labels of a device; return it, and the labels before.

    Raises:
        NotFound: there is none of this id.
        Conflict: it was revoked.
        InvalidInput: a label cannot be one, or they would be too many.
    """
    groups.share(session)
    device = fleet.lock_device(session, device_id)
    if device.revoked_at is not None:
        raise Conflict(f"device {device.name!r} was revoked, and for good", code="device.is-revoked")
    before = labels.change(device, changes)
    session.flush()
    look_again(session, device_id)
    return device, before


def label_all(session: Session, asked: BulkLabels) -> int:
    """Change the labels of all live devices that a filter or a saved group means, together; return how many those are.

    Groups are refilled once, not for each device.

    Raises:
        InvalidInput, BadFilter, NotFound: as `meant`.
        InvalidInput: a label cannot be one, or some device would have too many; then none is changed.
    """
    groups.hold(session)
    means = meant(session, where=asked.where, group=asked.group)
    query = select(Device).where(Device.revoked_at.is_(None), means).order_by(Device.id)
    devices = session.scalars(query.with_for_update(of=Device)).all()
    for device in devices:
        labels.change(device, asked.labels)
    session.flush()
    for group in groups.groups(session):
        groups.refill(session, group, fits(session, parse(group.expression)))
    return len(devices)


def counted(session: Session, *, where: str | None, group: str | None, devices: int) -> list[UUID]:
    """Return the live devices that a filter or a saved group means, if they are as many as was seen before.

    Raises:
        InvalidInput, BadFilter, NotFound: as `meant`.
        Conflict: they are more, or fewer.
    """
    query = select(Device.id).where(Device.revoked_at.is_(None), meant(session, where=where, group=group))
    found = list(session.scalars(query.order_by(Device.id)))
    if len(found) != devices:
        raise Conflict(
            f"{len(found)} devices are meant, not {devices}; look at them again (sprat device list --where …, or "
            "POST /devices/preview), then say how many there are",
            code="device.other-count",
        )
    return found


def create_group(session: Session, name: str, text: str, by: Actor) -> SavedGroup:
    """Save a filter under a name, with the devices for which it holds now.

    Raises:
        BadFilter: as `read`.
        Conflict: there is a group of this name.
    """
    expression = read(session, text)
    groups.hold(session)
    group = groups.create(session, name, expression, by)
    groups.refill(session, group, fits(session, expression))
    return group


def edit_group(session: Session, name: str, text: str) -> tuple[SavedGroup, Moved]:
    """Give a group another filter, and the devices for which that holds. Raises BadFilter, NotFound."""
    expression = read(session, text)
    groups.hold(session)
    group = groups.find(session, name)
    groups.edit(session, group, expression)
    return group, groups.refill(session, group, fits(session, expression))


def refill_moving(session: Session, now: datetime | None = None) -> dict[str, Moved]:
    """Look again at the groups whose devices come and go by themselves; return those that changed."""
    moving = [group for group in groups.groups(session) if group.moves]
    if not moving:
        return {}
    groups.hold(session)
    moved = {}
    for group in moving:
        change = groups.refill(session, group, fits(session, parse(group.expression), now))
        if change.joined or change.left:
            moved[group.name] = change
    return moved


def share(session: Session) -> None:
    """Take the lock under which what is known of a device may change: before the device is locked."""
    groups.share(session)


def look_again(session: Session, device_id: UUID, now: datetime | None = None) -> Moved:
    """Look at one device again: what is known of it has changed. The caller has shared the lock (`share`).

    Takes one statement where there is no group, otherwise at most seven, however large the fleet is.
    """
    saved = groups.groups(session)
    if not saved:
        return Moved(0, 0)
    device = fleet.get_device(session, device_id)
    facts = None if device.revoked_at is not None else facts_of(session, [device])[device_id]
    return groups.place(session, device_id, facts, saved, now or datetime.now(UTC))


def facts_of(session: Session, devices: Sequence[Device]) -> dict[UUID, DeviceFacts]:
    """Return what filters know of devices, in two statements."""
    held = fleet.slots(session, device_ids=[device.id for device in devices])
    ids = {model_id for _, model_id in held}
    names = dict(session.execute(select(Model.id, Model.name).where(Model.id.in_(ids))).all()) if ids else {}
    models: dict[UUID, dict[str, ModelState]] = {device.id: {} for device in devices}
    for (device_id, model_id), row in held.items():
        models[device_id][names[model_id]] = ModelState(
            active=row.active, previous=row.previous, outcome=row.outcome, reported=row.reported_at
        )
    return {
        device.id: DeviceFacts(
            name=device.name,
            site=device.device_group,
            profile=device.profile,
            agent=device.agent,
            enrolled=device.enrolled_at,
            last_seen=device.last_seen_at,
            labels=device.labels,
            attributes=device.attributes,
            models=models[device.id],
        )
        for device in devices
    }


def _ids(session: Session, names: Mapping[str, int]) -> dict[str, UUID]:
    if not names:
        return {}
    return dict(session.execute(select(Model.name, Model.id).where(Model.name.in_(names))).all())
