"""Rollouts over REST: made, previewed, moved, followed."""

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final, cast

from sprat_client.api.naming import is_full_id, unique_match
from sprat_client.api.rollout_views import (
    ROLLOUT_ENDS,
    AppliedView,
    PlanView,
    RolloutDeviceView,
    RolloutView,
    WhyView,
)
from sprat_client.api.transport import Transport
from sprat_shared.errors import TryLater

_PATIENCE_S: Final = 60.0
_LOOK_EVERY_S: Final = 0.5
_LONGEST_NAME: Final = 63


class Rollouts:
    """Plans that bring devices to a release, wave by wave."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, model: str, release: int, **wanted: Any) -> RolloutView:
        """Make a draft.

        Args:
            model: the model's name.
            release: the number to bring devices to.
            wanted: what else is asked, in the words of the API; left out or None: the defaults. `waves`: cumulative
                counts, percents or labels, such as ["ring=canary", "10%", "100%"]; `devices`: ids.
        """
        return self._view(self._transport.post("/rollouts", _body(model, release, wanted)))

    def plan(self, wanted: Mapping[str, Any]) -> PlanView:
        """Return what a rollout would be; nothing is kept."""
        return cast("PlanView", self._transport.post("/rollouts/plan", dict(wanted)))

    def apply(self, wanted: Mapping[str, Any], *, start: bool = False) -> AppliedView:
        """Make a rollout unless it is there already, and start it where that is asked and nothing holds it back."""
        answer = self._transport.post("/rollouts/apply", {"rollout": dict(wanted), "start": start})
        return cast("AppliedView", answer)

    def approve(self, rollout_id: str, *, reason: str) -> RolloutView:
        """Say, as another person than its maker, that a draft may start."""
        return self._move(rollout_id, "approve", reason=reason)

    def prefetch(self, rollout_id: str) -> RolloutView:
        """Have the devices of a draft fetch its release ahead."""
        return self._view(self._transport.post(f"/rollouts/{rollout_id}/prefetch"))

    def start(self, rollout_id: str, *, reason: str) -> RolloutView:
        """Open the first wave."""
        return self._move(rollout_id, "start", reason=reason)

    def pause(self, rollout_id: str, *, reason: str) -> RolloutView:
        """Open no further wave until resumed; devices that were told go on."""
        return self._move(rollout_id, "pause", reason=reason)

    def resume(self, rollout_id: str, *, reason: str, acknowledge: bool = False) -> RolloutView:
        """Go on after a pause, or after a halt whose failures are acknowledged."""
        return self._move(rollout_id, "resume", reason=reason, acknowledge=acknowledge)

    def promote(self, rollout_id: str, *, reason: str) -> RolloutView:
        """Open the next wave on a person's word where the gate holds it."""
        return self._move(rollout_id, "promote", reason=reason)

    def abort(self, rollout_id: str, *, reason: str, keep: bool = False) -> RolloutView:
        """End it; devices go back, but for those that have committed the release where they keep it."""
        return self._move(rollout_id, "abort", reason=reason, keep=keep)

    def undo(self, rollout_id: str, *, reason: str) -> RolloutView:
        """Bring devices back from a rollout that ended to what they had before it."""
        return self._move(rollout_id, "undo", reason=reason)

    def list(
        self,
        *,
        model: str | None = None,
        release: int | None = None,
        state: str | None = None,
        name: str | None = None,
        limit: int | None = None,
    ) -> list[RolloutView]:
        """Return rollouts, newest first: all, or those of a model, of a release, in a state, of a name."""
        asked = {"model": model, "release": release, "state": state, "name": name}
        return list(self._transport.pages("/rollouts", limit=limit, **asked))

    def devices(
        self, rollout_id: str, *, wave: int | None = None, state: str | None = None, limit: int | None = None
    ) -> Iterator[RolloutDeviceView]:
        """Iterate a rollout's devices, the first waves first: all, or those of a wave, in a state."""
        return self._transport.pages(f"/rollouts/{rollout_id}/devices", limit=limit, wave=wave, state=state)

    def get(self, rollout_id: str) -> RolloutView:
        """Return one rollout with its waves, and how many devices are in which state."""
        return self._view(self._transport.get(f"/rollouts/{rollout_id}"))

    def why(self, rollout_id: str, *, policy: Mapping[str, Any] | None = None) -> WhyView:
        """Return what the gate says, or would have said with another policy, and what it rests on."""
        query = None if policy is None else json.dumps(policy)
        return cast("WhyView", self._transport.get(f"/rollouts/{rollout_id}/why", policy=query))

    def resolve(self, wanted: str) -> str:
        """Return the id of the rollout that `wanted` names, is, or uniquely starts or ends."""
        if is_full_id(wanted):
            return wanted
        named = self.list(name=wanted) if len(wanted) <= _LONGEST_NAME else []
        standing = [one["id"] for one in named if one["state"] != "aborted"]
        return standing[0] if standing else unique_match("rollout", wanted, [one["id"] for one in self.list()])

    def follow(self, rollout_id: str, *, timeout_s: float | None = None, ahead: bool = False) -> Iterator[RolloutView]:
        """Yield the rollout whenever it changed, until and including its end.

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
            if rollout["state"] in ROLLOUT_ENDS or (ahead and not rollout["fetching"]):
                return
            last = rollout
            if deadline is not None and time.monotonic() >= deadline:
                raise TryLater(f"rollout {rollout_id} is still {rollout['state']} after {timeout_s:g} s; it goes on")
            time.sleep(_LOOK_EVERY_S)

    def _move(self, rollout_id: str, verb: str, **said: Any) -> RolloutView:
        return self._view(self._transport.post(f"/rollouts/{rollout_id}/{verb}", said))

    @staticmethod
    def _view(answer: object) -> RolloutView:
        return cast("RolloutView", answer)


def _body(model: str, release: int, wanted: Mapping[str, Any]) -> dict[str, Any]:
    return {"model": model, "release": release} | {name: value for name, value in wanted.items() if value is not None}
