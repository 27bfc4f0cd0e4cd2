"""Devices: the fleet, and those that wait to join it."""

from collections.abc import Mapping, Sequence
from typing import Final, Literal, cast

from sprat_client.api.access_views import EnrolmentTokenView
from sprat_client.api.naming import is_full_id, unique_match
from sprat_client.api.targeting import PreviewView
from sprat_client.api.transport import Transport
from sprat_client.api.views import (
    DeviceView,
    EnrolmentRequestView,
    ReportView,
)

_LONGEST_NAME: Final = 100


class Devices:
    """The fleet."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def get(self, device_id: str) -> DeviceView:
        """Return one device with its assignments."""
        return cast("DeviceView", self._transport.get(f"/devices/{device_id}"))

    def reports(self, device_id: str, *, limit: int | None = None) -> list[ReportView]:
        """Return what a device reported, newest first, at most `limit` of it."""
        return list(self._transport.pages(f"/devices/{device_id}/reports", limit=limit))

    def revoke(self, device_id: str, *, reason: str) -> DeviceView:
        """Refuse a device at once and for good; rollouts wait for it no more."""
        return cast("DeviceView", self._transport.post(f"/devices/{device_id}/revoke", {"reason": reason}))

    def decommission(self, device_id: str, *, reason: str) -> DeviceView:
        """Let a device go for good: revoke it and forget what it holds."""
        return cast("DeviceView", self._transport.post(f"/devices/{device_id}/decommission", {"reason": reason}))

    def leave(self, verb: Literal["revoke", "decommission"], *, devices: int, reason: str, **which: str | None) -> int:
        """Revoke or decommission all live devices that a filter (`where`) or a saved group (`group`) means.

        Args:
            verb: what of both.
            devices: how many they must be, or none leaves.
            reason: for the audit log.
            which: `where` or `group`.
        """
        asked = {"devices": devices, "reason": reason, **which}
        return cast("int", self._transport.post(f"/devices/{verb}", asked)["devices"])

    def replace(self, device_id: str, *, expires_s: int = 3600) -> EnrolmentTokenView:
        """Make a one-time token with which a device takes this one's place, with a new key."""
        answer = self._transport.post(f"/devices/{device_id}/replace", {"expires_s": expires_s})
        return cast("EnrolmentTokenView", answer)

    def pending(self) -> list[EnrolmentRequestView]:
        """Return the devices without a token that wait to be accepted, or were rejected lately."""
        return list(self._transport.pages("/enrolment-requests"))

    def accept(self, request_ids: Sequence[str], *, group: str = "default") -> list[DeviceView]:
        """Let devices that wait join, all or none."""
        asked = {"requests": list(request_ids), "group": group}
        return cast("list[DeviceView]", self._transport.post("/enrolment-requests/accept", asked))

    def reject(self, request_id: str, *, reason: str) -> EnrolmentRequestView:
        """Refuse a device that waits."""
        answer = self._transport.post(f"/enrolment-requests/{request_id}/reject", {"reason": reason})
        return cast("EnrolmentRequestView", answer)

    def resolve_pending(self, wanted: str) -> str:
        """Return the id of the waiting device that `wanted` names, is, or uniquely starts or ends.

        A name is whatever a device calls itself: of two with one name, the id must be said.
        """
        if is_full_id(wanted):
            return wanted
        rows = [row for row in self.pending() if row["rejected_at"] is None]
        named = [row["id"] for row in rows if row["name"] == wanted]
        return named[0] if len(named) == 1 else unique_match("device", wanted, [row["id"] for row in rows])

    def resolve(self, wanted: str) -> str:
        """Return the id of the device that `wanted` names, is, or uniquely starts or ends."""
        if is_full_id(wanted):
            return wanted
        if (
            len(wanted) <= _LONGEST_NAME and wanted.isprintable()
        ):  # of a live device, names are unique: the whole fleet need not be listed
            quoted = wanted.replace("\\", "\\\\").replace('"', '\\"')
            if live := self.list(where=f'name = "{quoted}"', limit=1):
                return live[0]["id"]
        devices = self.list()
        named = [device["id"] for device in devices if device["name"] == wanted]
        if len(named) > 1:  # those that had the name before are gone for good
            named = [device["id"] for device in devices if device["id"] in named and device["revoked_at"] is None]
        return named[0] if len(named) == 1 else unique_match("device", wanted, [one["id"] for one in devices])

    def label(self, device_id: str, changes: Mapping[str, str | None]) -> DeviceView:
        """Change labels of a device: a text sets one, None removes it."""
        return cast("DeviceView", self._transport.patch(f"/devices/{device_id}/labels", dict(changes)))

    def label_all(
        self, changes: Mapping[str, str | None], *, where: str | None = None, group: str | None = None
    ) -> int:
        """Change labels of all live devices that a filter or a saved group means; return how many those are."""
        asked = {"where": where, "group": group, "labels": dict(changes)}
        return cast("int", self._transport.post("/devices/labels", asked)["devices"])

    def preview(self, *, where: str | None = None, group: str | None = None, limit: int = 10) -> PreviewView:
        """Return how many live devices a filter or a saved group means, and some of them."""
        asked = {"where": where, "group": group, "limit": limit}
        return cast("PreviewView", self._transport.post("/devices/preview", asked))

    def list(self, *, where: str | None = None, sort: str | None = None, limit: int | None = None) -> list[DeviceView]:
        """Return devices: all, newest first, or the live ones for which a filter holds, in another order."""
        return list(self._transport.pages("/devices", limit=limit, where=where, sort=sort))
