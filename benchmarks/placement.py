"""Which module runs where: how often the placement is proven the best, how far from it others are, and how fast.

    python benchmarks/placement.py [--quick] [--json FILE]

Families of random sites: 95 in the shape of S2M3's (memory is loose), and tight ones of 10 modules on 8 devices, 30 on
20, and 60 on 50. Each is placed within a time; a rule's plan is held against the best that is known, by the same
measure. On sites of up to 4 modules on 4 devices every placement there is is tried, too. Repair: a device of each site
of 30 on 20 is lost; what still runs stays.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("OMP_NUM_THREADS", "1")

from placing.instances import s2m3, tight
from placing.rules import by_chance, by_compute, plan_of

from sprat_server.placement.plan import NO_WISHES, Plan, cost_of
from sprat_server.placement.program import Proven
from sprat_server.placement.search import greedy, improve
from sprat_server.placement.site import Site
from sprat_server.placement.solve import place, repair

_SAME: Final = 1 + 2e-6  # the solver proves to a millionth
_SEARCH_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Sites of one kind.

    Attributes:
        title: of its row.
        make: makes one from a seed.
        count: how many.
        seconds: that placing one may take.
    """

    title: str
    make: Callable[[int], Site]
    count: int
    seconds: float


FAMILIES: Final = (
    Family(title="S2M3's shape", make=s2m3, count=95, seconds=1.0),
    Family(title="10 x 8, tight", make=lambda seed: tight(seed, 10, 8), count=20, seconds=10.0),
    Family(title="30 x 20, tight", make=lambda seed: tight(seed, 30, 20), count=10, seconds=30.0),
    Family(title="60 x 50, tight", make=lambda seed: tight(seed, 60, 50), count=3, seconds=60.0),
)


def until(seconds: float) -> Callable[[], bool]:
    """Return whether a time that begins now is not over yet."""
    ends = time.monotonic() + seconds
    return lambda: time.monotonic() < ends


RULES: Final[dict[str, Callable[[Site], Plan | None]]] = {
    "greedy by compute, S2M3's style": by_compute,
    "greedy on the true cost": lambda site: greedy(site, NO_WISHES),
    "local search, 1 s": lambda site: improve(site, NO_WISHES, goes_on=until(_SEARCH_S)),
    "best of 100 random ones": lambda site: by_chance(site, 1),
}


def total_of(site: Site, plan: Plan | None) -> float | None:
    """Return what a plan costs; None where there is none, or it does not fit."""
    cost = None if plan is None else cost_of(site, NO_WISHES, plan)
    return cost.total if cost is not None and cost.fits else None


def measured(family: Family, count: int) -> Iterator[dict[str, Any]]:
    """Yield what came of each site."""
    for seed in range(count):
        site = family.make(seed)
        begun = time.perf_counter()
        placed = place(site, NO_WISHES, seconds=family.seconds, clock=time.monotonic)
        seconds = time.perf_counter() - begun
        totals = {rule: total_of(site, make(site)) for rule, make in RULES.items()}
        if placed.cost is not None and not placed.cost.fits:
            raise SystemExit(f"{family.title}, seed {seed}: a plan that does not fit was called one that does")
        infeasible = placed.answer.proven is Proven.INFEASIBLE
        if infeasible and any(total is not None for total in totals.values()):
            raise SystemExit(f"{family.title}, seed {seed}: called infeasible, and a rule has a plan that fits")
        row = {
            "seed": seed,
            "proven": placed.answer.proven.value,
            "total": None if placed.answer.plan is None else placed.answer.total,
            "bound": placed.answer.bound if not infeasible else None,
            "gap": placed.answer.gap,
            "seconds": round(seconds, 3),
            "rules": totals,
        }
        print(f"{family.title}: {json.dumps(row)}", file=sys.stderr, flush=True)
        yield row


def exhaustive(count: int) -> dict[str, int]:
    """Try every placement of small tight sites; return how many there were, and how many have a plan.

    Fails where the placement is not the best one of all, or calls a site infeasible that has a plan.
    """
    feasible = 0
    for seed in range(count):
        site = tight(seed, 4, 4, fill=0.7)
        names = list(site.module)
        best = None
        for hosts in product(site.device, repeat=len(names)):
            total = total_of(site, plan_of(site, dict(zip(names, hosts, strict=True))))
            if total is not None and (best is None or total < best):
                best = total
        answer = place(site, NO_WISHES, seconds=10.0, clock=time.monotonic).answer
        if (best is None) != (answer.proven is Proven.INFEASIBLE):
            raise SystemExit(f"small site {seed}: {answer.proven}, and the best of all placements costs {best}")
        if best is not None and not best / _SAME <= answer.total <= best * _SAME:
            raise SystemExit(f"small site {seed}: {answer.total}, and the best of all placements costs {best}")
        feasible += best is not None
    return {"sites": count, "feasible": feasible}


def repaired(count: int) -> Iterator[dict[str, Any]]:
    """Yield what repair after the loss of a device took and costs, beside placing all anew."""
    family = FAMILIES[2]
    for seed in range(count):
        site = tight(seed, 30, 20, fill=0.6)
        before = improve(site, NO_WISHES, goes_on=until(_SEARCH_S))
        if total_of(site, before) is None:
            continue
        assert before is not None
        used = [host for host in site.device if any(host in hosts for hosts in before.hosts.values())]
        left = site.without([used[seed % len(used)]])
        there = frozenset(left.device)
        staying = {name: hosts & there for name, hosts in before.hosts.items() if hosts & there}
        begun = time.perf_counter()
        fixed = repair(left, NO_WISHES, staying, seconds=5.0, clock=time.monotonic)
        seconds = time.perf_counter() - begun
        anew = place(fixed.site, NO_WISHES, seconds=family.seconds / 3, clock=time.monotonic)
        moved = sum(hosts != before.hosts[name] for name, hosts in (fixed.answer.plan or before).hosts.items())
        row = {
            "seed": seed,
            "kept": fixed.wishes.pinned == staying,
            "seconds": round(seconds, 4),
            "total": fixed.answer.total,
            "anew": anew.answer.total,
            "moved": moved,
        }
        print(f"repair: {json.dumps(row)}", file=sys.stderr, flush=True)
        yield row


def line_of(title: str, rows: Sequence[dict[str, Any]]) -> str:
    """Return a row of the first table."""
    with_plan = [row for row in rows if row["total"] is not None]
    optimal = sum(row["proven"] in {"optimal", "infeasible"} for row in rows)
    seconds = [row["seconds"] for row in rows]
    gaps = [row["gap"] for row in with_plan]
    nothing = sum(row["proven"] == "nothing" for row in rows)
    return (
        f"| {title} | {len(rows)} | {optimal} | {statistics.median(seconds):.2f} | {max(seconds):.2f} | "
        f"{max(gaps, default=0):.1%} | {len(rows) - len(with_plan) - nothing} | {nothing} |"
    )


def rule_line(title: str, rule: str, rows: Sequence[dict[str, Any]]) -> str:
    """Return a row of the second table."""
    known = [row for row in rows if row["total"] is not None]
    found = [row["rules"][rule] / row["total"] - 1 for row in known if row["rules"][rule] is not None]
    best = sum(excess <= _SAME - 1 for excess in found)
    if not found:
        return f"| {title} | {rule} | 0 of {len(known)} | 0 of {len(known)} | | |"
    return (
        f"| {title} | {rule} | {len(found)} of {len(known)} | {best} of {len(known)} | "
        f"{statistics.median(found):.1%} | {max(found):.1%} |"
    )


def main() -> None:
    """Print the tables; write JSON where it is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three sites of the two smaller families only")
    parser.add_argument("--json", type=Path, help="write what was measured here too")
    asked = parser.parse_args()
    families = FAMILIES[:2] if asked.quick else FAMILIES
    found = {
        family.title: list(measured(family, min(3, family.count) if asked.quick else family.count))
        for family in families
    }
    small = exhaustive(5 if asked.quick else 40)
    repairs = [] if asked.quick else list(repaired(20))
    print("| sites | | proven | median s | most s | largest gap | proven without a plan | nothing found |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for title, rows in found.items():
        print(line_of(title, rows))
    print("\n| sites | rule | has a plan | the best | worse by, median | most |\n|---|---|---:|---:|---:|---:|")
    for title, rows in found.items():
        for rule in RULES:
            print(rule_line(title, rule, rows))
    print(f"\nEvery placement tried: {small['sites']} sites, of which {small['feasible']} have a plan: all agree.")
    if repairs:
        seconds = sorted(row["seconds"] for row in repairs)
        worse = sorted(row["total"] / row["anew"] - 1 for row in repairs if row["kept"])
        print(
            f"Repair at 30 x 20: {len(repairs)} losses, median {statistics.median(seconds):.3f} s, most "
            f"{seconds[-1]:.3f} s; {len(worse)} with all that still ran in its place, worse than placing all anew by "
            f"{statistics.median(worse):.1%} in the median, {worse[-1]:.1%} at most."
        )
    if asked.json:
        asked.json.write_text(json.dumps({"families": found, "small": small, "repairs": repairs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
