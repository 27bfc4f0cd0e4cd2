"""Sharing layers between models: plans, what they would publish, and their rollouts."""

from collections.abc import Mapping
from typing import Any, Literal, TypedDict, cast

from sprat_client.api.naming import is_full_id, unique_match
from sprat_client.api.transport import Transport
from sprat_client.api.views import JobView


class SharingRolloutView(TypedDict):
    """The rollout of one model that shares."""

    id: str
    model: str
    release: int
    state: str


class SharingLevelView(TypedDict):
    """One level of a model: its release, and how many devices serve it."""

    level: int
    release: int
    devices: int


class SharingStandingView(TypedDict):
    """Where the devices of a model stand; `nothing` counts those that were offered a level and share nothing."""

    model: str
    levels: list[SharingLevelView]
    nothing: int


class SharingPlanView(TypedDict):
    """A plan: what was asked, what is chosen, and what was made of it."""

    id: str
    state: Literal["planned", "applied", "undone", "stale"]
    stale_reason: str | None
    asked: dict[str, Any]
    result: dict[str, Any]
    releases: list[dict[str, Any]]
    rollouts: list[SharingRolloutView]
    standing: list[SharingStandingView]
    refit_of: str | None
    made_by: str
    created_at: str
    applied_at: str | None
    undone_at: str | None


class LevelPreview(TypedDict):
    """One release that would be published; level 1 shares most."""

    level: int
    form: str
    saved_bytes: int
    bound: float
    finetuned: bool
    update_bytes: int
    full_bytes: int


class RecipientPreview(TypedDict):
    """What a model would get, and how many devices."""

    model: str
    base: int
    donor: str
    donor_release: int
    levels: list[LevelPreview]
    where: str
    devices: int
    bytes_to_devices: int


class SharingPreview(TypedDict):
    """What applying a plan would publish, who would get it, and what stands in the way."""

    plan: str
    recipients: list[RecipientPreview]
    obstacles: list[str]


class Sharing:
    """Plans to share layers."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def plan(self, question: Mapping[str, Any]) -> JobView:
        """Ask for a plan (docs/sharing.md); return the job that makes it."""
        return cast("JobView", self._transport.post("/sharing/plans", dict(question))["job"])

    def refit(self, plan: str) -> JobView:
        """Ask a plan's question anew, on the newest releases; return the job."""
        return cast("JobView", self._transport.post(f"/sharing/plans/{plan}/refit", {})["job"])

    def plans(self) -> list[SharingPlanView]:
        """Return all plans, newest first."""
        return cast("list[SharingPlanView]", list(self._transport.pages("/sharing/plans")))

    def show(self, plan: str) -> SharingPlanView:
        """Return a plan, its releases and its rollouts."""
        return cast("SharingPlanView", self._transport.get(f"/sharing/plans/{plan}"))

    def resolve(self, wanted: str) -> str:
        """Return the id of the plan that `wanted` is, or uniquely starts or ends."""
        return wanted if is_full_id(wanted) else unique_match("plan", wanted, [one["id"] for one in self.plans()])

    def preview(self, plan: str) -> SharingPreview:
        """Return what applying a plan would publish, and who would get it."""
        return cast("SharingPreview", self._transport.get(f"/sharing/plans/{plan}/preview"))

    def apply(self, plan: str, *, waves: list[str] | None, start: bool) -> SharingPlanView:
        """Publish what a plan chose, and draft its rollouts, or start them."""
        return cast(
            "SharingPlanView", self._transport.post(f"/sharing/plans/{plan}/apply", {"waves": waves, "start": start})
        )

    def undo(self, plan: str, *, reason: str) -> SharingPlanView:
        """Take a plan's rollouts back."""
        return cast("SharingPlanView", self._transport.post(f"/sharing/plans/{plan}/undo", {"reason": reason}))
