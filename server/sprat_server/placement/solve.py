"""A placement within a time: what a search finds first, what the exact program makes of it, and repair after a loss."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from sprat_server.placement.neighbourhoods import better
from sprat_server.placement.plan import Cost, Plan, Wishes, cost_of
from sprat_server.placement.program import Answer, Proven, solve
from sprat_server.placement.search import improve
from sprat_server.placement.site import Site

_FIRST: Final = 0.02  # share of the time for the search, and its limits
_FIRST_S: Final = (0.02, 0.5)
_PARTS: Final = 0.1  # share of the time for what is solved in parts, until the plan that the whole begins with is known
_PARTS_S: Final = 3.0
_LEAST_S: Final = 0.05  # for the whole, however long the parts took
_SOON_S: Final = 0.1  # within which a plan that moves modules after a loss is taken as it is

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A plan, what it comes to, and how good it is.

    Attributes:
        site: of which it is one.
        wishes: that it meets.
        answer: plan, bound and proof.
        cost: of the plan; None where there is none.
    """

    site: Site
    wishes: Wishes
    answer: Answer
    cost: Cost | None


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
    begun = clock()
    ends = begun + min(max(_FIRST * seconds, _FIRST_S[0]), _FIRST_S[1])
    starts = [
        one for one in (improve(site, wishes, goes_on=lambda: clock() < ends, seed=seed), known) if one is not None
    ]
    costs = [cost_of(site, wishes, one) for one in starts]
    fitting = [(cost.total, at) for at, cost in enumerate(costs) if cost.fits]
    start = starts[min(fitting)[1]] if fitting else None
    if start is not None:
        start = better(site, wishes, start, seconds=min(_PARTS * seconds, _PARTS_S), clock=clock, seed=seed)
    answer = solve(site, wishes, seconds=max(_LEAST_S, begun + seconds - clock()), start=start)
    cost = None if answer.plan is None else cost_of(site, wishes, answer.plan)
    return Placement(site=site, wishes=wishes, answer=answer, cost=cost)


def repair(
    site: Site, wishes: Wishes, staying: Mapping[str, frozenset[str]], *, seconds: float, clock: Clock
) -> Placement:
    """Return a plan for what is left after devices were lost: modules that still run stay where they are.

    Only where that leaves no plan may they move, too; and only where that leaves none either, and one more loss was to
    be survived, that is no longer asked. What was met is in the wishes of the placement. Where modules move, the first
    plan that is found soon is taken: the best one is looked for behind a repair.

    Args:
        site: what is left.
        wishes: what is asked.
        staying: module -> devices of what is left that hold it.
        seconds: of one core, for each.
        clock: monotonic seconds.

    Raises:
        InvalidInput: a wish names what the site has not, or a module is or stays where it cannot run.
    """
    stay = {name: hosts | wishes.pinned.get(name, frozenset()) for name, hosts in staying.items()}
    for wish in (wishes, replace(wishes, survives_one=False)) if wishes.survives_one else (wishes,):
        kept = replace(wish, pinned={**wish.pinned, **stay})
        kept.check(site)
        answer = solve(site, kept, seconds=seconds, start=improve(site, kept, goes_on=_times(1)))
        if answer.plan is not None:
            return Placement(site=site, wishes=kept, answer=answer, cost=cost_of(site, kept, answer.plan))
        found = place(site, wish, seconds=min(_SOON_S, seconds), clock=clock)
        if found.answer.proven is Proven.NOTHING:
            found = place(site, wish, seconds=seconds, clock=clock)
        if found.answer.plan is not None:
            break
    return found


def _times(count: int) -> Callable[[], bool]:
    left = iter(range(count))
    return lambda: next(left, None) is not None
