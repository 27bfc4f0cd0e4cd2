"""Drift: how a model does in the field, what is watched, and what is done about it."""

from collections.abc import Mapping
from typing import Any, Literal, TypedDict, cast

from sprat_client.api.transport import Transport


class DriftPolicyView(TypedDict):
    """How a model is watched; `stop_reason`: a person stopped what follows from it."""

    model: str
    policy: dict[str, Any]
    set_by: str
    set_at: str
    stopped_at: str | None
    stop_reason: str | None


class FindingView(TypedDict):
    """What the words of a fleet come to."""

    verdict: Literal["unknown", "fine", "suspected", "breached"]
    why: str
    devices: int
    samples: int
    accuracy: float | None
    upper: float | None
    drifting: int
    drift: float | None


class DriftEventView(TypedDict):
    """What was done, with the evidence that it rests on; `outcome` is None while a retrain is under way."""

    at: str
    action: Literal["notify", "retrain"]
    why: str
    finding: FindingView
    dataset: str | None
    job: str | None
    release: int | None
    rollout: str | None
    outcome: str | None


class DriftView(TypedDict):
    """How a model does in the field now, what would be done about it at the next look, and what was done before."""

    model: str
    policy: DriftPolicyView
    finding: FindingView
    action: Literal["none", "notify", "retrain"]
    why: str
    events: list[DriftEventView]


class Drift:
    """The drift of models."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def status(self, model: str, *, limit: int | None = None) -> DriftView:
        """Return what is known of a model's drift, what would be done about it, and what was."""
        return cast("DriftView", self._transport.get(f"/models/{model}/drift", limit=limit))

    def policy(self, model: str) -> DriftPolicyView:
        """Return how a model is watched."""
        return cast("DriftPolicyView", self._transport.get(f"/models/{model}/drift-policy"))

    def set_policy(self, model: str, policy: Mapping[str, Any]) -> DriftPolicyView:
        """Watch a model this way from now on (docs/drift.md)."""
        return cast("DriftPolicyView", self._transport.put(f"/models/{model}/drift-policy", dict(policy)))

    def clear_policy(self, model: str) -> DriftPolicyView:
        """Watch a model no more; return how it was watched."""
        return cast("DriftPolicyView", self._transport.delete(f"/models/{model}/drift-policy"))

    def stop(self, model: str, *, reason: str) -> DriftPolicyView:
        """Do nothing about a model's drift any more."""
        return cast("DriftPolicyView", self._transport.post(f"/models/{model}/drift/stop", {"reason": reason}))

    def resume(self, model: str, *, reason: str) -> DriftPolicyView:
        """Do again what the policy says."""
        return cast("DriftPolicyView", self._transport.post(f"/models/{model}/drift/resume", {"reason": reason}))
