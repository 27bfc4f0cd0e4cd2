"""A site as a placement sees it, out of its tasks' typed graphs and what people say of its devices. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias
from uuid import UUID

from sprat_server.placement.plan import Plan, Wishes
from sprat_server.placement.site import Device, Edge, Module, Node, Site, Task
from sprat_server.sites.schemas import NewSitePlan
from sprat_shared.errors import InvalidInput
from sprat_shared.tasks.graph import TaskGraph
from sprat_shared.tasks.types import TensorType

Routes: TypeAlias = Mapping[str, Mapping[str, Mapping[str, list[str]]]]
"""Task -> device at which it is asked -> step -> hosts, one after the other."""
_BYTES_OF_MBIT: Final = 1e6 / 8
_BACK: Final = "<- "  # no step or input of a task is called so


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleSize:
    """What is known of a release: bytes while it is loaded, bytes of its full update, and who holds it already."""

    memory_bytes: int
    file_bytes: int
    held: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSize:
    """A device as a placement sees it; memory that nobody said is what all modules take."""

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

    A task is there once for each device at which it is asked, which gives its inputs, gets what comes out of each step,
    and sends it on to those that take it: as agents do. What flows has the bytes of its type.

    Args:
        asked: which tasks, at which devices, how long modules take.
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
        [_task(name, device, asked, graph, types[name]) for name, graph in graphs.items() for device in asked.at[name]],
    )


class Irreparable(InvalidInput):
    """A plan cannot do without a device that was lost."""

    code = "site.irreparable"


def without(asked: NewSitePlan, there: frozenset[str]) -> NewSitePlan:
    """Return what was asked of a site, of the devices that are still there.

    Raises:
        Irreparable: a module was put by hand, or can run, on none of them, or a task was asked at none.
    """
    hosts = None
    if asked.hosts is not None:
        hosts = {model: [one for one in on if one in there] for model, on in asked.hosts.items()}
        if gone := sorted(model for model, on in hosts.items() if not on):
            raise Irreparable(
                f"{gone[0]} was put on {', '.join(asked.hosts[gone[0]])} by hand, and on no other device; plan anew, "
                "and say where it is to be"
            )
    at = {task: [one for one in devices if one in there] for task, devices in asked.at.items()}
    if gone := sorted(task for task, left in at.items() if not left):
        raise Irreparable(
            f"{gone[0]} was asked at {', '.join(asked.at[gone[0]])}, and at no other device; plan anew, and say where "
            "it is asked now"
        )
    if gone := sorted(
        model for model, said in asked.modules.items() if said.seconds and not there & said.seconds.keys()
    ):
        raise Irreparable(
            f"{gone[0]} was said to run on {', '.join(asked.modules[gone[0]].seconds)}, and on no other device; plan "
            "anew, and say where it may run"
        )
    modules = {
        model: said.model_copy(
            update={
                "seconds": {name: value for name, value in said.seconds.items() if name in there},
                "joules": {name: value for name, value in said.joules.items() if name in there},
            }
        )
        for model, said in asked.modules.items()
    }
    on = [one for one in asked.on if one in there]
    return asked.model_copy(update={"hosts": hosts, "modules": modules, "at": at, "on": on})


def fallback_hosts(asked: NewSitePlan, fallbacks: Mapping[str, TaskGraph | None]) -> dict[str, frozenset[str]]:
    """Return the devices that must hold each module of the tasks' fallbacks: those at which the tasks are asked."""
    found: dict[str, frozenset[str]] = {}
    for task, graph in fallbacks.items():
        for model in graph.models if graph is not None else ():
            found[model] = found.get(model, frozenset()) | frozenset(asked.at[task])
    return found


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


def link_s(devices: Sequence[DeviceSize], uplink_mbit: float | None = None) -> dict[str, float]:
    """Return for each device the seconds that a byte it fetches keeps its link busy, or the site's if that is thinner.

    Args:
        devices: of the site.
        uplink_mbit: of the site, shared by all; None: it binds nothing.
    """
    most = float("inf") if uplink_mbit is None else uplink_mbit
    return {one.name: 1 / (min(one.down_mbit, most) * _BYTES_OF_MBIT) for one in devices}


def plan_of(content: Mapping[str, Any], asked: NewSitePlan, names: Mapping[UUID, str]) -> Plan:
    """Return a plan's content as a placement sees it.

    Args:
        content: of a plan that was placed, and whose hosts are all there.
        asked: of it; tasks are asked at its devices.
        names: of the devices that are there.
    """
    at = {name: device for device, name in names.items()}
    ways = {
        _asked_at(task, device): {
            step: [names[UUID(host)] for host in way]
            for step, way in content["tasks"][task]["routes"][str(at[device])].items()
        }
        for task, devices in asked.at.items()
        for device in devices
    }
    return Plan(
        hosts={
            model: frozenset(names[UUID(host)] for host in said["hosts"]) for model, said in content["modules"].items()
        },
        routes={task: {step: way[0] for step, way in steps.items()} for task, steps in ways.items()},
        standby={task: {step: way[1] for step, way in steps.items() if len(way) > 1} for task, steps in ways.items()},
    )


def routes(asked: NewSitePlan, plan: Plan) -> Routes:
    """Return by task, device at which it is asked, and step, the host to which the plan sends it, and who stands in."""
    return {
        task: {device: _ways(plan, _asked_at(task, device)) for device in devices} for task, devices in asked.at.items()
    }


def _ways(plan: Plan, task: str) -> dict[str, list[str]]:
    standby = plan.standby.get(task, {})
    return {step: [host, *([standby[step]] if step in standby else [])] for step, host in plan.routes[task].items()}


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


def _task(name: str, device: str, asked: NewSitePlan, graph: TaskGraph, types: Mapping[str, TensorType]) -> Task:
    """Return a task as it is asked at a device: sources of data there, and each step's wanted outputs back there."""
    taken = {source for step in graph.steps for source in step.inputs.values()} | set(graph.outputs.values())
    back = {step.name: sorted(one for one in taken if one.startswith(f"{step.name}.")) for step in graph.steps}
    nodes = [Node(name=port, at=device) for port in graph.inputs]
    nodes += [Node(name=step.name, module=step.model) for step in graph.steps]
    nodes += [Node(name=f"{_BACK}{step}", at=device) for step in back]
    edges = [_edge(step, f"{_BACK}{step}", sources, asked, types) for step, sources in back.items()]
    for step in graph.steps:
        flows: dict[str, set[str]] = {}
        for source in step.inputs.values():
            port, dot, _ = source.partition(".")
            flows.setdefault(f"{_BACK}{port}" if dot else port, set()).add(source)
        edges += [_edge(origin, step.name, sorted(sources), asked, types) for origin, sources in flows.items()]
    rate = asked.rates.get(name, 0.0) / len(asked.at[name])
    return Task(_asked_at(name, device), nodes, edges, rate=rate)


def _asked_at(task: str, device: str) -> str:
    return f"{task}@{device}"


def _edge(source: str, target: str, sent: Sequence[str], asked: NewSitePlan, types: Mapping[str, TensorType]) -> Edge:
    return Edge(source=source, target=target, nbytes=float(sum(types[one].nbytes(asked.sizes) for one in sent)))
