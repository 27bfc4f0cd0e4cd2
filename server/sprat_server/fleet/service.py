"""Assign releases to devices, let devices go. Callers own the transaction."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal
from uuid import UUID

from sqlalchemy import Select, and_, bindparam, delete, exists, func, insert, select, tuple_, update
from sqlalchemy.orm import Session

from sprat_server.db.sets import among, among_pairs
from sprat_server.fleet.models import Assignment, Device, DeviceReport, DeviceSlots
from sprat_shared.errors import Conflict, InvalidInput, NotFound
from sprat_shared.protocol.enrol import PLAYED

Reason = Literal["rollout", "return", "enrolment", "prefetch", "step-down", "site"]


def get_device(session: Session, device_id: UUID) -> Device:
    """Return the device.

    Raises:
        NotFound: there is none of this id.
    """
    device = session.get(Device, device_id)
    if device is None:
        raise NotFound(f"there is no device {device_id}; `sprat device list` shows them", code="device.unknown")
    return device


def named_device(session: Session, name: str) -> Device:
    """Return the device of this name that is not revoked.

    Raises:
        NotFound: there is none.
    """
    device = session.scalar(select(Device).where(Device.name == name, Device.revoked_at.is_(None)))
    if device is None:
        raise NotFound(f"there is no device called {name!r:.80}; `sprat device list` shows them", code="device.unknown")
    return device


def names(session: Session, device_ids: Iterable[UUID]) -> dict[UUID, str]:
    """Return what people call these devices."""
    rows = session.execute(select(Device.id, Device.name).where(among(Device.id, device_ids)))
    return dict(rows.all())


def lock_device(session: Session, device_id: UUID) -> Device:
    """Return the device with its row locked until the transaction ends; NotFound as `get_device`."""
    get_device(session, device_id)
    locked = select(Device).where(Device.id == device_id).with_for_update()
    return session.scalars(locked.execution_options(populate_existing=True)).one()


def live_devices(session: Session) -> list[UUID]:
    """Return the ids of all devices that are not revoked."""
    return list(session.scalars(select(Device.id).where(Device.revoked_at.is_(None)).order_by(Device.id)))


def require_live(session: Session, device_ids: Sequence[UUID]) -> None:
    """Return if all these devices exist and none is revoked.

    Raises:
        NotFound: there is no device of one of the ids.
        Conflict: one of them was revoked.
    """
    known = select(Device.id, Device.revoked_at).where(among(Device.id, device_ids))
    revoked_at: dict[UUID, datetime | None] = dict(session.execute(known).all())
    for device_id in device_ids:
        if device_id not in revoked_at:
            get_device(session, device_id)  # says so
        elif revoked_at[device_id] is not None:
            raise Conflict(f"device {device_id} was revoked; leave it out", code="device.revoked")


def require_played(session: Session, device_ids: Sequence[UUID] | None) -> None:
    """Return if all these devices are only played; None stands for the whole fleet, which never is.

    Raises:
        InvalidInput: one is real.
    """
    if device_ids is None:
        raise InvalidInput("a rehearsal names the played devices that it is for", code="rollout.rehearsal")
    real = select(Device.name).where(~Device.attributes.contains(PLAYED), among(Device.id, device_ids)).limit(1)
    if (name := session.scalar(real)) is not None:
        raise InvalidInput(f"a rehearsal is for played devices, and {name} is real", code="rollout.rehearsal")


def played_devices(session: Session) -> set[UUID]:
    """Return the ids of the devices that are only played and have not left: what they report is no evidence."""
    played = select(Device.id).where(Device.revoked_at.is_(None), Device.attributes.contains(PLAYED))
    return set(session.scalars(played))


def revoke(session: Session, device_id: UUID) -> Device:
    """Refuse the device from now on; revoking it again changes nothing.

    Raises:
        NotFound: there is none of this id.
    """
    device = lock_device(session, device_id)
    if device.revoked_at is None:
        device.revoked_at = datetime.now(UTC)
        session.flush()
    return device


def forget_slots(session: Session, device_id: UUID) -> None:
    """Believe no more that a device holds releases: they need not be kept for it."""
    session.execute(delete(DeviceSlots).where(DeviceSlots.device_id == device_id))


def assign(session: Session, model_id: UUID, wishes: Mapping[UUID, int | None], reason: Reason) -> dict[UUID, int]:
    """Assign a release (None: withdraw the wish) to each device; return the counters.

    Each device's counter rises by one. Rows are locked in the order of ids, so that two callers cannot block each
    other for ever. Revoked devices are left out.
    """
    live = select(Device.id).where(among(Device.id, wishes), Device.revoked_at.is_(None)).order_by(Device.id)
    locked = session.scalars(live.with_for_update()).all()
    if not locked:
        return {}
    _forget_previous_of_the_unanswered(session, model_id, locked)
    counters = dict(
        session.execute(
            update(Device)
            .where(among(Device.id, locked))
            .values(assignment_counter=Device.assignment_counter + 1)
            .returning(Device.id, Device.assignment_counter)
            .execution_options(synchronize_session=False)
        ).all()
    )
    session.execute(
        insert(Assignment),
        [
            {"device_id": device, "counter": counter, "model_id": model_id, "number": wishes[device], "reason": reason}
            for device, counter in counters.items()
        ],
    )
    for device in session.identity_map.values():
        if isinstance(device, Device) and device.id in counters:
            session.refresh(device)
    return counters


def _forget_previous_of_the_unanswered(session: Session, model_id: UUID, device_ids: Sequence[UUID]) -> None:
    """Believe no more that devices which have not answered hold their previous release: a trial gives it up.

    A newer assignment ends a trial without a report. What a device starts an update from must be there; a wrong
    belief would cost it the full update.
    """
    newest = (
        select(Assignment.device_id, func.max(Assignment.counter))
        .where(among(Assignment.device_id, device_ids), Assignment.model_id == model_id)
        .group_by(Assignment.device_id)
    )
    session.execute(
        update(DeviceSlots)
        .where(
            DeviceSlots.model_id == model_id,
            DeviceSlots.device_id == Assignment.device_id,
            tuple_(Assignment.device_id, Assignment.counter).in_(newest),
            Assignment.number.is_distinct_from(DeviceSlots.active),
            ~exists().where(
                DeviceReport.device_id == Assignment.device_id, DeviceReport.assignment == Assignment.counter
            ),
        )
        .values(previous=None)
        .execution_options(synchronize_session=False)
    )


def current_assignments(
    session: Session, *, device_ids: Iterable[UUID] | None = None, model_id: UUID | None = None
) -> list[Assignment]:
    """Return the newest assignment of each device and model, of some devices or one model."""
    newest = select(Assignment.device_id, func.max(Assignment.counter)).group_by(
        Assignment.device_id, Assignment.model_id
    )
    if device_ids is not None:
        newest = newest.where(among(Assignment.device_id, device_ids))
    if model_id is not None:
        newest = newest.where(Assignment.model_id == model_id)
    query = select(Assignment).where(tuple_(Assignment.device_id, Assignment.counter).in_(newest))
    return list(session.scalars(query))


def assigned(session: Session, counters: Mapping[UUID, int]) -> dict[UUID, int | None]:
    """Return the release that an assignment of each device names, by its counter; None: it withdrew a wish."""
    rows = session.execute(
        select(Assignment.device_id, Assignment.number).where(
            among_pairs(Assignment.device_id, Assignment.counter, counters)
        )
    )
    return dict(rows.all())


def running_assignments(session: Session, model_id: UUID, device_ids: Iterable[UUID] | None = None) -> list[Assignment]:
    """Return what says which release each device (some, or all) that is not revoked should run, as `running_wishes`."""
    live = _newest_running(model_id).join(Device, Device.id == Assignment.device_id).where(Device.revoked_at.is_(None))
    if device_ids is not None:
        live = live.where(among(Assignment.device_id, device_ids))
    return list(session.scalars(select(Assignment).where(tuple_(Assignment.device_id, Assignment.counter).in_(live))))


def running_wishes(session: Session, model_id: UUID, device_ids: Iterable[UUID]) -> dict[UUID, int | None]:
    """Return the release of a model that each device should run, whatever it was asked to fetch ahead since."""
    newest = _newest_running(model_id).where(among(Assignment.device_id, device_ids))
    rows = select(Assignment.device_id, Assignment.number)
    return dict(session.execute(rows.where(tuple_(Assignment.device_id, Assignment.counter).in_(newest))).all())


def _newest_running(model_id: UUID) -> Select[UUID, int]:
    return (
        select(Assignment.device_id, func.max(Assignment.counter))
        .where(Assignment.model_id == model_id, Assignment.reason != "prefetch")
        .group_by(Assignment.device_id)
    )


def slots(
    session: Session, *, device_ids: Iterable[UUID] | None = None, model_id: UUID | None = None
) -> dict[tuple[UUID, UUID], DeviceSlots]:
    """Return what devices hold, by (device, model)."""
    query = select(DeviceSlots)
    if device_ids is not None:
        query = query.where(among(DeviceSlots.device_id, device_ids))
    if model_id is not None:
        query = query.where(DeviceSlots.model_id == model_id)
    return {(row.device_id, row.model_id): row for row in session.scalars(query)}


@dataclass(frozen=True, slots=True)
class Holders:
    """Devices that hold the same of a model and should run the same.

    Attributes:
        active: number of the release that serves.
        previous: of the one they can go back to.
        assigned: of the one that they should run.
        devices: how many they are.
    """

    active: int
    previous: int | None
    assigned: int | None
    devices: int


def holders(session: Session, model_id: UUID) -> list[Holders]:
    """Return what the devices that are not revoked hold of a model, as far as their reports say."""
    newest = (
        select(Assignment.device_id, func.max(Assignment.counter).label("counter"))
        .where(Assignment.model_id == model_id)
        .group_by(Assignment.device_id)
        .subquery()
    )
    held = (DeviceSlots.active, DeviceSlots.previous, Assignment.number)
    rows = session.execute(
        select(*held, func.count())
        .join(Device, Device.id == DeviceSlots.device_id)
        .outerjoin(newest, newest.c.device_id == DeviceSlots.device_id)
        .outerjoin(
            Assignment,
            and_(Assignment.device_id == newest.c.device_id, Assignment.counter == newest.c.counter),
        )
        .where(DeviceSlots.model_id == model_id, DeviceSlots.active.is_not(None), Device.revoked_at.is_(None))
        .group_by(*held)
    )
    return [
        Holders(active, previous, assigned, devices)
        for active, previous, assigned, devices in rows
        if active is not None
    ]


def mark_seen(session: Session, seen: Mapping[UUID, datetime]) -> None:
    """Write when devices were last seen; rows that another transaction holds are skipped until the next batch."""
    free = session.scalars(
        select(Device.id).where(among(Device.id, seen)).order_by(Device.id).with_for_update(skip_locked=True)
    ).all()
    if free:
        session.connection().execute(
            update(Device).where(Device.id == bindparam("seen_id")).values(last_seen_at=bindparam("seen_at")),
            [{"seen_id": device, "seen_at": seen[device]} for device in free],
        )
