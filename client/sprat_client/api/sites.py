"""Tasks of sites, sites, and the plans by which their devices serve together."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict, cast

from sprat_client.api.transport import Transport
from sprat_client.api.views import JobView


class TaskView(TypedDict):
    """A task; `plans` are those that are signed and have it."""

    name: str
    inputs: dict[str, str]
    steps: dict[str, dict[str, Any]]
    outputs: dict[str, str]
    deadline_s: float
    fallback: dict[str, Any] | None
    test: dict[str, Any] | None
    plans: list[str]
    created_by: str
    created_at: str
    replaced_at: str | None


class SiteDeviceView(TypedDict):
    """A device of a site, and where it said that others reach it; of its link, None: nobody said."""

    device: str
    name: str
    address: str | None
    memory_bytes: int | None
    up_mbit: float | None
    down_mbit: float | None
    delay_ms: float | None
    utilisation: float
    revoked: bool
    last_seen_at: str | None


class SiteView(TypedDict):
    """A site, and the numbers of the plans that serve, and are under way."""

    name: str
    devices: list[SiteDeviceView]
    hold_s: float
    switch_s: float
    auto_repair: bool
    pays_within_s: float
    uplink_mbit: float | None
    serving: int | None
    under_way: int | None
    created_by: str
    created_at: str


class SitePlanModuleView(TypedDict):
    """A module of a plan, and its hosts, the one that is asked first before the others."""

    model: str
    release: int
    id: str
    hosts: list[str]
    memory_bytes: int


class SitePlanMemberView(TypedDict):
    """A member of a plan: what is signed for it, and how far it said to be."""

    device: str
    name: str
    address: str | None
    state: Literal["asked", "ready", "serving", "refused", "left"]
    phase: Literal["hold", "serve", "drain"] | None
    fetching: Literal["waits", "fetching", "done"] | None
    turn_at: str | None
    error_code: str | None
    error_detail: str | None
    said_at: str | None
    last_seen_at: str | None


class SitePlanView(TypedDict):
    """A plan of a site."""

    site: str
    number: int
    state: Literal["planned", "holding", "switching", "serving", "draining", "retired", "failed", "aborted"]
    reason: str | None
    tasks: dict[str, Any]
    modules: list[SitePlanModuleView]
    placement: dict[str, Any] | None
    tests: list[dict[str, Any]]
    members: list[SitePlanMemberView]
    warnings: list[str]
    digest: str | None
    bytes: int | None
    made_by: str
    cause: Literal["asked", "repair", "improvement", "renewal", "step"]
    parent: int | None
    improvement: dict[str, Any] | None
    steps: list[int]
    wished_by: str | None
    created_at: str
    applied_at: str | None
    deadline_at: str | None
    switched_at: str | None
    expires_at: str | None
    ended_at: str | None


class FetchPreview(TypedDict):
    """A release that a device would fetch, and from when to when."""

    model: str
    release: int
    bytes: int
    starts_s: float
    ends_s: float


class MemberPreview(TypedDict):
    """What a device would hold and fetch."""

    device: str
    name: str
    memory_bytes: int | None
    holds_bytes: int
    while_replacing_bytes: int
    fetches: list[FetchPreview]


class FigureView(TypedDict):
    """A figure, and where it is from."""

    value: float
    origin: Literal["said", "measured", "other-release", "class", "estimated", "weights", "assumed"]
    detail: str
    count: int | None
    p10: float | None
    p90: float | None


class ModuleMeasureView(TypedDict):
    """A module's newest release on a device of the site; None: nothing is known."""

    model: str
    release: int
    device: str
    profile: str | None
    seconds: FigureView | None
    memory_bytes: FigureView | None


class LinkView(TypedDict):
    """A device's link to the hub of the site."""

    device: str
    up_mbit: FigureView
    down_mbit: FigureView
    delay_ms: FigureView


class PairView(TypedDict):
    """What a device measured of the way to another one: seconds, and seconds per byte each way."""

    device: str
    to: str
    round_trip: dict[str, Any] | None
    sent: dict[str, Any] | None
    received: dict[str, Any] | None
    said_at: str


class SiteMeasuresView(TypedDict):
    """What is known of the modules and links of a site."""

    site: str
    modules: list[ModuleMeasureView]
    links: list[LinkView]
    ways: list[PairView]


class SitePlanPreview(TypedDict):
    """What applying a plan would do, and what stands in the way; `figures`: by which it was placed, if it was."""

    site: str
    number: int
    members: list[MemberPreview]
    figures: dict[str, Any] | None
    fetched_s: float
    fetched_bound_s: float
    steps: list[int]
    obstacles: list[str]


class Tasks:
    """What sites can be asked for."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, task: Mapping[str, Any]) -> JobView:
        """Have a task checked and kept (docs/site-plans.md); return the job that does it."""
        return cast("JobView", self._transport.post("/tasks", dict(task))["job"])

    def split(self, asked: Mapping[str, Any]) -> JobView:
        """Have a torch module taken apart into the models of a task (docs/site-plans.md); return the job."""
        return cast("JobView", self._transport.post("/tasks/split", dict(asked))["job"])

    def get(self, name: str) -> TaskView:
        """Return one task."""
        return cast("TaskView", self._transport.get(f"/tasks/{name}"))

    def delete(self, name: str) -> TaskView:
        """Delete a task."""
        return cast("TaskView", self._transport.delete(f"/tasks/{name}"))

    def list(self) -> list[TaskView]:
        """Return all tasks, by name."""
        return list(self._transport.pages("/tasks"))


class Sites:
    """Devices that run tasks together, and their plans."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, site: Mapping[str, Any]) -> SiteView:
        """Make a site."""
        return cast("SiteView", self._transport.post("/sites", dict(site)))

    def get(self, name: str) -> SiteView:
        """Return one site."""
        return cast("SiteView", self._transport.get(f"/sites/{name}"))

    def measures(self, name: str) -> SiteMeasuresView:
        """Return what is known of the modules and links of a site."""
        return cast("SiteMeasuresView", self._transport.get(f"/sites/{name}/measures"))

    def edit(self, name: str, site: Mapping[str, Any]) -> SiteView:
        """Change what a site is."""
        return cast("SiteView", self._transport.put(f"/sites/{name}", dict(site)))

    def delete(self, name: str) -> SiteView:
        """Delete a site."""
        return cast("SiteView", self._transport.delete(f"/sites/{name}"))

    def plan(self, name: str, question: Mapping[str, Any]) -> JobView:
        """Ask for a plan; return the job that makes it."""
        return cast("JobView", self._transport.post(f"/sites/{name}/plans", dict(question))["job"])

    def repair(self, name: str, without: Sequence[str]) -> JobView:
        """Have what serves planned anew without devices that were lost; return the job that does it."""
        return cast("JobView", self._transport.post(f"/sites/{name}/repair", {"without": [*without]})["job"])

    def plans(self, name: str, *, limit: int | None = None) -> list[SitePlanView]:
        """Return the plans of a site, newest first."""
        return list(self._transport.pages(f"/sites/{name}/plans", limit=limit))

    def show_plan(self, name: str, number: int) -> SitePlanView:
        """Return a plan, and how far its members are."""
        return cast("SitePlanView", self._transport.get(f"/sites/{name}/plans/{number}"))

    def preview(self, name: str, number: int) -> SitePlanPreview:
        """Return what applying a plan would do."""
        return cast("SitePlanPreview", self._transport.get(f"/sites/{name}/plans/{number}/preview"))

    def apply(self, name: str, number: int) -> SitePlanView:
        """Have the devices hold a plan, and serve by it when all are ready."""
        return cast("SitePlanView", self._transport.post(f"/sites/{name}/plans/{number}/apply", {}))

    def abort(self, name: str, number: int, *, reason: str) -> SitePlanView:
        """End a plan that is held."""
        return cast("SitePlanView", self._transport.post(f"/sites/{name}/plans/{number}/abort", {"reason": reason}))

    def list(self) -> list[SiteView]:
        """Return all sites, by name."""
        return list(self._transport.pages("/sites"))
