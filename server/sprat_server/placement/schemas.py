"""What people say of a site, and what they are told of a placement, as the API takes and gives it."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from sprat_server.placement.plan import Wishes
from sprat_server.placement.site import Device, Edge, Module, Node, Site, Task

Name = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
_BYTES_OF_MBIT = 1e6 / 8


class NewDevice(BaseModel):
    """A device: memory for modules, its link to the hub of the site, and how much of its time it may compute."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    memory_bytes: Annotated[int, Field(ge=0, le=1 << 50)]
    up_mbit: Annotated[float, Field(gt=0, le=1e6)] = 1000.0
    down_mbit: Annotated[float, Field(gt=0, le=1e6)] = 1000.0
    delay_ms: Annotated[float, Field(ge=0, le=1e5, description="One way, to the hub")] = 0.0
    utilisation: Annotated[float, Field(gt=0, le=1)] = 0.8


class NewModule(BaseModel):
    """A part of a model: its memory, its file, and the seconds and joules of a run on each device that can run it."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    memory_bytes: Annotated[int, Field(ge=0, le=1 << 50)]
    file_bytes: Annotated[int, Field(ge=0, le=1 << 50)] = 0
    seconds: Annotated[dict[Name, Annotated[float, Field(ge=0, le=1e6)]], Field(min_length=1, max_length=200)]
    joules: Annotated[dict[Name, Annotated[float, Field(ge=0, le=1e9)]], Field(max_length=200)] = {}


class Flow(BaseModel):
    """What flows from one node of a task to another, in bytes a request."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    source: Annotated[Name, Field(alias="from")]
    target: Annotated[Name, Field(alias="to")]
    nbytes: Annotated[float, Field(alias="bytes", ge=0, le=1e12)]


class NewTask(BaseModel):
    """What is asked of the site: data at devices, uses of modules, and what flows between them.

    `data` are inputs where they arise, and answers where they are wanted: node -> device. `uses`: node -> module.
    `rate` is requests a second, `weight` that of the task's latency among all.
    """

    model_config = ConfigDict(extra="forbid")

    name: Name
    data: Annotated[dict[Name, Name], Field(max_length=50)] = {}
    uses: Annotated[dict[Name, Name], Field(min_length=1, max_length=50)]
    flows: Annotated[list[Flow], Field(max_length=500)] = []
    rate: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    weight: Annotated[float, Field(ge=0, le=1e6)] = 1.0


class NewPlacement(BaseModel):
    """A site that is to be placed: nothing is sent to devices.

    `replicas`: devices that may hold the same module; `survives_one`: two hold each module that can be on two. What
    energy and moves weigh is said in seconds of latency. `held`: module -> devices that have its file already;
    `pinned`: module -> devices where it stays. `seconds` is what the solver may take. With `explain`, what one more
    device or more memory would give is worked out, too.
    """

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "devices": [
                        {"name": "camera", "memory_bytes": 400_000_000, "up_mbit": 20, "down_mbit": 50, "delay_ms": 2},
                        {"name": "box", "memory_bytes": 4_000_000_000},
                    ],
                    "modules": [
                        {"name": "vision", "memory_bytes": 350_000_000, "seconds": {"camera": 0.4, "box": 0.05}},
                        {"name": "judge", "memory_bytes": 2_000_000, "seconds": {"camera": 0.001, "box": 0.001}},
                    ],
                    "tasks": [
                        {
                            "name": "inspect",
                            "data": {"image": "camera", "verdict": "camera"},
                            "uses": {"see": "vision", "say": "judge"},
                            "flows": [
                                {"from": "image", "to": "see", "bytes": 150_000},
                                {"from": "see", "to": "say", "bytes": 2048},
                                {"from": "say", "to": "verdict", "bytes": 64},
                            ],
                            "rate": 2,
                        }
                    ],
                }
            ]
        },
    )

    devices: Annotated[list[NewDevice], Field(min_length=1, max_length=200)]
    modules: Annotated[list[NewModule], Field(min_length=1, max_length=200)]
    tasks: Annotated[list[NewTask], Field(min_length=1, max_length=100)]
    replicas: Annotated[int, Field(ge=1, le=10)] = 1
    survives_one: bool = False
    second_per_joule: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    second_per_mb: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    held: Annotated[dict[Name, list[Name]], Field(max_length=200)] = {}
    pinned: Annotated[dict[Name, list[Name]], Field(max_length=200)] = {}
    seconds: Annotated[float, Field(gt=0, le=600)] = 30.0
    explain: bool = False

    def site(self) -> Site:
        """Return the site.

        Raises:
            InvalidInput: names are not known or not unique, or a task is no graph that ends.
        """
        return Site(
            [
                Device(
                    name=one.name,
                    memory_bytes=one.memory_bytes,
                    up=one.up_mbit * _BYTES_OF_MBIT,
                    down=one.down_mbit * _BYTES_OF_MBIT,
                    delay_s=one.delay_ms / 1000,
                    utilisation=one.utilisation,
                )
                for one in self.devices
            ],
            [
                Module(
                    name=one.name,
                    memory_bytes=one.memory_bytes,
                    file_bytes=one.file_bytes,
                    seconds=one.seconds,
                    joules=one.joules,
                )
                for one in self.modules
            ],
            [
                Task(
                    one.name,
                    [
                        *(Node(name=name, at=device) for name, device in one.data.items()),
                        *(Node(name=name, module=module) for name, module in one.uses.items()),
                    ],
                    [Edge(source=flow.source, target=flow.target, nbytes=flow.nbytes) for flow in one.flows],
                    rate=one.rate,
                    weight=one.weight,
                )
                for one in self.tasks
            ],
        )

    def wishes(self) -> Wishes:
        """Return what is asked beside low latency."""
        return Wishes(
            replicas=self.replicas,
            survives_one=self.survives_one,
            second_per_joule=self.second_per_joule,
            second_per_byte=self.second_per_mb / 1e6,
            held={name: frozenset(hosts) for name, hosts in self.held.items()},
            pinned={name: frozenset(hosts) for name, hosts in self.pinned.items()},
        )
