"""Saved groups: filters of devices under a name, and what they look like."""

from typing import TypedDict, cast

from sprat_client.api.transport import Transport
from sprat_client.api.views import DeviceView


class PreviewView(TypedDict):
    """How many live devices are meant, of how many; some of them, by name."""

    count: int
    live: int
    sample: list[DeviceView]


class GroupView(TypedDict):
    """A saved group; `moves`: devices come and go by themselves, and are looked at once a minute."""

    id: str
    name: str
    where: str
    moves: bool
    devices: int
    created_by: str
    created_at: str
    edited_at: str | None


class Groups:
    """Filters of devices under a name, and the devices for which they hold."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, name: str, where: str) -> GroupView:
        """Save a filter under a name."""
        return cast("GroupView", self._transport.post("/groups", {"name": name, "where": where}))

    def get(self, name: str) -> GroupView:
        """Return one group."""
        return cast("GroupView", self._transport.get(f"/groups/{name}"))

    def edit(self, name: str, where: str) -> GroupView:
        """Give a group another filter."""
        return cast("GroupView", self._transport.put(f"/groups/{name}", {"where": where}))

    def delete(self, name: str) -> GroupView:
        """Delete a group."""
        return cast("GroupView", self._transport.delete(f"/groups/{name}"))

    def devices(self, name: str, *, limit: int | None = None) -> list[DeviceView]:
        """Return the devices of a group."""
        return list(self._transport.pages(f"/groups/{name}/devices", limit=limit))

    def list(self) -> list[GroupView]:
        """Return all groups, by name."""
        return list(self._transport.pages("/groups"))
