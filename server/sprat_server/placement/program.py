"""The exact way: a mixed-integer program for HiGHS, whose bound says how far from the best any plan can be.

Binary is only which device holds a module and, with replicas, which one a use is sent to. Whether two uses are on one
device is continuous: `z <= both` for what a transfer would save, which is pushed up, and `y >= both - 1` for waiting,
which is pushed down. Around a hub, a transfer is a term of the sender and a term of the receiver, less both where they
are one device; so no product of two choices is left.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from sprat_server.placement.columns import Columns
from sprat_server.placement.plan import Plan, Wishes, cost_of
from sprat_server.placement.site import Edge, Site, Task
from sprat_server.placement.standby import with_standby

_INFINITY: Final = float("inf")
_HALF: Final = 0.5
Uses = Mapping[str, int]
"""Device -> column that says that a use of a module is there."""


class Proven(StrEnum):
    """What the solver has shown."""

    OPTIMAL = "optimal"  # no plan is better, but for a millionth
    WITHIN = "within"  # the time was up: none is better than the bound
    INFEASIBLE = "infeasible"  # there is no plan
    NOTHING = "nothing"  # the time was up, and no plan was found


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A plan and how good it is.

    Attributes:
        proven: what is known of it.
        plan: None: none was found.
        total: what it costs.
        bound: no plan costs less.
    """

    proven: Proven
    plan: Plan | None
    total: float
    bound: float

    @property
    def gap(self) -> float:
        """Return by what share of its cost the plan may be worse than the best; 1 where there is no plan."""
        return (
            max(0.0, 1 - self.bound / self.total)
            if self.plan is not None and self.total > 0
            else float(self.plan is None)
        )


def solve(site: Site, wishes: Wishes, *, seconds: float, start: Plan | None = None) -> Answer:
    """Return the best plan that is found in a time, and a bound on all others.

    Args:
        site: where.
        wishes: what is asked.
        seconds: of one core, at most, more or less.
        start: a plan to begin with; kept if nothing better is found.

    Raises:
        InvalidInput: a wish names what the site has not.
    """
    columns = Columns()
    program = Program(site, wishes, columns)
    begun = start if start is not None and cost_of(site, wishes, start).fits else None
    status, values, bound = columns.solve(seconds, None if begun is None else program.values_of(begun))
    found = [] if values is None else [program.plan_of(values)]
    if begun is not None:
        found.append(begun)
    costs = [(cost_of(site, wishes, plan).total, at) for at, plan in enumerate(found)]
    if not costs:
        return Answer(
            proven=Proven.INFEASIBLE if status == "infeasible" else Proven.NOTHING,
            plan=None,
            total=_INFINITY,
            bound=_INFINITY if status == "infeasible" else bound,
        )
    total, at = min(costs)
    proven = Proven.OPTIMAL if status == "optimal" else Proven.WITHIN
    return Answer(proven=proven, plan=found[at], total=total, bound=min(bound, total))


class Program:
    """One plan as columns and rows, and which column means what.

    Args:
        site: where.
        wishes: what is asked.
        columns: to which it is added.

    Attributes:
        hosts: module -> device -> column that says that it is held there.
        uses: task -> node -> device -> column that says that it is sent there.

    Raises:
        InvalidInput: a wish names what the site has not.
    """

    def __init__(self, site: Site, wishes: Wishes, columns: Columns) -> None:
        self._site, self._wishes = site, wishes
        self._copies = max(wishes.replicas, 2 if wishes.survives_one else 1)
        self._columns, self._column, self._row = columns, columns.column, columns.row
        self._both: dict[tuple[int, int], int] = {}  # continuous: two uses are on one device, z
        self._waits: dict[tuple[int, int], int] = {}  # the same, y
        wishes.check(site)
        self._one = self._column(0.0, 1.0, 1.0)
        self.hosts = {module.name: self._placed(module.name) for module in site.modules}
        self.uses = {
            task.name: {node.name: self._routed(task, node.module) for node in task.nodes if node.module is not None}
            for task in site.tasks
        }
        self.ends = {task.name: self._timed(task) for task in site.tasks}
        self._limit_devices()
        self.standby = self._stood_in() if wishes.survives_one else {}

    # building ----------------------------------------------------------------------------------------------------

    def _placed(self, name: str) -> Uses:
        module, wishes = self._site.module[name], self._wishes
        pinned = wishes.pinned.get(name, frozenset())
        hosts = {
            host: self._column(wishes.fetching(module, host), 1.0 if host in pinned else 0.0, 1.0, binary=True)
            for host in self._site.device
            if host in module.seconds
        }
        least = min(2 if wishes.survives_one else 1, max(1, len(hosts)))
        most = max(self._copies, len(pinned))
        self._row(float(least), float(most), dict.fromkeys(hosts.values(), 1.0))
        return hosts

    def _routed(self, task: Task, name: str) -> Uses:
        module = self._site.module[name]
        hosts = {host: column for host, column in self.hosts[name].items() if host in module.seconds}
        price = {host: self._wishes.second_per_joule * task.rate * module.joules.get(host, 0.0) for host in hosts}
        if self._copies == 1 and len(self._wishes.pinned.get(name, ())) <= 1:  # whoever holds it runs it
            for host, column in hosts.items():
                self._columns.add_cost(column, price[host])
            return hosts
        uses = {host: self._column(price[host], 0.0, 1.0, binary=True) for host in hosts}
        self._row(1.0, 1.0, dict.fromkeys(uses.values(), 1.0))
        for host, use in uses.items():
            self._row(-_INFINITY, 0.0, {use: 1.0, hosts[host]: -1.0})
        return uses

    def _timed(self, task: Task) -> int:
        """Add the end of each node, and of the task; return the latter's column."""
        last = self._column(task.weight, 0.0, _INFINITY)
        ends: dict[str, int] = {}
        for name in task.order:
            node = task.node[name]
            ends[name] = self._column(0.0, 0.0, _INFINITY)
            self._row(0.0, _INFINITY, {last: 1.0, ends[name]: -1.0})
            runs = self._runs(task, name) if node.module is not None else {}
            self._after(ends[name], None, runs)
            for edge in task.incoming[name]:
                terms = self._transfer(task, edge)
                for column, factor in runs.items():
                    terms[column] += factor
                self._after(ends[name], ends[edge.source], terms)
        return last

    def _after(self, end: int, begin: int | None, terms: Mapping[int, float]) -> None:
        """Say that `end >= begin + terms`."""
        row = {column: -factor for column, factor in terms.items() if factor}
        row[end] = row.get(end, 0.0) + 1.0
        if begin is not None:
            row[begin] = row.get(begin, 0.0) - 1.0
        self._row(0.0, _INFINITY, row)

    def _runs(self, task: Task, name: str) -> dict[int, float]:
        """Return the seconds of a use and of those that it waits for."""
        here = self.uses[task.name][name]
        seconds = self._site.module[str(task.node[name].module)].seconds
        terms: dict[int, float] = defaultdict(float)
        for host, column in here.items():
            terms[column] += seconds[host]
        for other in task.beside[name]:
            there = self.uses[task.name][other]
            behind = self._site.module[str(task.node[other].module)].seconds
            for host in here.keys() & there.keys():
                terms[self._wait(here[host], there[host])] += behind[host]
        return terms

    def _transfer(self, task: Task, edge: Edge) -> dict[int, float]:
        """Return the seconds of an edge: up from its start, down to its end, less both where these are one device."""
        senders, receivers = self._places(task, edge.source), self._places(task, edge.target)
        terms: dict[int, float] = defaultdict(float)
        for host, column in senders.items():
            terms[column] += self._up(edge, host)
        for host, column in receivers.items():
            terms[column] += self._down(edge, host)
        for host in senders.keys() & receivers.keys():
            terms[self._together(senders[host], receivers[host])] -= self._up(edge, host) + self._down(edge, host)
        return terms

    def _places(self, task: Task, name: str) -> Uses:
        """Return the columns that say where a node is; of data, the one that is always 1."""
        at = task.node[name].at
        return self.uses[task.name][name] if at is None else {at: self._one}

    def _up(self, edge: Edge, host: str) -> float:
        device = self._site.device[host]
        return edge.nbytes / device.up + device.delay_s

    def _down(self, edge: Edge, host: str) -> float:
        device = self._site.device[host]
        return edge.nbytes / device.down + device.delay_s

    def _together(self, one: int, other: int) -> int:
        """Return the column that is 1 only where both are."""
        if self._one in {one, other}:
            return other if one == self._one else one
        if one == other:
            return one
        key = (min(one, other), max(one, other))
        if key not in self._both:
            self._both[key] = self._column(0.0, 0.0, 1.0)
            for column in key:
                self._row(-_INFINITY, 0.0, {self._both[key]: 1.0, column: -1.0})
        return self._both[key]

    def _wait(self, one: int, other: int) -> int:
        """Return the column that is 1 where both are."""
        if one == other:
            return one
        key = (min(one, other), max(one, other))
        if key not in self._waits:
            self._waits[key] = self._column(0.0, 0.0, 1.0)
            self._row(-1.0, _INFINITY, {self._waits[key]: 1.0, one: -1.0, other: -1.0})
        return self._waits[key]

    def _limit_devices(self) -> None:
        for name, device in self._site.device.items():
            memory = {
                hosts[name]: float(self._site.module[module].memory_bytes)
                for module, hosts in self.hosts.items()
                if name in hosts
            }
            room = max(1.0, float(device.memory_bytes))  # rows in parts of the whole, for the solver's tolerances
            self._row(-_INFINITY, device.memory_bytes / room, {at: value / room for at, value in memory.items()})
            busy: dict[int, float] = {}
            for task in self._site.tasks:
                for node, hosts in self.uses[task.name].items():
                    if name in hosts:
                        seconds = self._site.module[str(task.node[node].module)].seconds[name]
                        busy[hosts[name]] = busy.get(hosts[name], 0.0) + task.rate * seconds
            if any(busy.values()):
                self._row(-_INFINITY, device.utilisation, busy)

    def _stood_in(self) -> dict[tuple[str, str, str], Uses]:
        """Say who stands in for each use when its device is lost, within what the others have time for.

        Returns:
            task, node and lost device -> columns that say that another one runs it then. Not of uses that take no time,
            or of modules that only one device can hold.
        """
        found: dict[tuple[str, str, str], Uses] = {}
        busy: dict[tuple[str, str], dict[int, float]] = defaultdict(lambda: defaultdict(float))
        for task in self._site.tasks:
            for node, uses in self.uses[task.name].items():
                name = str(task.node[node].module)
                load = {host: task.rate * self._site.module[name].seconds[host] for host in uses}
                for lost in self._site.device if any(load.values()) else ():
                    if task.is_of(lost):
                        continue
                    for host in uses.keys() - {lost}:
                        busy[lost, host][uses[host]] += load[host]
                    if lost in uses and len(uses) > 1:
                        columns = found[task.name, node, lost] = self._others(uses, self.hosts[name], lost)
                        for host, column in columns.items():
                            busy[lost, host][column] += load[host]
        for (_, host), terms in busy.items():
            self._row(-_INFINITY, self._site.device[host].utilisation, terms)
        return found

    def _others(self, uses: Uses, hosts: Uses, lost: str) -> Uses:
        """Return columns of which one is 1 if a use is sent to the device that is lost: who holds it, too."""
        columns = {host: self._column(0.0, 0.0, 1.0, binary=True) for host in sorted(uses) if host != lost}
        self._row(0.0, 0.0, {**dict.fromkeys(columns.values(), 1.0), uses[lost]: -1.0})
        for host, column in columns.items():
            self._row(-_INFINITY, 0.0, {column: 1.0, hosts[host]: -1.0})
        return columns

    # plans as values ---------------------------------------------------------------------------------------------

    def values_of(self, plan: Plan) -> dict[int, float]:
        """Return a plan as values of the binary columns; those of all others are 0, or the solver's to complete."""
        values = {self._one: 1.0}
        for task, nodes in self.uses.items():
            for node, hosts in nodes.items():
                values[hosts[plan.routes[task][node]]] = 1.0
        for module, hosts in self.hosts.items():
            for host in plan.hosts[module]:
                values[hosts[host]] = 1.0
        for (task, node, lost), hosts in self.standby.items():
            if plan.routes[task][node] == lost:
                values[hosts[plan.standby[task][node]]] = 1.0
        return values

    def plan_of(self, values: Sequence[float]) -> Plan:
        """Return the plan that the columns' values mean; a copy that nobody uses or wished for is left out."""
        routes = {
            task: {node: max(hosts, key=lambda host: values[hosts[host]]) for node, hosts in nodes.items()}
            for task, nodes in self.uses.items()
        }
        standby: dict[str, dict[str, str]] = {task.name: {} for task in self._site.tasks}
        for (name, use, lost), columns in self.standby.items():
            if routes[name][use] == lost:
                standby[name][use] = max(columns, key=lambda host: values[columns[host]])
        used: dict[str, set[str]] = {module: set(self._wishes.pinned.get(module, ())) for module in self.hosts}
        for task in self._site.tasks:
            for way in (routes[task.name], standby[task.name]):
                for node, host in way.items():
                    used[str(task.node[node].module)].add(host)
        hosts = {}
        for module, columns in self.hosts.items():
            placed = sorted(host for host, column in columns.items() if values[column] > _HALF)
            wanted = used[module] or set(placed)
            if self._wishes.survives_one:
                wanted |= set([host for host in placed if host not in wanted][: max(0, 2 - len(wanted))])
            hosts[module] = frozenset(wanted)
        plan = Plan(hosts=hosts, routes=routes)
        return with_standby(self._site, plan, standby) if self._wishes.survives_one else plan
