"""Whether another plan than the one that serves is worth the bytes that it moves. Pure.

What a plan gains is seconds that requests wait less: the latency that each task saves, by its weight, times its
requests in a time. What it costs is the seconds that links are busy with what moves, and what people say a byte is
worth. Both are seconds, so that the plan with the largest gain above its cost is one placement: `priced`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from sprat_server.placement.plan import Plan, Wishes, cost_of
from sprat_server.placement.site import Site

SLIGHT: Final = 1e-6
"""A gain above the cost by less than this share of it is none: so exact is the solver."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """What another plan would bring and cost.

    Attributes:
        within_s: seconds over which it is counted.
        saved_s: that requests wait less in that time, by their tasks' weights.
        moved_bytes: that devices fetch.
        link_s: that links are busy with them.
        cost_s: `link_s`, and what people said that the bytes are worth.
        rates: task -> requests a second,
        latency: and their seconds before,
        latency_after: and after.
    """

    within_s: float
    saved_s: float
    moved_bytes: int
    link_s: float
    cost_s: float
    rates: Mapping[str, float]
    latency: Mapping[str, float]
    latency_after: Mapping[str, float]

    @property
    def pays(self) -> bool:
        """Return whether it saves more than it costs."""
        return self.saved_s - self.cost_s > SLIGHT * max(self.saved_s, self.cost_s)

    def as_json(self) -> dict[str, Any]:
        """Return what is kept of it."""
        return {
            "pays": self.pays,
            "pays_within_s": self.within_s,
            "saved_s": self.saved_s,
            "cost_s": self.cost_s,
            "moved_bytes": self.moved_bytes,
            "link_s": self.link_s,
            "tasks": {
                name: {"before_s": before, "after_s": self.latency_after[name]} for name, before in self.latency.items()
            },
        }


def priced(site: Site, within_s: float) -> Site:
    """Return a site whose best plan is the one that gains most: a task weighs as much as it is asked in a time."""
    tasks = [replace(task, weight=task.weight * task.rate * within_s) for task in site.tasks]
    return Site(site.devices, site.modules, tasks)


def gain(site: Site, wishes: Wishes, before: Plan, after: Plan, within_s: float) -> Gain:
    """Return what a plan would bring in the place of another one.

    Args:
        site: as it is, not `priced`.
        wishes: `held` is where files are now, `link_s` and `second_per_byte` what moving them costs.
        before: the plan that serves.
        after: the other one.
        within_s: seconds over which it is counted.
    """
    old, new = cost_of(site, wishes, before), cost_of(site, wishes, after)
    fetched = [
        (site.module[name].file_bytes, host)
        for name, hosts in after.hosts.items()
        for host in hosts - wishes.held.get(name, frozenset())
    ]
    link_s = sum(nbytes * wishes.link_s.get(host, 0.0) for nbytes, host in fetched)
    saved = sum(task.weight * task.rate * (old.latency[task.name] - new.latency[task.name]) for task in site.tasks)
    return Gain(
        within_s=within_s,
        saved_s=saved * within_s,
        moved_bytes=new.moved,
        link_s=link_s,
        cost_s=link_s + new.moved * wishes.second_per_byte,
        rates={task.name: task.rate for task in site.tasks},
        latency=old.latency,
        latency_after=new.latency,
    )
