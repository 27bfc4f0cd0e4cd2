"""A placement within a time: what a search finds first, what the exact program makes of it, and repair after a loss."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Final

from sprat_server.placement.plan import Cost, Plan, Wishes, cost_of
from sprat_server.placement.program import Answer, solve
from sprat_server.placement.search import improve
from sprat_server.placement.site import Site

_FIRST: Final = 0.05  # share of the time for the search, whose plan the solver begins with
_FIRST_S: Final = (0.02, 1.0)

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A plan, what it comes to, and how good it is.

    Attributes:
        site: of which it is one.
        answer: plan, bound and proof.
        cost: of the plan; None where there is none.
        kept: whether all that was pinned stayed.
    """

    site: Site
    answer: Answer
    cost: Cost | None
    kept: bool = True


def place(
    site: Site, wishes: Wishes, *, seconds: float, clock: Clock, seed: int = 0, known: Plan | None = None
) -> Placement:
    """Return the best plan that is found in a time, with a bound on all others.

    Args:
        site: where.
        wishes: what is asked.
        seconds: of one core, more or less.
        clock: monotonic seconds.
        seed: of the search.
        known: a plan; if it fits, none that is worse is returned.

    Raises:
        InvalidInput: a wish names what the site has not, or pins a module where it cannot run.
    """
    wishes.check(site)
    ends = clock() + min(max(_FIRST * seconds, _FIRST_S[0]), _FIRST_S[1])
    starts = [
        one for one in (improve(site, wishes, goes_on=lambda: clock() < ends, seed=seed), known) if one is not None
    ]
    costs = [cost_of(site, wishes, one) for one in starts]
    fitting = [(cost.total, at) for at, cost in enumerate(costs) if cost.fits]
    answer = solve(site, wishes, seconds=seconds, start=starts[min(fitting)[1]] if fitting else None)
    return Placement(site=site, answer=answer, cost=None if answer.plan is None else cost_of(site, wishes, answer.plan))


def repair(site: Site, wishes: Wishes, plan: Plan, lost: Collection[str], *, seconds: float, clock: Clock) -> Placement:
    """Return a plan for what is left after devices were lost: modules that still run stay where they are.

    Only where that leaves no plan may they move, too.

    Args:
        site: before the loss.
        wishes: what is asked; what it pins to lost devices is free.
        plan: that was followed.
        lost: names of devices.
        seconds: of one core.
        clock: monotonic seconds.
    """
    left = site.without(lost)
    there = frozenset(left.device)
    staying = {module: hosts & there for module, hosts in plan.hosts.items() if hosts & there}
    held = {module: hosts & there for module, hosts in wishes.held.items()}
    pinned = {module: hosts & there for module, hosts in wishes.pinned.items() if hosts & there}
    asked = replace(wishes, held=held, pinned={**pinned, **staying})
    answer = solve(left, asked, seconds=seconds, start=improve(left, asked, goes_on=_times(1)))
    if answer.plan is not None:
        return Placement(site=left, answer=answer, cost=cost_of(left, asked, answer.plan))
    found = place(left, replace(asked, pinned=pinned), seconds=seconds, clock=clock)
    return replace(found, kept=False)


def _times(count: int) -> Callable[[], bool]:
    left = iter(range(count))
    return lambda: next(left, None) is not None
