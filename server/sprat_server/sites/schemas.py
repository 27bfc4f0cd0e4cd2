"""What tasks, sites and their plans look like in requests and answers."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from sprat_server.registry.schemas import Example, Recipe
from sprat_server.sites.models import Site, SiteDevice, SiteTask
from sprat_shared.tasks.graph import TaskGraph

PlainName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,63}$")]
Port = Annotated[str, Field(min_length=1, max_length=400)]
DeviceName = Annotated[str, Field(min_length=1, max_length=100)]
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
PlanState = Literal["planned", "holding", "switching", "serving", "draining", "retired", "failed", "aborted"]

_GRAPH: dict[str, Any] = {
    "inputs": {"image": "float32[n, 3, 224, 224]", "words": "int64[n, 64]"},
    "steps": {
        "see": {"model": "vision", "inputs": {"image": "image"}},
        "read": {"model": "text", "inputs": {"input_ids": "words"}},
        "judge": {"model": "find-head", "inputs": {"image": "see.features", "text": "read.embedding"}},
    },
    "outputs": {"score": "judge.score"},
}


class NewStep(BaseModel):
    """One use of a module: each of its inputs, and where it comes from (an input of the task, or `step.output`)."""

    model_config = ConfigDict(extra="forbid")

    model: PlainName
    inputs: Annotated[dict[Port, Port], Field(min_length=1, max_length=32)]


class NewFallback(BaseModel):
    """Smaller steps, of the same inputs and outputs, for when the other devices do not answer in time."""

    model_config = ConfigDict(extra="forbid")

    steps: Annotated[dict[Port, NewStep], Field(min_length=1, max_length=50)]
    outputs: Annotated[dict[Port, Port], Field(min_length=1, max_length=32)]


class TaskTest(BaseModel):
    """Labelled samples on which a plan's modules must do no worse than those that serve.

    The samples are given to `input`; of `output` the largest value of each row names the class.
    """

    model_config = ConfigDict(extra="forbid")

    dataset: Digest
    input: Port
    output: Port
    tolerance: Annotated[float, Field(ge=0, lt=1)] = 0.01


class NewTaskGraph(BaseModel):
    """A task: typed inputs, steps, outputs; the seconds that a request may take; smaller steps for when it would not.

    With `replace`, a task of this name is replaced; plans that were made go on with what it was.
    """

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"name": "find", **_GRAPH, "deadline_s": 0.5}]}
    )

    name: PlainName
    inputs: Annotated[dict[Port, Annotated[str, Field(max_length=200)]], Field(min_length=1, max_length=32)]
    steps: Annotated[dict[Port, NewStep], Field(min_length=1, max_length=50)]
    outputs: Annotated[dict[Port, Port], Field(min_length=1, max_length=32)]
    deadline_s: Annotated[float, Field(gt=0, le=3600)] = 1.0
    fallback: NewFallback | None = None
    test: TaskTest | None = None
    replace: bool = False

    def graph(self) -> TaskGraph:
        """Return its steps as a graph.

        Raises:
            InvalidInput: they are none; the message names what is wrong.
        """
        return TaskGraph.of(self.model_dump(include={"inputs", "steps", "outputs"}))

    def fallback_graph(self) -> TaskGraph | None:
        """Return the fallback's steps as a graph, likewise; None where there is none."""
        if self.fallback is None:
            return None
        return TaskGraph.of({"inputs": self.inputs, **self.fallback.model_dump()})


class NewTaskSplit(BaseModel):
    """A task that is made of one torch module: the submodules that become models of their own, and what is left.

    `parts` says for the name of each model which submodule it is; `rest` is the model that is made of what is left,
    and is left out where that is only wiring. A model that is there already is used if it is just that part.
    """

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "name": "find",
                    "recipe": {"factory": "shop.nets:build", "config": {"width": 32}},
                    "weights": "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
                    "example": {
                        "inputs": [
                            {"name": "image", "shape": [1, 3, 32, 32], "dtype": "F32"},
                            {"name": "words", "shape": [1, 8], "dtype": "I64"},
                        ]
                    },
                    "parts": {"vision": "image_encoder", "text": "text_encoder"},
                    "rest": "find-head",
                    "deadline_s": 0.5,
                }
            ]
        },
    )

    name: PlainName
    recipe: Recipe
    weights: Digest
    example: Example
    parts: Annotated[
        dict[PlainName, Annotated[str, Field(pattern=r"^\w+(\.\w+)*$", max_length=400)]],
        Field(min_length=1, max_length=49),
    ]
    rest: PlainName | None = None
    deadline_s: Annotated[float, Field(gt=0, le=3600)] = 1.0
    replace: bool = False

    @model_validator(mode="after")
    def _once(self) -> Self:
        if self.rest in self.parts or len(set(self.parts.values())) != len(self.parts):
            raise ValueError("a submodule is two parts, or a part and the rest have one name")
        return self


class TaskView(BaseModel):
    """A task; `plans` are those that are signed and have it, as `site/number`."""

    name: str
    inputs: dict[str, str]
    steps: dict[str, NewStep]
    outputs: dict[str, str]
    deadline_s: float
    fallback: NewFallback | None
    test: TaskTest | None
    plans: list[str]
    created_by: str
    created_at: datetime
    replaced_at: datetime | None

    @classmethod
    def of(cls, task: SiteTask, plans: list[str]) -> Self:
        """Show this row."""
        fallback = None if task.fallback is None else {key: task.fallback[key] for key in ("steps", "outputs")}
        return cls.model_validate(
            {
                "name": task.name,
                **task.graph,
                "deadline_s": task.deadline_s,
                "fallback": fallback,
                "test": task.test,
                "plans": plans,
                "created_by": task.created_by,
                "created_at": task.created_at,
                "replaced_at": task.replaced_at,
            }
        )


class NewSiteDevice(BaseModel):
    """A device by its name: memory for modules, its link to the hub of the site, how much of its time it may compute.

    Memory that is left out is not known, and binds nothing. What is left out of a link is taken from what devices
    measured.
    """

    model_config = ConfigDict(extra="forbid")

    name: DeviceName
    memory_bytes: Annotated[int | None, Field(ge=0, le=1 << 50)] = None
    up_mbit: Annotated[float | None, Field(gt=0, le=1e6)] = None
    down_mbit: Annotated[float | None, Field(gt=0, le=1e6)] = None
    delay_ms: Annotated[float | None, Field(ge=0, le=1e5)] = None
    utilisation: Annotated[float, Field(gt=0, le=1)] = 0.8


class EditedSite(BaseModel):
    """What a site is: its devices; seconds until all must be ready for a plan, and until nobody is awaited any more.

    With `auto_repair` a plan without a device that left is made and applied as soon as one that served leaves, and the
    full plan behind it where that saves requests more seconds in `pays_within_s` than its bytes cost. `uplink_mbit` is
    the link over which all of the site's devices fetch; left out, only their own bind.
    """

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"devices": [{"name": "camera", "memory_bytes": 400_000_000, "up_mbit": 20}, {"name": "box"}]},
            ]
        },
    )

    devices: Annotated[list[NewSiteDevice], Field(min_length=1, max_length=200)]
    hold_s: Annotated[float, Field(ge=1, le=30 * 86400)] = 3600.0
    switch_s: Annotated[float, Field(ge=1, le=86400)] = 600.0
    auto_repair: bool = False
    pays_within_s: Annotated[float, Field(ge=1, le=366 * 86400)] = 86400.0
    uplink_mbit: Annotated[float | None, Field(gt=0, le=1e6)] = None

    @model_validator(mode="after")
    def _names(self) -> Self:
        names = [one.name for one in self.devices]
        if len(set(names)) != len(names):
            raise ValueError("a device is named twice")
        return self


class NewSite(EditedSite):
    """A site to be made: its name, and what it is."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "name": "line-3",
                    "devices": [{"name": "camera", "memory_bytes": 400_000_000, "up_mbit": 20}, {"name": "box"}],
                },
            ]
        },
    )

    name: PlainName


class SiteDeviceView(BaseModel):
    """A device of a site; `address` is where it said that other members reach it. Of a link, null: nobody said."""

    device: UUID
    name: str
    address: str | None
    memory_bytes: int | None
    up_mbit: float | None
    down_mbit: float | None
    delay_ms: float | None
    utilisation: float
    revoked: bool
    last_seen_at: datetime | None

    @classmethod
    def of(
        cls, row: SiteDevice, *, name: str, address: str | None, revoked: bool, last_seen_at: datetime | None
    ) -> Self:
        """Show this row."""
        return cls(
            device=row.device_id,
            name=name,
            address=address,
            memory_bytes=row.memory_bytes,
            up_mbit=row.up_mbit,
            down_mbit=row.down_mbit,
            delay_ms=row.delay_ms,
            utilisation=row.utilisation,
            revoked=revoked,
            last_seen_at=last_seen_at,
        )


class SiteView(BaseModel):
    """A site: its devices, and the numbers of the plans that serve, and are under way."""

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
    created_at: datetime

    @classmethod
    def of(cls, site: Site, devices: list[SiteDeviceView], *, serving: int | None, under_way: int | None) -> Self:
        """Show this row."""
        return cls(
            name=site.name,
            devices=devices,
            hold_s=site.hold_s,
            switch_s=site.switch_s,
            auto_repair=site.auto_repair,
            pays_within_s=site.pays_within_s,
            uplink_mbit=site.uplink_mbit,
            serving=serving,
            under_way=under_way,
            created_by=site.created_by,
            created_at=site.created_at,
        )


class PlannedModule(BaseModel):
    """What people say of a module: the seconds and joules of a run on each device that can run it, and its memory.

    What is left out is taken from what devices measured (`GET /sites/{site}/measures`). Memory of which nothing is
    known is that of its weights.
    """

    model_config = ConfigDict(extra="forbid")

    memory_bytes: Annotated[int | None, Field(ge=0, le=1 << 50)] = None
    seconds: Annotated[dict[DeviceName, Annotated[float, Field(ge=0, le=1e6)]], Field(max_length=200)] = {}
    joules: Annotated[dict[DeviceName, Annotated[float, Field(ge=0, le=1e9)]], Field(max_length=200)] = {}


class NewSitePlan(BaseModel):
    """A plan to be made: which tasks, by which releases (left out: the newest of each model), and where modules are.

    By hand: `hosts`, module -> devices, the one that is asked first before the others. Else they are placed: `at` says
    at which devices applications ask for each task (modules of its fallback are there), `on` the devices that modules
    may be on (left out: all that others can reach), `modules` how long each takes where, instead of what was measured,
    `rates` requests a second of a task, over all its devices, `sizes` free lengths (1 if left out). `seconds` is what
    the solver may take. Nothing is sent to devices before the plan is applied.
    """

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"tasks": ["find"], "hosts": {"vision": ["box", "desk"], "text": ["box"], "find-head": ["camera"]}},
                {
                    "tasks": ["find"],
                    "at": {"find": ["camera"]},
                    "modules": {"vision": {"memory_bytes": 350_000_000, "seconds": {"camera": 0.4, "box": 0.05}}},
                },
            ]
        },
    )

    tasks: Annotated[list[PlainName], Field(min_length=1, max_length=100)]
    releases: Annotated[dict[PlainName, Annotated[int, Field(ge=1, lt=2**31)]], Field(max_length=200)] = {}
    hosts: Annotated[
        dict[PlainName, Annotated[list[DeviceName], Field(min_length=1, max_length=200)]] | None, Field(max_length=200)
    ] = None
    at: Annotated[
        dict[PlainName, Annotated[list[DeviceName], Field(min_length=1, max_length=200)]], Field(max_length=100)
    ] = {}
    on: Annotated[list[DeviceName], Field(max_length=200)] = []
    modules: Annotated[dict[PlainName, PlannedModule], Field(max_length=200)] = {}
    rates: Annotated[dict[PlainName, Annotated[float, Field(ge=0, le=1e6)]], Field(max_length=100)] = {}
    sizes: Annotated[dict[Port, Annotated[int, Field(ge=0, le=1 << 40)]], Field(max_length=200)] = {}
    replicas: Annotated[int, Field(ge=1, le=10)] = 1
    survives_one: bool = False
    second_per_mb: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    seconds: Annotated[float, Field(gt=0, le=600)] = 30.0

    @model_validator(mode="after")
    def _once(self) -> Self:
        if len(set(self.tasks)) != len(self.tasks):
            raise ValueError("a task is named twice")
        for name, devices in (*(self.hosts or {}).items(), *self.at.items()):
            if len(set(devices)) != len(devices):
                raise ValueError(f"{name}: a device is named twice")
        return self


class RepairSite(BaseModel):
    """A site to be planned anew after devices were lost; devices `without` which it goes on leave the site."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"without": ["desk"]}]})

    without: Annotated[list[DeviceName], Field(max_length=200)] = []


class SitePlanModuleView(BaseModel):
    """A module of a plan: its release, and the devices that hold it, the one that is asked first before the others."""

    model: str
    release: int
    id: str
    hosts: list[str]
    memory_bytes: int


class SitePlanMemberView(BaseModel):
    """A member of a plan: what is signed for it, and how far it said to be.

    `fetching`: how far it is with what it lacks; null: it lacks nothing. One that waits for its turn on the site's link
    begins at `turn_at`, or earlier if those before it are done.
    """

    device: UUID
    name: str
    address: str | None
    state: Literal["asked", "ready", "serving", "refused", "left"]
    phase: Literal["hold", "serve", "drain"] | None
    fetching: Literal["waits", "fetching", "done"] | None
    turn_at: datetime | None
    error_code: str | None
    error_detail: str | None
    said_at: datetime | None
    last_seen_at: datetime | None


class SitePlanView(BaseModel):
    """A plan of a site. `placement` says how good its placing is, where it was worked out; `tests` what was compared.

    `routes` of a placed task say by the device that is asked, and the step, which host is asked first, and which then.

    `warnings` say what stands in the way of an answer now, such as a device that was not heard for long. `cause` says
    what the plan was made for, and `parent` because of which other one. `improvement`, of a repair that serves, is what
    the full plan behind it would bring: seconds that requests save in `pays_within_s`, and what that costs. `steps` are
    the plans in between that lead to this one; with `wished_by` it is applied once they have served.
    """

    site: str
    number: int
    state: PlanState
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
    created_at: datetime
    applied_at: datetime | None
    deadline_at: datetime | None
    switched_at: datetime | None
    expires_at: datetime | None
    ended_at: datetime | None
