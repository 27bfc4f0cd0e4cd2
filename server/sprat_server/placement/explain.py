"""What binds a placement, and what one more device or more memory would give. Pure."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from sprat_server.placement.plan import Cost, Hop, Plan, Wishes, hops_of
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
        busy_after: the same once the device is lost after which it is largest; None: the plan need survive none.
        lost: that device.
        binds: whether one of them is nearly all.
    """

    device: str
    memory: float
    busy: float
    busy_after: float | None
    lost: str | None
    binds: bool


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
        after = [(share[name] / device.utilisation, lost) for lost, share in cost.busy_after.items() if name in share]
        worst, lost = max(after, default=(None, None))
        found.append(
            Use(
                device=name,
                memory=memory,
                busy=busy,
                busy_after=worst,
                lost=lost,
                binds=max(memory, busy, worst or 0.0) >= _TIGHT,
            )
        )
    return sorted(found, key=lambda use: (-max(use.memory, use.busy, use.busy_after or 0.0), use.device))


def longest_way(site: Site, task: Task, plan: Plan) -> list[Hop]:
    """Return the nodes that a task's latency is made of, from the first to the last."""
    hops = hops_of(site, task, plan.routes[task.name])
    way: list[Hop] = []
    at: str | None = max(hops, key=lambda name: hops[name].ends_s, default=None)
    while at is not None:
        way.append(hops[at])
        at = hops[at].source
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
