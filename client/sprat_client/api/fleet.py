"""Devices and the rollouts that bring them to releases."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, cast

from sprat_client.api.naming import is_full_id, unique_match
from sprat_client.api.targeting import PreviewView
from sprat_client.api.transport import Transport
from sprat_client.api.views import (
    ROLLOUT_ENDS,
    DeviceView,
    EnrolmentRequestView,
    EnrolmentTokenView,
    ReportView,
    RolloutView,
    WhyView,
)
from sprat_shared.errors import TryLater

_PATIENCE_S: Final = 60.0
_LOOK_EVERY_S: Final = 0.5


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

    def replace(self, device_id: str, *, expires_s: int = 3600) -> EnrolmentTokenView:
        """Make a one-time token with which a device takes this one's place, with a new key."""
        answer = self._transport.post(f"/devices/{device_id}/replace", {"expires_s": expires_s})
        return cast("EnrolmentTokenView", answer)

    def pending(self) -> list[EnrolmentRequestView]:
        """Return the devices without a token that wait to be accepted, or were rejected lately."""
        return list(self._transport.pages("/enrolment-requests"))

    def accept(self, request_id: str, *, group: str = "default") -> DeviceView:
        """Let a device that waits join."""
        return cast("DeviceView", self._transport.post(f"/enrolment-requests/{request_id}/accept", {"group": group}))

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
        devices = self.list()
        named = [device["id"] for device in devices if device["name"] == wanted]
        if len(named) > 1:  # those that had the name before are gone for good
            named = [device["id"] for device in devices if device["id"] in named and device["revoked_at"] is None]
        return named[0] if len(named) == 1 else unique_match("device", wanted, [one["id"] for one in devices])

    def label(self, device_id: str, changes: Mapping[str, str | None]) -> DeviceView:
        """Change labels of a device: a text sets one, None removes it."""
        return cast("DeviceView", self._transport.patch(f"/devices/{device_id}/labels", dict(changes)))

    def preview(self, *, where: str | None = None, group: str | None = None, limit: int = 10) -> PreviewView:
        """Return how many live devices a filter or a saved group means, and some of them."""
        asked = {"where": where, "group": group, "limit": limit}
        return cast("PreviewView", self._transport.post("/devices/preview", asked))

    def list(self, *, where: str | None = None, sort: str | None = None, limit: int | None = None) -> list[DeviceView]:
        """Return devices: all, newest first, or the live ones for which a filter holds, in another order."""
        return list(self._transport.pages("/devices", limit=limit, where=where, sort=sort))


class Rollouts:
    """Plans that bring devices to a release, wave by wave."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(
        self,
        model: str,
        release: int,
        *,
        waves: Sequence[str],
        devices: Sequence[str] | None = None,
        gates: Mapping[str, Any] | None = None,
    ) -> RolloutView:
        """Make a draft.

        Args:
            model: the model's name.
            release: the number to bring devices to.
            waves: cumulative counts or percents of the devices, such as ["1", "10%", "100%"].
            devices: ids; all devices when None, and those that enrol later get the release at once.
            gates: rule, silence_s and policy (docs/gates.md); None: the defaults.
        """
        body = {
            "model": model,
            "release": release,
            "waves": list(waves),
            "devices": None if devices is None else list(devices),
            "gates": None if gates is None else dict(gates),
        }
        return self._view(self._transport.post("/rollouts", body))

    def prefetch(self, rollout_id: str) -> RolloutView:
        """Have the devices of a draft fetch its release ahead."""
        return self._view(self._transport.post(f"/rollouts/{rollout_id}/prefetch"))

    def start(self, rollout_id: str) -> RolloutView:
        """Open the first wave."""
        return self._view(self._transport.post(f"/rollouts/{rollout_id}/start"))

    def pause(self, rollout_id: str, *, reason: str) -> RolloutView:
        """Open no further wave until resumed; devices that were told go on."""
        return self._view(self._transport.post(f"/rollouts/{rollout_id}/pause", {"reason": reason}))

    def resume(self, rollout_id: str, *, reason: str) -> RolloutView:
        """Go on after a pause."""
        return self._view(self._transport.post(f"/rollouts/{rollout_id}/resume", {"reason": reason}))

    def promote(self, rollout_id: str, *, reason: str) -> RolloutView:
        """Open the next wave on a person's word where the gate holds it."""
        return self._view(self._transport.post(f"/rollouts/{rollout_id}/promote", {"reason": reason}))

    def abort(self, rollout_id: str, *, reason: str) -> RolloutView:
        """End it and send exposed devices back to the release they had."""
        return self._view(self._transport.post(f"/rollouts/{rollout_id}/abort", {"reason": reason}))

    def list(self) -> list[RolloutView]:
        """Return all rollouts, newest first."""
        return list(self._transport.pages("/rollouts"))

    def get(self, rollout_id: str) -> RolloutView:
        """Return one rollout with its waves."""
        return self._view(self._transport.get(f"/rollouts/{rollout_id}"))

    def why(self, rollout_id: str, *, policy: Mapping[str, Any] | None = None) -> WhyView:
        """Return what the gate says, or would have said with another policy, and what it rests on."""
        query = None if policy is None else json.dumps(policy)
        return cast("WhyView", self._transport.get(f"/rollouts/{rollout_id}/why", policy=query))

    def resolve(self, wanted: str) -> str:
        """Return the id of the rollout that `wanted` is, or uniquely starts or ends."""
        return wanted if is_full_id(wanted) else unique_match("rollout", wanted, [one["id"] for one in self.list()])

    def follow(self, rollout_id: str, *, timeout_s: float | None = None, ahead: bool = False) -> Iterator[RolloutView]:
        """Yield the rollout whenever it changed, until and including its end (succeeded, halted or aborted).

        A server that restarts meanwhile is waited for (up to a minute without an answer).

        Args:
            rollout_id: its id.
            timeout_s: after so long the caller is told that it goes on; None: never.
            ahead: end where no device is fetching the release ahead any more.

        Raises:
            TryLater: `timeout_s` passed before the end; the rollout goes on.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        last: RolloutView | None = None
        while True:
            answer = self._transport.patient_get(f"/rollouts/{rollout_id}", patience_s=_PATIENCE_S)
            rollout = self._view(answer)
            if rollout != last:
                yield rollout
            if rollout["state"] in ROLLOUT_ENDS or (ahead and not _fetching_ahead(rollout)):
                return
            last = rollout
            if deadline is not None and time.monotonic() >= deadline:
                raise TryLater(f"rollout {rollout_id} is still {rollout['state']} after {timeout_s:g} s; it goes on")
            time.sleep(_LOOK_EVERY_S)

    @staticmethod
    def _view(answer: object) -> RolloutView:
        return cast("RolloutView", answer)


def _fetching_ahead(rollout: RolloutView) -> bool:
    parts = [*rollout["unplaced"], *(part for wave in rollout["waves"] for part in wave["devices"])]
    return any(part["prefetch"] == "asked" and part["state"] != "left" for part in parts)
