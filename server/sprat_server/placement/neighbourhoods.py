"""Better from a plan that is known: the exact program for a part of the modules at a time, while the others stay. Pure.

Large neighbourhood search (Shaw, "Using Constraint Programming and Local Search Methods to Solve Vehicle Routing
Problems", CP 1998): what belongs together, by a task or a device, moves together, which no single move does.
"""

from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import replace
from random import Random
from typing import Final

from sprat_server.placement.plan import Plan, Wishes, cost_of
from sprat_server.placement.program import Proven, solve
from sprat_server.placement.site import Site

_FREE: Final = 10  # modules that move at a time, to begin with
_FREE_LEAST: Final = 4
_PART_S: Final = 0.5  # that a part may take; one that takes all of it is too large
_QUICK_S: Final = 0.1  # a part that takes less may be larger


def better(
    site: Site, wishes: Wishes, plan: Plan, *, seconds: float, clock: Callable[[], float], seed: int = 0
) -> Plan:
    """Return the plan, or a better one that is found in a time by solving parts.

    Args:
        site: where.
        wishes: that the plan meets.
        plan: to begin with.
        seconds: of one core. None are spent on a site that is hardly larger than a part: the whole is as quick.
        clock: monotonic seconds.
        seed: of which modules move.
    """
    random, free = Random(seed), _FREE  # noqa: S311 - a search, no secret
    movable = {module.name for module in site.modules if len(module.seconds) > 1} - wishes.pinned.keys()
    total = cost_of(site, wishes, plan).total
    ends = clock() + seconds
    while len(movable) > 2 * free and (left := ends - clock()) > 0:
        part = _together(site, plan, movable, free, random)
        staying = {name: hosts for name, hosts in plan.hosts.items() if name not in part}
        begun = clock()
        answer = solve(
            site, replace(wishes, pinned={**wishes.pinned, **staying}), seconds=min(_PART_S, left), start=plan
        )
        if answer.plan is not None and answer.total < total:
            plan, total = answer.plan, answer.total
        if answer.proven is not Proven.OPTIMAL:
            free = max(_FREE_LEAST, free - 1)
        elif clock() - begun < _QUICK_S:
            free += 1
    return plan


def _together(site: Site, plan: Plan, movable: set[str], count: int, random: Random) -> set[str]:
    """Return so many modules: those of some tasks, or those on some devices."""
    by_task = random.random() < 0.5  # noqa: PLR2004 - one as often as the other
    near: Iterator[AbstractSet[str]] = (
        (task.modules & movable for task in random.sample(site.tasks, len(site.tasks)))
        if by_task
        else (
            {name for name in movable if host in plan.hosts[name]}
            for host in random.sample(sorted(site.device), len(site.device))
        )
    )
    part: set[str] = set()
    while len(part) < count and (more := next(near, None)) is not None:
        part |= more
    return set(random.sample(sorted(part), min(count, len(part))))
