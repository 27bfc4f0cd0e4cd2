"""What binds a placement, and what one more device or more memory would give. Pure."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from sprat_server.placement.plan import Cost, Plan, Wishes, transfer_s
from sprat_server.placement.site import Device, Module, Site, Task

MORE_BYTES: Final = 2_000_000_000
"""How much more memory a device is imagined to have."""

_TIGHT: Final = 0.9  # share of a limit from which it is said to bind


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """How much of a device a plan takes.

    Attributes:
        device: it.
        memory: share of its memory.
        busy: share of the time that it may compute in which it does.
        binds: whether one of them is nearly all.
    """

    device: str
    memory: float
    busy: float
    binds: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """One step of the way that decides how long a task takes.

    Attributes:
        node: of the task.
        device: where it is.
        arrives_s: since the request, when all that it needs is there.
        ends_s: when it is done.
        carried_s: of that, sending what came last.
    """

    node: str
    device: str
    arrives_s: float
    ends_s: float
    carried_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What might be changed about a site, and the site after it."""

    what: str
    site: Site


def uses(site: Site, cost: Cost) -> list[Use]:
    """Return what a plan takes of each device, the fullest first."""
    found = []
    for name, device in site.device.items():
        memory = cost.memory[name] / device.memory_bytes if device.memory_bytes else float(cost.memory[name] > 0)
        busy = cost.busy[name] / device.utilisation
        found.append(Use(device=name, memory=memory, busy=busy, binds=max(memory, busy) >= _TIGHT))
    return sorted(found, key=lambda use: (-max(use.memory, use.busy), use.device))


def longest_way(site: Site, task: Task, plan: Plan) -> list[Hop]:
    """Return the nodes that a task's latency is made of, from the first to the last."""
    route = plan.routes[task.name]
    hops: dict[str, Hop] = {}
    before: dict[str, str | None] = {}
    for name in task.order:
        node = task.node[name]
        here = route[name] if node.at is None else node.at
        came = [
            (hops[edge.source].ends_s + carried, carried, edge.source)
            for edge in task.incoming[name]
            for carried in [transfer_s(site, edge, hops[edge.source].device, here)]
        ]
        arrives, carried, source = max(came, default=(0.0, 0.0, None))
        runs = 0.0
        if node.module is not None:
            beside = [str(task.node[other].module) for other in task.beside[name] if route[other] == here]
            runs = sum(site.module[module].seconds[here] for module in (node.module, *beside))
        hops[name] = Hop(node=name, device=here, arrives_s=arrives, ends_s=arrives + runs, carried_s=carried)
        before[name] = source
    way: list[Hop] = []
    at: str | None = max(hops, key=lambda name: hops[name].ends_s, default=None)
    while at is not None:
        way.append(hops[at])
        at = before[at]
    return way[::-1]


def changes(site: Site) -> Iterator[Change]:
    """Yield sites that are a little better: one more device like each that there is, or more memory in it."""
    for device in site.devices:
        name = f"another {device.name}"
        yield Change(what=f"one more device like {device.name}", site=_with_twin(site, device, name))
    for device in site.devices:
        larger = replace(device, memory_bytes=device.memory_bytes + MORE_BYTES)
        devices = [larger if one.name == device.name else one for one in site.devices]
        yield Change(what=f"2 GB more memory in {device.name}", site=Site(devices, site.modules, site.tasks))


def what_if(
    site: Site, wishes: Wishes, best: Callable[[Site, Wishes], float | None], goes_on: Callable[[], bool]
) -> Iterator[tuple[str, float | None]]:
    """Yield each change and what the best plan that is found costs after it; None: still none.

    Args:
        site: as it is.
        wishes: what is asked.
        best: places a site and returns what it costs.
        goes_on: asked before each.
    """
    for change in changes(site):
        if not goes_on():
            return
        yield change.what, best(change.site, wishes)


def _with_twin(site: Site, device: Device, name: str) -> Site:
    def measured(module: Module) -> Module:
        seconds, joules = dict(module.seconds), dict(module.joules)
        if device.name in seconds:
            seconds[name] = seconds[device.name]
        if device.name in joules:
            joules[name] = joules[device.name]
        return replace(module, seconds=seconds, joules=joules)

    return Site([*site.devices, replace(device, name=name)], [measured(one) for one in site.modules], site.tasks)
