"""A site as a placement sees it: devices around one hub, modules, and tasks as graphs of their uses. Checked, pure.

Sizes are bytes, times seconds, links bytes per second. What is sent from one device to another goes up to the hub and
down again: `bytes / up + delay` of the one, `bytes / down + delay` of the other; within a device it takes no time.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from typing import Final

from sprat_shared.errors import InvalidInput

CODE: Final = "placement.invalid"


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What modules may take of a device, and how it is connected.

    Attributes:
        name: it.
        memory_bytes: for modules, above what it takes idle.
        up: bytes per second that it sends,
        down: and receives.
        delay_s: one way, between it and the hub.
        utilisation: share of the time in which it may compute.
    """

    name: str
    memory_bytes: int
    up: float
    down: float
    delay_s: float = 0.0
    utilisation: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """A part of a model: a graph and a release of its own, held once on a device whatever number of tasks use it.

    Attributes:
        name: it.
        memory_bytes: while it is loaded.
        file_bytes: that a device fetches to have it.
        seconds: device -> one run; it cannot run on those that are left out.
        joules: device -> one run; 0 where it is not known.
    """

    name: str
    memory_bytes: int
    seconds: Mapping[str, float]
    file_bytes: int = 0
    joules: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A point of a task's graph: a use of a module, or data that are at a device (a sensor's input, where answers go).

    Attributes:
        name: unique within the task.
        module: that runs here; None: nothing runs.
        at: device where the data are; only without a module.
    """

    name: str
    module: str | None = None
    at: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """What flows from one node of a task to another, in bytes a request."""

    source: str
    target: str
    nbytes: float


@dataclass(frozen=True)
class Task:
    """What is asked of a site: an acyclic graph that ends when its last node has.

    Attributes:
        name: it.
        nodes: in any order.
        edges: between them.
        rate: requests per second, for the use of devices and energy.
        weight: of its latency among all tasks' latencies.
    """

    name: str
    nodes: Sequence[Node]
    edges: Sequence[Edge]
    rate: float = 0.0
    weight: float = 1.0

    @cached_property
    def node(self) -> Mapping[str, Node]:
        """Return the nodes by name."""
        return {node.name: node for node in self.nodes}

    @cached_property
    def incoming(self) -> Mapping[str, Sequence[Edge]]:
        """Return what flows into each node."""
        return {name: [edge for edge in self.edges if edge.target == name] for name in self.node}

    @cached_property
    def order(self) -> Sequence[str]:
        """Return the nodes, each behind those that flow into it.

        Raises:
            InvalidInput: there is a circle.
        """
        sources = {name: [edge.source for edge in edges] for name, edges in self.incoming.items()}
        try:
            return list(TopologicalSorter(sources).static_order())
        except CycleError as bad:
            circle = " -> ".join(bad.args[1])
            raise InvalidInput(f"task {self.name}: {circle} is a circle; a task must end", code=CODE) from None

    @cached_property
    def beside(self) -> Mapping[str, Sequence[str]]:
        """Return of each use those that neither lead to it nor follow from it: on one device they take turns."""
        before: dict[str, set[str]] = {}
        for name in self.order:
            sources = {edge.source for edge in self.incoming[name]}
            before[name] = sources.union(*(before[source] for source in sources))
        uses = [name for name in self.order if self.node[name].module is not None]
        return {
            name: [other for other in uses if other != name and other not in before[name] and name not in before[other]]
            for name in uses
        }

    def is_of(self, device: str) -> bool:
        """Return whether its data, or its answers, are at a device: without that it is asked no more."""
        return any(node.at == device for node in self.nodes)

    @property
    def modules(self) -> frozenset[str]:
        """Return the modules that it uses."""
        return frozenset(node.module for node in self.nodes if node.module is not None)


@dataclass(frozen=True)
class Site:
    """All that a placement is made of.

    Raises:
        InvalidInput: names are not known or not unique, numbers are impossible, or a task is no graph that ends.
    """

    devices: Sequence[Device]
    modules: Sequence[Module]
    tasks: Sequence[Task]

    def __post_init__(self) -> None:
        for kind, names in (
            ("device", [one.name for one in self.devices]),
            ("module", [one.name for one in self.modules]),
            ("task", [one.name for one in self.tasks]),
        ):
            _require_unique(kind, names)
        if not self.devices:
            raise InvalidInput("a site needs a device", code=CODE)
        for device in self.devices:
            self._check_device(device)
        for module in self.modules:
            self._check_module(module)
        for task in self.tasks:
            self._check_task(task)

    @cached_property
    def device(self) -> Mapping[str, Device]:
        """Return the devices by name."""
        return {one.name: one for one in self.devices}

    @cached_property
    def module(self) -> Mapping[str, Module]:
        """Return the modules by name."""
        return {one.name: one for one in self.modules}

    @cached_property
    def rates(self) -> Mapping[str, float]:
        """Return the runs per second of each module, over all tasks."""
        rates = dict.fromkeys(self.module, 0.0)
        for task in self.tasks:
            for node in task.nodes:
                if node.module is not None:
                    rates[node.module] += task.rate
        return rates

    def without(self, gone: Iterable[str]) -> "Site":
        """Return the site after devices are gone: tasks whose data were there cannot be answered and go with them."""
        left = set(self.device) - set(gone)
        return Site(
            [one for one in self.devices if one.name in left],
            [
                Module(
                    name=one.name,
                    memory_bytes=one.memory_bytes,
                    file_bytes=one.file_bytes,
                    seconds={name: seconds for name, seconds in one.seconds.items() if name in left},
                    joules={name: joules for name, joules in one.joules.items() if name in left},
                )
                for one in self.modules
            ],
            [task for task in self.tasks if all(node.at is None or node.at in left for node in task.nodes)],
        )

    def _check_device(self, device: Device) -> None:
        good = (
            device.memory_bytes >= 0
            and all(math.isfinite(value) and value > 0 for value in (device.up, device.down))
            and math.isfinite(device.delay_s)
            and device.delay_s >= 0
            and 0 < device.utilisation <= 1
        )
        if not good:
            raise InvalidInput(
                f"device {device.name}: memory and delay must not be negative, links be above 0 bytes per second, and "
                "utilisation within 0 and 1",
                code=CODE,
            )

    def _check_module(self, module: Module) -> None:
        for name, value in (*module.seconds.items(), *module.joules.items()):
            if name not in self.device:
                raise InvalidInput(f"module {module.name} was measured on {name}, which the site has not", code=CODE)
            if not math.isfinite(value) or value < 0:
                raise InvalidInput(f"module {module.name} on {name}: {value!r} is no time or energy", code=CODE)
        if module.memory_bytes < 0 or module.file_bytes < 0:
            raise InvalidInput(f"module {module.name}: its bytes are negative", code=CODE)

    def _check_task(self, task: Task) -> None:
        _require_unique(f"task {task.name}: node", [node.name for node in task.nodes])
        for node in task.nodes:
            if (node.module is None) == (node.at is None):
                raise InvalidInput(
                    f"task {task.name}: node {node.name} names a module to run or a device where data are, one of both",
                    code=CODE,
                )
            if node.module is not None and node.module not in self.module:
                raise InvalidInput(f"task {task.name}: node {node.name}: no module {node.module}", code=CODE)
            if node.at is not None and node.at not in self.device:
                raise InvalidInput(f"task {task.name}: node {node.name}: no device {node.at}", code=CODE)
        for edge in task.edges:
            for end in (edge.source, edge.target):
                if end not in task.node:
                    raise InvalidInput(
                        f"task {task.name}: edge {edge.source} -> {edge.target}: no node {end}", code=CODE
                    )
            if not math.isfinite(edge.nbytes) or edge.nbytes < 0:
                raise InvalidInput(
                    f"task {task.name}: edge {edge.source} -> {edge.target}: {edge.nbytes!r} bytes", code=CODE
                )
        if not all(math.isfinite(value) and value >= 0 for value in (task.rate, task.weight)):
            raise InvalidInput(f"task {task.name}: rate and weight must not be negative", code=CODE)
        task.order  # noqa: B018 - raises where there is a circle


def _require_unique(kind: str, names: Sequence[str]) -> None:
    twice = sorted(name for name in set(names) if names.count(name) > 1)
    if twice:
        raise InvalidInput(f"{kind} {twice[0]} is there twice", code=CODE)
