"""The orders in which devices can be listed."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import SQLColumnExpression, func, literal

from sprat_server.db.paging import Order
from sprat_server.fleet.models import Device

_NEVER: Final = datetime(1970, 1, 1, tzinfo=UTC)  # when a device that was not seen yet was seen

_Column = tuple[SQLColumnExpression[Any], Callable[[Device], str], Callable[[str], Any]]
_COLUMNS: Final[Mapping[str, _Column]] = {
    "name": (Device.name, lambda device: device.name, str),
    "site": (Device.device_group, lambda device: device.device_group, str),
    "profile": (func.coalesce(Device.profile, ""), lambda device: device.profile or "", str),
    "agent": (Device.agent, lambda device: device.agent, str),
    "enrolled": (Device.enrolled_at, lambda device: device.enrolled_at.isoformat(), datetime.fromisoformat),
    "last_seen": (
        func.coalesce(Device.last_seen_at, literal(_NEVER)),
        lambda device: (device.last_seen_at or _NEVER).isoformat(),
        datetime.fromisoformat,
    ),
}
PATTERN: Final = f"^-?({'|'.join(_COLUMNS)})$"


def of(name: str) -> Order[Device]:
    """Return the order of this name, which matches `PATTERN`."""
    column, value, parse = _COLUMNS[name.removeprefix("-")]
    return Order(name=name, column=column, of=value, parse=parse, descending=name.startswith("-"))
