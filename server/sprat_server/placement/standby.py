"""Who runs what a device ran once that one is lost: within what the others have time for, and quickly. Pure.

A use moves only when its own device is lost, so what is chosen for the loss of one says nothing of that of another.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from sprat_server.placement.plan import ROUNDING, Plan, busy_after, latency_of
from sprat_server.placement.site import Module, Site, Task

Standby = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class _Use:
    task: Task
    node: str
    module: Module
    hosts: tuple[str, ...]  # that may stand in

    def load(self, host: str) -> float:
        return self.task.rate * self.module.seconds[host]


def with_standby(site: Site, plan: Plan, begun: Standby | None = None) -> Plan:
    """Return a plan with who stands in for whom.

    Args:
        site: where.
        plan: hosts and routes.
        begun: a choice to begin with, bettered where that overloads nobody; None: the largest loads are placed first,
            each where it overloads least and takes least long.

    Returns:
        The plan; nodes of modules that are on one device alone have no standby. It may overload devices, where nothing
        better was found.
    """
    standby = {task.name: dict((begun or {}).get(task.name, {})) for task in site.tasks}
    found = replace(plan, standby=standby)
    for lost in site.device:
        _stand_in(site, found, lost, standby)
    return found


def _stand_in(site: Site, plan: Plan, lost: str, standby: dict[str, dict[str, str]]) -> None:
    """Choose for the loss of one device, in `standby`, which is the plan's."""
    moving = sorted(
        _moving(site, plan, lost), key=lambda use: (-max(map(use.load, use.hosts)), use.task.name, use.node)
    )
    busy = busy_after(site, plan, lost)

    def worth(use: _Use, host: str) -> tuple[float, float]:
        most = site.device[host].utilisation * (1 + ROUNDING)
        over = max(0.0, busy[host] + use.load(host) - most) - max(0.0, busy[host] - most)
        after = {**plan.route_after(use.task.name, lost), use.node: host}
        whole = len(after) == len(plan.routes[use.task.name])
        return over, latency_of(site, use.task, after) if whole else use.module.seconds[host]

    better = True
    while better:
        better = False
        for use in moving:
            chosen = standby[use.task.name]
            now = chosen.get(use.node)
            if now is not None:
                busy[now] -= use.load(now)
            best = min(use.hosts, key=lambda host, use=use: worth(use, host))  # type: ignore[misc]
            if now is None or worth(use, best) < worth(use, now):
                chosen[use.node], better = best, True
            busy[chosen[use.node]] += use.load(chosen[use.node])


def _moving(site: Site, plan: Plan, lost: str) -> Iterator[_Use]:
    for task in site.tasks:
        for node, host in plan.routes[task.name].items():
            module = site.module[str(task.node[node].module)]
            others = tuple(sorted(one for one in plan.hosts[module.name] if one != lost and one in module.seconds))
            if host == lost and others and not task.is_of(lost):
                yield _Use(task, node, module, others)
