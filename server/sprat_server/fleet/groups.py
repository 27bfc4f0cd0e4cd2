"""Saved groups: which devices are in them, kept by each device's changes. Callers own the transaction.

A device's change looks at that device only (`place`), a new or edited filter at the whole fleet once (`refill`), and
so does upkeep for the filters whose devices come and go by themselves (`SavedGroup.moves`). Whoever changes what is
known of a device shares a lock before it locks the device; whoever refills a group holds it alone: no device changes
unseen between a group's filter and its members.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from sqlalchemy import ColumnElement, delete, exists, func, insert, literal, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from sprat_server.fleet.filter_grammar import parse
from sprat_server.fleet.filters import DeviceFacts, Expression, holds
from sprat_server.fleet.models import Device, SavedGroup, SavedGroupMember
from sprat_server.observe.actors import Actor
from sprat_shared.errors import Conflict, NotFound

_LOCK: Final = 0x5350_5241_5444  # an arbitrary number that only this lock uses


@dataclass(frozen=True, slots=True)
class Moved:
    """How many devices came into a group, and how many left it."""

    joined: int
    left: int


def share(session: Session) -> None:
    """Let nobody refill a group until the transaction ends; before a device is locked whose facts will change."""
    session.execute(select(func.pg_advisory_xact_lock_shared(_LOCK)))


def hold(session: Session) -> None:
    """Let no device's facts change until the transaction ends; before a group is refilled."""
    session.execute(select(func.pg_advisory_xact_lock(_LOCK)))


def find(session: Session, name: str) -> SavedGroup:
    """Return the group of this name.

    Raises:
        NotFound: there is none.
    """
    group = session.scalar(select(SavedGroup).where(SavedGroup.name == name))
    if group is None:
        raise NotFound(f"there is no group {name!r:.80}; `sprat group list` shows them", code="group.unknown")
    return group


def create(session: Session, name: str, expression: Expression, by: Actor) -> SavedGroup:
    """Add a group, which has no member before it is filled.

    Raises:
        Conflict: there is one of this name.
    """
    group = SavedGroup(name=name, expression=expression.text, moves=expression.moves, created_by=str(by))
    try:
        with session.begin_nested():
            session.add(group)
    except IntegrityError as clash:
        if "uq_saved_group_project_id_name" not in str(clash.orig):
            raise
        raise Conflict(
            f"a group {name!r} exists; `sprat group edit {name}` changes its filter", code="group.name-taken"
        ) from clash
    session.refresh(group)
    return group


def edit(session: Session, group: SavedGroup, expression: Expression) -> None:
    """Give a group another filter; its members are those of the old one before it is refilled."""
    group.expression, group.moves, group.edited_at = expression.text, expression.moves, datetime.now(UTC)
    session.flush()


def remove(session: Session, group: SavedGroup) -> None:
    """Delete a group, and that devices are in it."""
    session.delete(group)
    session.flush()


def refill(session: Session, group: SavedGroup, fits: ColumnElement[bool]) -> Moved:
    """Have exactly the live devices in a group for which a condition holds, in two statements."""
    live = (Device.revoked_at.is_(None), fits)
    still = exists().where(Device.id == SavedGroupMember.device_id, *live).correlate(SavedGroupMember)
    left = session.execute(
        delete(SavedGroupMember)
        .where(SavedGroupMember.group_id == group.id, ~still)
        .execution_options(synchronize_session=False)
    )
    member = exists().where(SavedGroupMember.group_id == group.id, SavedGroupMember.device_id == Device.id)
    missing = select(literal(group.id), Device.id).where(*live, ~member.correlate(Device))
    into = insert(SavedGroupMember).from_select(["group_id", "device_id"], missing)
    joined = session.execute(into.execution_options(preserve_rowcount=True))
    return Moved(joined=joined.rowcount, left=left.rowcount)  # type: ignore[attr-defined]  # of a cursor's result


def groups(session: Session) -> Sequence[SavedGroup]:
    """Return all groups, by name."""
    return session.scalars(select(SavedGroup).order_by(SavedGroup.name)).all()


def place(
    session: Session, device_id: UUID, facts: DeviceFacts | None, among: Sequence[SavedGroup], now: datetime
) -> Moved:
    """Put a device into the groups whose filter holds for it, and take it out of the others.

    Args:
        session: the caller's transaction.
        device_id: which device.
        facts: what is known of it; None: it left the fleet.
        among: all groups.
        now: what moving times are counted from.
    """
    of_device = SavedGroupMember.device_id == device_id
    is_in = set(session.scalars(select(SavedGroupMember.group_id).where(of_device)))
    should = set() if facts is None else {one.id for one in among if holds(parse(one.expression).root, facts, now)}
    if left := is_in - should:
        session.execute(
            delete(SavedGroupMember)
            .where(of_device, SavedGroupMember.group_id.in_(left))
            .execution_options(synchronize_session=False)
        )
    if joined := should - is_in:
        session.execute(insert(SavedGroupMember), [{"group_id": one, "device_id": device_id} for one in joined])
    return Moved(joined=len(joined), left=len(left))


def counts(session: Session) -> dict[UUID, int]:
    """Return how many devices are in each group that has any."""
    members = SavedGroupMember.group_id
    return dict(session.execute(select(members, func.count()).group_by(members)).all())


def count(session: Session, group: SavedGroup) -> int:
    """Return how many devices are in a group."""
    inside = select(func.count()).select_from(SavedGroupMember).where(SavedGroupMember.group_id == group.id)
    return session.scalar(inside) or 0
