"""A placement, and what it costs by the one measure that all ways to find one share. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from sprat_server.placement.site import CODE, Edge, Module, Node, Site, Task
from sprat_shared.errors import InvalidInput

ROUNDING: Final = 1e-9
"""By so much, relatively, a limit may be passed that floats computed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What is asked of a placement beside low latency.

    Attributes:
        replicas: devices that may hold the same module, at most.
        survives_one: each module that can be is held by two devices, and whichever one is lost, the others have the
            time to answer what it did.
        second_per_joule: what energy weighs: latency that one joule a second is worth.
        second_per_byte: what a move weighs: latency that fetching one byte is worth.
        link_s: device -> seconds that its link is busy with one byte, which weigh like latency; 0 where it is not said.
        held: module -> devices that have its file; fetching it there costs nothing.
        pinned: module -> devices where it stays.
    """

    replicas: int = 1
    survives_one: bool = False
    second_per_joule: float = 0.0
    second_per_byte: float = 0.0
    link_s: Mapping[str, float] = field(default_factory=dict)
    held: Mapping[str, frozenset[str]] = field(default_factory=dict)
    pinned: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def fetching(self, module: Module, host: str) -> float:
        """Return what it weighs that a device is to hold a module."""
        if host in self.held.get(module.name, ()):
            return 0.0
        return (self.second_per_byte + self.link_s.get(host, 0.0)) * module.file_bytes

    def check(self, site: Site) -> None:
        """Return if all that is named is there, and can run where it is pinned.

        Raises:
            InvalidInput: a module or a device is not, or cannot.
        """
        for what, wish in (("pinned", self.pinned), ("held", self.held)):
            for module, hosts in wish.items():
                if module not in site.module or not hosts <= site.device.keys():
                    raise InvalidInput(
                        f"{what}: module {module} on {', '.join(sorted(hosts))}: the site has no such module or device",
                        code=CODE,
                    )
        for module, hosts in self.pinned.items():
            if unable := sorted(hosts - site.module[module].seconds.keys()):
                raise InvalidInput(f"pinned: module {module} was not measured on {unable[0]}", code=CODE)


NO_WISHES: Final = Wishes()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Who holds what, and who runs what for whom.

    Attributes:
        hosts: module -> devices that hold it.
        routes: task -> node -> device that runs it.
        standby: task -> node -> device that runs it when that one is lost; only of a plan that survives the loss.
    """

    hosts: Mapping[str, frozenset[str]]
    routes: Mapping[str, Mapping[str, str]]
    standby: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def route_after(self, task: str, lost: str) -> dict[str, str]:
        """Return how a task goes after a device is lost; nodes that nobody else can run are left out."""
        standby = self.standby.get(task, {})
        after = {node: standby.get(node) if host == lost else host for node, host in self.routes[task].items()}
        return {node: host for node, host in after.items() if host is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a plan comes to.

    Attributes:
        total: what is minimised: weighted seconds, and what energy and moves weigh.
        latency: task -> seconds of a request.
        memory: device -> bytes of the modules that it holds.
        busy: device -> share of the time in which it computes.
        joules: a second, over all devices.
        moved: bytes that devices fetch.
        over: device -> bytes above its memory; only those that are above.
        overloaded: device -> busy beyond its share; likewise.
        busy_after: lost device -> device -> share of the time in which it computes then; of a plan that is to survive.
        overloaded_after: lost device -> device -> busy beyond its share; only those that are.
    """

    total: float
    latency: Mapping[str, float]
    memory: Mapping[str, int]
    busy: Mapping[str, float]
    joules: float
    moved: int
    over: Mapping[str, int]
    overloaded: Mapping[str, float]
    busy_after: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    overloaded_after: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        """Return whether no device holds or computes more than it may."""
        return not (self.over or self.overloaded or self.overloaded_after)


class Hop(NamedTuple):
    """When a node of a task is done, if its uses are sent as a plan says.

    Attributes:
        node: of the task.
        device: where it is.
        source: the node whose data came last; None: it needs none.
        carried_s: that they were under way.
        arrives_s: since the request, when all that it needs is there.
        ends_s: when it is done.
    """

    node: str
    device: str
    source: str | None
    carried_s: float
    arrives_s: float
    ends_s: float


def hops_of(site: Site, task: Task, route: Mapping[str, str]) -> dict[str, Hop]:
    """Return when each node of a task is done.

    A node begins when all that flows into it is there. Uses of modules beside each other on one device run one after
    the other, and each counts as if it came last.

    Args:
        site: where.
        task: what.
        route: node -> device, for every use of a module.
    """
    hops: dict[str, Hop] = {}
    for name in task.order:
        node = task.node[name]
        here = route[name] if node.at is None else node.at
        source, carried, arrives = None, 0.0, 0.0
        for edge in task.incoming[name]:
            takes = transfer_s(site, edge, hops[edge.source].device, here)
            if source is None or hops[edge.source].ends_s + takes > arrives:
                source, carried, arrives = edge.source, takes, hops[edge.source].ends_s + takes
        hops[name] = Hop(name, here, source, carried, arrives, arrives + _runs_s(site, task, node, here, route))
    return hops


def latency_of(site: Site, task: Task, route: Mapping[str, str]) -> float:
    """Return the seconds of a request: of the longest way through the task's graph (`hops_of`)."""
    return max((hop.ends_s for hop in hops_of(site, task, route).values()), default=0.0)


def transfer_s(site: Site, edge: Edge, source: str, target: str) -> float:
    """Return the seconds that what flows along an edge takes from one device to another."""
    if source == target:
        return 0.0
    sender, receiver = site.device[source], site.device[target]
    return edge.nbytes / sender.up + sender.delay_s + edge.nbytes / receiver.down + receiver.delay_s


def cost_of(site: Site, wishes: Wishes, plan: Plan) -> Cost:
    """Return what a plan comes to. It may break limits; `Cost.fits` says so."""
    latency = {task.name: latency_of(site, task, plan.routes[task.name]) for task in site.tasks}
    memory = dict.fromkeys(site.device, 0)
    moved, fetching = 0, 0.0
    for name, hosts in plan.hosts.items():
        for host in hosts:
            memory[host] += site.module[name].memory_bytes
            fetching += wishes.fetching(site.module[name], host)
            moved += 0 if host in wishes.held.get(name, ()) else site.module[name].file_bytes
    busy = dict.fromkeys(site.device, 0.0)
    joules = 0.0
    for task in site.tasks:
        for node, host in plan.routes[task.name].items():
            module = site.module[str(task.node[node].module)]
            busy[host] += task.rate * module.seconds[host]
            joules += task.rate * module.joules.get(host, 0.0)
    weighted = sum(task.weight * latency[task.name] for task in site.tasks)
    after = {lost: busy_after(site, plan, lost) for lost in site.device} if wishes.survives_one else {}
    over_after = {lost: overloaded(site, share) for lost, share in after.items()}
    return Cost(
        total=weighted + wishes.second_per_joule * joules + fetching,
        latency=latency,
        memory=memory,
        busy=busy,
        joules=joules,
        moved=moved,
        over={
            name: used - site.device[name].memory_bytes
            for name, used in memory.items()
            if used > site.device[name].memory_bytes
        },
        overloaded=overloaded(site, busy),
        busy_after=after,
        overloaded_after={lost: beyond for lost, beyond in over_after.items() if beyond},
    )


def busy_after(site: Site, plan: Plan, lost: str) -> dict[str, float]:
    """Return the share of the time in which each device computes after one is lost.

    Tasks whose data were there are asked no more; a node that nobody else can run is run no more.
    """
    busy = {name: 0.0 for name in site.device if name != lost}
    for task in site.tasks:
        if task.rate and not task.is_of(lost):
            for node, host in plan.route_after(task.name, lost).items():
                busy[host] += task.rate * site.module[str(task.node[node].module)].seconds[host]
    return busy


def overloaded(site: Site, busy: Mapping[str, float]) -> dict[str, float]:
    """Return by how much devices compute beyond their share; only those that do."""
    return {
        name: share - site.device[name].utilisation
        for name, share in busy.items()
        if share > site.device[name].utilisation * (1 + ROUNDING)
    }


def _runs_s(site: Site, task: Task, node: Node, here: str, route: Mapping[str, str]) -> float:
    if node.module is None:
        return 0.0
    waits = [str(task.node[other].module) for other in task.beside[node.name] if route[other] == here]
    return site.module[node.module].seconds[here] + sum(site.module[module].seconds[here] for module in waits)
