"""Quick ways to a placement: module by module, then better by moves; what there is when the time is up. Pure.

What breaks a limit is worse than any latency, so that a search comes to plans that fit from outside, too.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations, product
from random import Random
from typing import Final

from sprat_server.placement.plan import Plan, Wishes, busy_after, latency_of, overloaded
from sprat_server.placement.site import Site, Task
from sprat_server.placement.standby import with_standby

Hosts = Mapping[str, frozenset[str]]
Worth = tuple[float, float]
"""What a placement is judged by, less is better: by what parts limits are passed, and the total that is minimised."""

_TRIED: Final = 64  # combinations of copies that are all tried; beyond that one use after the other is chosen
_KICKED: Final = 0.25  # share of the modules that a new start moves at random
_SLIGHT: Final = 1e-12


def greedy(site: Site, wishes: Wishes) -> Plan | None:
    """Return the plan that places one module after the other, the largest first, each where it costs least then.

    Returns:
        A plan that may break limits; None where a module can run nowhere.
    """
    search = _Search(site, wishes)
    if search.impossible():
        return None
    return search.plan(search.greedy())


def improve(site: Site, wishes: Wishes, *, goes_on: Callable[[], bool], seed: int = 0) -> Plan | None:
    """Return the best plan that a local search finds: from the greedy one, by moves and swaps, with new starts.

    Args:
        site: where.
        wishes: what is asked.
        goes_on: asked before each step; the search ends when it says no, and then, or where it finds nothing better
            any more in a site of one module, returns what it has.
        seed: of what is left to chance.

    Returns:
        A plan; it may break limits where none was found that does not. None where a module can run nowhere.
    """
    search, random = _Search(site, wishes), Random(seed)  # noqa: S311 - a search, no secret
    if search.impossible():
        return None
    best = here = search.descend(search.greedy(), goes_on)
    while goes_on() and search.movable:
        here = search.descend(search.kicked(best, random), goes_on)
        if search.worth(here) < search.worth(best):
            best = here
    return search.plan(best)


class _Search:
    def __init__(self, site: Site, wishes: Wishes) -> None:
        self._site, self._wishes = site, wishes
        self._copies = max(wishes.replicas, 2 if wishes.survives_one else 1)
        self._can: dict[str, list[str]] = {
            module.name: [name for name in site.device if name in module.seconds] for module in site.modules
        }
        self.movable = [name for name, hosts in self._can.items() if name not in wishes.pinned and len(hosts) > 1]
        self._using = {name: [task for task in site.tasks if name in task.modules] for name in site.module}
        self._known: dict[tuple[str, tuple[frozenset[str], ...]], tuple[float, Mapping[str, str]]] = {}

    def impossible(self) -> bool:
        """Return whether a module can run nowhere."""
        return any(not hosts and name not in self._wishes.pinned for name, hosts in self._can.items())

    def plan(self, hosts: Hosts) -> Plan:
        """Return the plan of these hosts, each use sent where its task is fastest."""
        found = Plan(hosts=dict(hosts), routes={task.name: self._route(task, hosts)[1] for task in self._site.tasks})
        return with_standby(self._site, found) if self._wishes.survives_one else found

    # what it is worth --------------------------------------------------------------------------------------------

    def worth(self, hosts: Hosts) -> Worth:
        """Return what a placement is judged by; tasks count as far as their modules are placed."""
        memory = dict.fromkeys(self._site.device, 0)
        total = 0.0
        for name, where in hosts.items():
            module = self._site.module[name]
            for host in where:
                memory[host] += module.memory_bytes
                total += self._wishes.fetching(module, host)
        busy = dict.fromkeys(self._site.device, 0.0)
        for task in self._site.tasks:
            seconds, route = self._route(task, hosts)
            total += task.weight * seconds
            for node, host in route.items():
                module = self._site.module[str(task.node[node].module)]
                busy[host] += task.rate * module.seconds[host]
                total += self._wishes.second_per_joule * task.rate * module.joules.get(host, 0.0)
        passed = 0.0
        for name, device in self._site.device.items():
            passed += max(0, memory[name] - device.memory_bytes) / max(1, device.memory_bytes)
            passed += max(0.0, busy[name] - device.utilisation * (1 + _SLIGHT))
        if self._wishes.survives_one and len(hosts) == len(self._site.modules) and any(busy.values()):
            plan = self.plan(hosts)
            passed += sum(
                sum(overloaded(self._site, busy_after(self._site, plan, lost)).values()) for lost in self._site.device
            )
        return passed, total

    def _route(self, task: Task, hosts: Hosts) -> tuple[float, Mapping[str, str]]:
        names = sorted(task.modules)
        key = (task.name, tuple(hosts.get(name, frozenset()) for name in names))
        if key not in self._known:
            part = task if all(key[1]) else _part(task, hosts)
            self._known[key] = self._fastest(part, hosts)
        return self._known[key]

    def _fastest(self, task: Task, hosts: Hosts) -> tuple[float, Mapping[str, str]]:
        uses = [node.name for node in task.nodes if node.module is not None]
        choices = [
            sorted(host for host in hosts[str(task.node[use].module)] if host in self._can[str(task.node[use].module)])
            for use in uses
        ]
        if math.prod(map(len, choices)) <= _TRIED:
            routes = [dict(zip(uses, chosen, strict=True)) for chosen in product(*choices)]
            return min(((latency_of(self._site, task, route), at, route) for at, route in enumerate(routes)))[::2]
        route = {use: hosts_of[0] for use, hosts_of in zip(uses, choices, strict=True)}
        for use, hosts_of in zip(uses, choices, strict=True):
            route[use] = min(hosts_of, key=lambda host: latency_of(self._site, task, {**route, use: host}))
        return latency_of(self._site, task, route), route

    # making and moving -------------------------------------------------------------------------------------------

    def greedy(self) -> Hosts:
        """Return where the modules are if each is placed where it costs least, the largest first."""
        hosts: dict[str, frozenset[str]] = {name: where for name, where in self._wishes.pinned.items() if where}
        largest = sorted(self._site.modules, key=lambda module: (-module.memory_bytes, module.name))
        for module in largest:
            if module.name not in hosts:
                hosts[module.name] = min(
                    (frozenset({host}) for host in self._can[module.name]),
                    key=lambda where: self.worth({**hosts, module.name: where}),
                )
        if self._wishes.survives_one:
            for module in largest:
                others = [host for host in self._can[module.name] if host not in hosts[module.name]]
                if len(hosts[module.name]) == 1 and others:
                    hosts[module.name] = min(
                        (hosts[module.name] | {host} for host in others),
                        key=lambda where: self.worth({**hosts, module.name: where}),
                    )
        return hosts

    def kicked(self, hosts: Hosts, random: Random) -> Hosts:
        """Return a placement some of whose modules are somewhere else."""
        moved = dict(hosts)
        for name in random.sample(self.movable, max(1, round(_KICKED * len(self.movable)))):
            copies = min(len(moved[name]), len(self._can[name]))
            moved[name] = frozenset(random.sample(self._can[name], copies))
        return moved

    def descend(self, hosts: Hosts, goes_on: Callable[[], bool]) -> Hosts:
        """Return the placement from which no single move and no swap leads to a better one."""
        here, worth, better = hosts, self.worth(hosts), True
        while better:
            better = False
            for change in self._moves(here):
                if not goes_on():
                    return here
                there = {**here, **change}
                found = self.worth(there)
                if found < worth:
                    here, worth, better = there, found, True
                    break
        return here

    def _moves(self, here: Hosts) -> Iterator[Hosts]:
        least = 2 if self._wishes.survives_one else 1
        for name in self.movable:
            hosts = here[name]
            for host in self._can[name]:
                if host in hosts:
                    if len(hosts) > least:
                        yield {name: hosts - {host}}
                    continue
                for old in sorted(hosts):
                    yield {name: hosts - {old} | {host}}
                if len(hosts) < self._copies:
                    yield {name: hosts | {host}}
        for one, other in combinations(self.movable, 2):
            if here[one] != here[other] and self._fit(one, here[other]) and self._fit(other, here[one]):
                yield {one: here[other], other: here[one]}

    def _fit(self, name: str, hosts: frozenset[str]) -> bool:
        return hosts <= set(self._can[name])


def _part(task: Task, hosts: Hosts) -> Task:
    """Return what is placed of a task."""
    nodes = [node for node in task.nodes if node.module is None or hosts.get(node.module)]
    names = {node.name for node in nodes}
    edges = [edge for edge in task.edges if edge.source in names and edge.target in names]
    return Task(task.name, nodes, edges, rate=task.rate, weight=task.weight)
