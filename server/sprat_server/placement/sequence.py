"""Plans in between, where a device cannot hold the modules of two plans at once: each fits with the one before. Pure.

While a plan takes the place of another, devices hold the modules of both. Where that is more memory than one has, a
module is first served elsewhere, and freed here then. Every plan in between is a placement by itself, which answers all
tasks; as many placements as there are to be plans in between are one program, linked by what two that follow each other
take together on each device. The fewest are looked for, and of those the ones that cost least.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sprat_server.placement.columns import Columns
from sprat_server.placement.memory import Held, lacking
from sprat_server.placement.plan import Plan, Wishes
from sprat_server.placement.program import Program, Proven
from sprat_server.placement.site import Site

MOST_STEPS: Final = 3
"""So many plans in between are looked for at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Releases:
    """What plans in between may serve: tasks by one release of each module, as they can be placed.

    Attributes:
        site: with the modules' sizes.
        wishes: what is asked.
        names: module -> its release; the same name in other `Releases` is loaded once.
    """

    site: Site
    wishes: Wishes
    names: Mapping[str, str]

    def held(self, plan: Plan) -> dict[str, frozenset[str]]:
        """Return what devices have loaded by a plan."""
        return {self.names[module]: hosts for module, hosts in plan.hosts.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A plan in between.

    Attributes:
        of: by which releases.
        plan: it.
    """

    of: Releases
    plan: Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Between:
    """Plans in between.

    Attributes:
        steps: in their order; None: none were found.
        proven: `optimal`: there are none of fewer steps, nor cheaper ones of so many; `infeasible`: none of up to
            `MOST_STEPS` lead there; else the time was up.
    """

    steps: tuple[Step, ...] | None
    proven: Proven


def between(  # noqa: PLR0917 - what is now, what is to be, and what may be between
    memory: Mapping[str, int],
    sizes: Mapping[str, int],
    before: Held,
    after: Held,
    old: Releases | None,
    new: Releases,
    *,
    seconds: float,
) -> Between:
    """Return the fewest plans in between by which devices come from what they hold to what they are to hold.

    Args:
        memory: device -> bytes; devices that are left out have enough.
        sizes: release -> bytes while it is loaded.
        before: what is held now,
        after: and is to be.
        old: what plans in between may serve at first; None: only what comes,
        new: and then.
        seconds: of one core, for each number of steps.

    Raises:
        InvalidInput: a wish names what a site has not.
    """
    if not lacking(memory, sizes, before, after):
        return Between(steps=(), proven=Proven.OPTIMAL)
    proven = Proven.INFEASIBLE
    for count in range(1, MOST_STEPS + 1):
        ways = [[new] * count]
        if old is not None and old.names != new.names:
            ways += [[old] * first + [new] * (count - first) for first in range(1, count + 1)]
        best: tuple[float, tuple[Step, ...]] | None = None
        for stages in ways:
            found, cost, status = _solved(memory, sizes, before, after, stages, seconds / len(ways))
            if found is not None and (best is None or cost < best[0]):
                best = (cost, found)
            if status == "time":
                proven = Proven.WITHIN
        if best is not None:
            return Between(steps=best[1], proven=Proven.OPTIMAL if proven is Proven.INFEASIBLE else Proven.WITHIN)
    return Between(steps=None, proven=Proven.INFEASIBLE if proven is Proven.INFEASIBLE else Proven.NOTHING)


def _solved(  # noqa: PLR0917 - likewise
    memory: Mapping[str, int],
    sizes: Mapping[str, int],
    before: Held,
    after: Held,
    stages: Sequence[Releases],
    seconds: float,
) -> tuple[tuple[Step, ...] | None, float, str]:
    columns = Columns()
    programs = [Program(stage.site, stage.wishes, columns) for stage in stages]
    held = [
        {stage.names[module]: dict(hosts) for module, hosts in program.hosts.items()}
        for stage, program in zip(stages, programs, strict=True)
    ]
    one = columns.column(0.0, 1.0, 1.0)
    first, last = ({name: dict.fromkeys(hosts, one) for name, hosts in fixed.items()} for fixed in (before, after))
    for earlier, later in zip([first, *held], [*held, last], strict=True):
        _fit_together(columns, one, memory, sizes, earlier, later)
    status, values, _ = columns.solve(seconds, None)
    if values is None:
        return None, 0.0, status
    steps = tuple(Step(of=stage, plan=program.plan_of(values)) for stage, program in zip(stages, programs, strict=True))
    return steps, columns.cost(values), status


def _fit_together(  # noqa: PLR0917 - likewise
    columns: Columns,
    one: int,
    memory: Mapping[str, int],
    sizes: Mapping[str, int],
    earlier: Mapping[str, Mapping[str, int]],
    later: Mapping[str, Mapping[str, int]],
) -> None:
    """Have each device hold what two plans have there, each release once."""
    for host, room in memory.items():
        terms: dict[int, float] = {}
        for name in sorted({*earlier, *later}):
            there = {plan[name][host] for plan in (earlier, later) if host in plan.get(name, {})}
            if not there:
                continue
            at = one if one in there else there.pop() if len(there) == 1 else _either(columns, there)
            terms[at] = terms.get(at, 0.0) + sizes[name] / max(1, room)
        if terms:
            columns.row(-float("inf"), room / max(1, room), terms)


def _either(columns: Columns, there: set[int]) -> int:
    """Return a column that is 1 where one of others is; it is pushed down."""
    both = columns.column(0.0, 0.0, 1.0)
    for column in there:
        columns.row(0.0, float("inf"), {both: 1.0, column: -1.0})
    return both
