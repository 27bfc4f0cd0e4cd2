"""A site as a placement sees it, out of its tasks' typed graphs and what people say of its devices. Pure."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sprat_server.placement.plan import Plan, Wishes
from sprat_server.placement.site import Device, Edge, Module, Node, Site, Task
from sprat_server.sites.schemas import NewSitePlan
from sprat_shared.errors import InvalidInput
from sprat_shared.tasks.graph import TaskGraph
from sprat_shared.tasks.types import TensorType

_BYTES_OF_MBIT: Final = 1e6 / 8
_ANSWER: Final = "-> "  # no step or input of a task is called so


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleSize:
    """What is known of a release: bytes while it is loaded, bytes of its full update, and who holds it already."""

    memory_bytes: int
    file_bytes: int
    held: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSize:
    """What people said of a device; memory that nobody said is what all modules take."""

    name: str
    memory_bytes: int | None
    up_mbit: float
    down_mbit: float
    delay_ms: float
    utilisation: float


def placed_site(
    asked: NewSitePlan,
    graphs: Mapping[str, TaskGraph],
    types: Mapping[str, Mapping[str, TensorType]],
    devices: Sequence[DeviceSize],
    sizes: Mapping[str, ModuleSize],
) -> Site:
    """Return what is to be placed.

    What flows along an edge has the bytes of its type; an output of one step that a step takes twice is sent once.

    Args:
        asked: which tasks, where their data are, how long modules take.
        graphs: of the tasks, by name.
        types: of each source in a task, by task.
        devices: of the site.
        sizes: of the modules' releases, by model.

    Raises:
        InvalidInput: it is no site.
    """
    all_of_it = sum(size.memory_bytes for size in sizes.values())
    return Site(
        [
            Device(
                name=one.name,
                memory_bytes=all_of_it if one.memory_bytes is None else one.memory_bytes,
                up=one.up_mbit * _BYTES_OF_MBIT,
                down=one.down_mbit * _BYTES_OF_MBIT,
                delay_s=one.delay_ms / 1000,
                utilisation=one.utilisation,
            )
            for one in devices
        ],
        [
            Module(
                name=model,
                memory_bytes=size.memory_bytes,
                file_bytes=size.file_bytes,
                seconds=asked.modules[model].seconds,
                joules=asked.modules[model].joules,
            )
            for model, size in sizes.items()
        ],
        [_task(name, asked, graph, types[name]) for name, graph in graphs.items()],
    )


class Irreparable(InvalidInput):
    """A plan cannot do without a device that was lost."""

    code = "site.irreparable"


def without(asked: NewSitePlan, there: Collection[str]) -> NewSitePlan:
    """Return what was asked of a site, of the devices that are still there.

    Raises:
        Irreparable: a module was put by hand on none of them, or data arise, or answers are wanted, at none.
    """
    hosts = None
    if asked.hosts is not None:
        hosts = {model: [one for one in on if one in there] for model, on in asked.hosts.items()}
        if gone := sorted(model for model, on in hosts.items() if not on):
            raise Irreparable(
                f"{gone[0]} was put on {', '.join(asked.hosts[gone[0]])} by hand, and on no other device; plan anew, "
                "and say where it is to be"
            )
    if gone := sorted(port for port, device in asked.at.items() if device not in there):
        raise Irreparable(f"{gone[0]} is at {asked.at[gone[0]]}, which was lost; plan anew, and say where it is now")
    modules = {
        model: said.model_copy(
            update={
                "seconds": {name: value for name, value in said.seconds.items() if name in there},
                "joules": {name: value for name, value in said.joules.items() if name in there},
            }
        )
        for model, said in asked.modules.items()
    }
    return asked.model_copy(update={"hosts": hosts, "modules": modules})


def wishes(
    asked: NewSitePlan, sizes: Mapping[str, ModuleSize], pinned: Mapping[str, frozenset[str]] | None = None
) -> Wishes:
    """Return what is asked beside low latency; `pinned` modules stay where they are."""
    return Wishes(
        replicas=asked.replicas,
        survives_one=asked.survives_one,
        second_per_byte=asked.second_per_mb / 1e6,
        held={model: size.held for model, size in sizes.items() if size.held},
        pinned=pinned or {},
    )


def hosts_in_order(plan: Plan, site: Site) -> dict[str, list[str]]:
    """Return the devices of each module, the one that most uses are sent to before the others."""
    sent: dict[tuple[str, str], int] = {}
    for task in site.tasks:
        for node, device in plan.routes[task.name].items():
            use = str(task.node[node].module), device
            sent[use] = sent.get(use, 0) + 1
    return {
        module: sorted(hosts, key=lambda host, module=module: (-sent.get((module, host), 0), host))  # type: ignore[misc]
        for module, hosts in sorted(plan.hosts.items())
    }


def _task(name: str, asked: NewSitePlan, graph: TaskGraph, types: Mapping[str, TensorType]) -> Task:
    inputs = [Node(name=port, at=asked.at[port]) for port in graph.inputs]
    home = asked.at[next(iter(graph.inputs))]
    outputs = [Node(name=f"{_ANSWER}{port}", at=asked.at.get(port, home)) for port in graph.outputs]
    steps = [Node(name=step.name, module=step.model) for step in graph.steps]
    flows: dict[tuple[str, str], set[str]] = {}
    for step in graph.steps:
        for source in step.inputs.values():
            flows.setdefault((source.partition(".")[0], step.name), set()).add(source)
    for port, source in graph.outputs.items():
        flows.setdefault((source.partition(".")[0], f"{_ANSWER}{port}"), set()).add(source)
    edges = [
        Edge(source=source, target=target, nbytes=float(sum(types[one].nbytes(asked.sizes) for one in sent)))
        for (source, target), sent in flows.items()
    ]
    return Task(name, [*inputs, *steps, *outputs], edges, rate=asked.rates.get(name, 0.0))
