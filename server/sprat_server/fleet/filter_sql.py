"""What a filter says, as a condition over devices in SQL; `filters.holds` means the same (a test holds them equal)."""

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from sqlalchemy import ColumnElement, Numeric, and_, case, cast, exists, false, func, not_, or_, select

from sprat_server.fleet.filters import (
    COMPARISONS,
    FAILED,
    NUMBER_TEXT,
    All,
    Compare,
    Fact,
    Flag,
    Has,
    Kind,
    Node,
    Not,
    OneOf,
    Some,
    Value,
    moment,
)
from sprat_server.fleet.models import Device, DeviceSlots

_COLUMNS: Final[Mapping[str, Any]] = {
    "name": Device.name,
    "site": Device.device_group,
    "profile": Device.profile,
    "agent": Device.agent,
    "enrolled": Device.enrolled_at,
    "last_seen": Device.last_seen_at,
}
_MEMBERS: Final[Mapping[str, Any]] = {
    "active": DeviceSlots.active,
    "previous": DeviceSlots.previous,
    "reported": DeviceSlots.reported_at,
    "failed": DeviceSlots.outcome.in_(sorted(FAILED)),
}


def condition(node: Node, models: Mapping[str, UUID], now: datetime) -> ColumnElement[bool]:  # noqa: PLR0911 - one for each kind of node
    """Return what a filter says as a condition on `Device`, true or false for every row, never NULL.

    Args:
        node: what is said.
        models: the id of each model that it names.
        now: what moving times are counted from.
    """
    match node:
        case Not(part):
            return not_(condition(part, models, now))
        case All(parts):
            return and_(*(condition(part, models, now) for part in parts))
        case Some(parts):
            return or_(*(condition(part, models, now) for part in parts))
        case Has(fact):
            known: ColumnElement[bool] = _column(fact, models).is_not(None)
            return known
        case Flag(fact):
            return func.coalesce(_column(fact, models), false())
        case OneOf(fact, values):
            return func.coalesce(_comparable(fact, models, values[0]).in_(values), false())
        case Compare(fact, "~", pattern):
            fits = _column(fact, models).like(_like(str(pattern)), escape="\\")
            return func.coalesce(fits, false())
        case Compare(fact, op, value):
            compared = COMPARISONS[op](_comparable(fact, models, value), moment(value, now))
            return func.coalesce(compared, false())


def _comparable(fact: Fact, models: Mapping[str, UUID], value: Value) -> Any:
    column = _column(fact, models)
    if fact.kind == Kind.LOOSE and isinstance(value, Decimal):
        return case((column.regexp_match(f"^{NUMBER_TEXT}$"), cast(column, Numeric)))
    return column


def _column(fact: Fact, models: Mapping[str, UUID]) -> Any:
    match fact.root:
        case "labels":
            return Device.labels[fact.key].astext
        case "attributes":
            return Device.attributes[fact.key].astext
        case "failed":
            return exists().where(DeviceSlots.device_id == Device.id, _MEMBERS["failed"])
        case "model":
            held = (DeviceSlots.device_id == Device.id, DeviceSlots.model_id == models[fact.key])
            return select(_MEMBERS[fact.member]).where(*held).correlate(Device).scalar_subquery()
        case _:
            return _COLUMNS[fact.root]


def _like(pattern: str) -> str:
    plain = "".join("\\" + char if char in "\\%_" else char for char in pattern)
    return plain.replace("*", "%").replace("?", "_")
