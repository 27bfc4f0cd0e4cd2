"""How many bytes each method needs to recover a share of the full retrain's gain, all methods side by side.

    python benchmarks/update_size.py [--case drift] [--case new-classes] [--seeds 3] [--json FILE] [--plot PNG]

Every method is swept over at least eight settings. For each seed, the setting of fewest bytes that proves the share on
the validation split is chosen, with the margin of a retrain; what it recovers on the test split is reported beside it.
What was measured is kept in `benchmarks/measured/update_size`, a file for each problem, and not measured again until
code or data change; an interrupted run goes on. What takes long to make on the way is cached in `.bench`.
"""

import argparse
import functools
import itertools
import json
import multiprocessing
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))  # the cases are made of the demo's data and network

import torch  # noqa: E402 - after the path is set, as the next ones
from sizes import dense, exact, local, lora_xs, nncodec, own, peft_lora, post_hoc, trained  # noqa: E402
from sizes.cases import CASES, CaseUnavailable, Problem, make_problem  # noqa: E402
from sizes.environments import Unavailable  # noqa: E402
from sizes.ledger import Ledger, LedgerInUse, Point  # noqa: E402
from sizes.method import Method  # noqa: E402
from sizes.plot import draw  # noqa: E402
from sizes.store import Store  # noqa: E402
from sizes.summary import best_points, table  # noqa: E402
from sizes.together import AUTO, unite  # noqa: E402

METHODS: Final[tuple[Method, ...]] = (
    *post_hoc.METHODS,
    *nncodec.METHODS,
    *trained.METHODS,
    *peft_lora.METHODS,
    *lora_xs.METHODS,
    *own.METHODS,
    *dense.METHODS,
    AUTO,
    *local.METHODS,
    *exact.METHODS,
)
METHODS_BY_KEY: Final = {method.key: method for method in METHODS}
MEASURED: Final = ROOT / "benchmarks" / "measured" / "update_size"
Found = dict[str, dict[str, dict[int, list[Point]]]]
Gains = dict[str, dict[int, dict[str, Any]]]


def measure(
    case: str, seed: int, methods: Sequence[str], folder: Path
) -> tuple[dict[str, Any] | None, dict[str, list[Point] | str]]:
    """Return a problem's gains and the points of each method on it, or the reason why there are none.

    It runs in a process of its own.
    """
    torch.set_num_threads(1)
    ledger = ledger_of(case, seed)

    @functools.cache
    def ready() -> tuple[Problem, Store]:
        problem, store = make_problem(CASES[case], seed, folder)
        ledger.measured_on(problem.states_digest())
        return problem, store

    def made() -> dict[str, Any]:
        return ready()[0].gains()

    found: dict[str, list[Point] | str] = {}
    try:
        with ledger.alone():
            if any(METHODS_BY_KEY[key].missing(ledger) for key in methods):
                ready()
            gains = ledger.gains(made)
            for method in (method for method in METHODS if method.key in methods):
                new = method.missing(ledger)
                try:
                    found[method.key] = method.points(ledger, ready)
                except Unavailable as reason:
                    found[method.key] = str(reason)
                if new:
                    print(f"{case}, seed {seed}: {method.title} done", file=sys.stderr, flush=True)
    except (CaseUnavailable, LedgerInUse) as reason:
        return None, dict.fromkeys(methods, f"{case}: {reason}")
    return gains, found


def measured(
    cases: Sequence[str], seeds: Sequence[int], methods: Sequence[str]
) -> tuple[Gains, Found, dict[str, list[str]]]:
    """Return what the ledgers hold of all problems, rows that are whole; and by case those that earlier code made."""
    gains: Gains = {case: {} for case in cases}
    found: Found = {case: {} for case in cases}
    earlier: dict[str, list[str]] = {case: [] for case in cases}
    for case, seed in itertools.product(cases, seeds):
        ledger = ledger_of(case, seed)
        if ledger.begun:
            gains[case][seed] = ledger.gains(dict)
        for key in methods:
            method = METHODS_BY_KEY[key]
            if method.settings and not method.missing(ledger):
                found[case].setdefault(key, {})[seed] = method.kept(ledger)
            elif points := method.kept_before(ledger):
                found[case].setdefault(key, {})[seed] = points
                if method.title not in earlier[case]:
                    earlier[case].append(method.title)
    for of_case in found.values():
        unite(of_case)
    return gains, found, earlier


def ledger_of(case: str, seed: int) -> Ledger:
    """Return what was measured on a problem so far."""
    return Ledger(MEASURED / f"{case}-{seed}.jsonl", CASES[case].digest())


def told(gains: Mapping[str, Any]) -> str:
    """Return what a full retrain gains on a problem, in words."""
    (v0, v1), (t0, t1) = gains["validation"], gains["test"]
    return (
        f"{gains['values']:,} values; accuracy of base and full retrain {100 * t0:.1f} % and {100 * t1:.1f} % "
        f"on the test split, {100 * v0:.1f} % and {100 * v1:.1f} % on the validation split"
    )


def processor() -> str:
    """Return what the machine computes with."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{os.cpu_count()} cores, {name}"


def run(
    cases: Sequence[str], seeds: Sequence[int], methods: Sequence[str], *, folder: Path, jobs: int
) -> tuple[Gains, Found]:
    """Measure all methods on all problems; seeds in the outer loop, so that an early stop leaves whole seeds."""
    gains: Gains = {case: {} for case in cases}
    found: Found = {case: {} for case in cases}
    reasons = set()
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        asked = [(case, seed, pool.submit(measure, case, seed, methods, folder)) for seed in seeds for case in cases]
        for case, seed, answer in asked:
            of_problem, by_method = answer.result()
            if of_problem:
                gains[case][seed] = of_problem
            for key, points in by_method.items():
                if isinstance(points, str):
                    reasons.add(points)
                else:
                    found[case].setdefault(key, {})[seed] = points
    for of_case in found.values():
        unite(of_case)
    for reason in sorted(reasons):
        print(f"left out: {reason}\n")
    return gains, found


def report_of(gains: Gains, found: Found, seeds: Sequence[int]) -> dict[str, Any]:
    """Return everything as JSON: the problems, what each method needs, and all points."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": processor(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "seeds": list(seeds),
        "problems": {case: {"title": CASES[case].title, "seeds": of_case} for case, of_case in gains.items()},
        "cases": {
            case: {
                method.key: {
                    "title": method.title,
                    "needs": best_points(of_case[method.key]),
                    "points": {seed: [asdict(p) for p in points] for seed, points in of_case[method.key].items()},
                }
                for method in METHODS
                if method.key in of_case
            }
            for case, of_case in found.items()
        },
    }


def make_environments(methods: Sequence[str], cache: Path) -> None:
    """Make the environments that the methods need; those whose own cannot be made will say so and be left out."""
    for environment in {method.environment for method in METHODS if method.key in methods and method.environment}:
        try:
            environment.make(cache)
        except Unavailable as reason:
            print(f"{reason}\n")


def main() -> None:
    """Print the tables; write JSON and plot where they are asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--case", action="append", choices=list(CASES), help="may be given again; all if not given")
    parser.add_argument("--method", action="append", choices=[m.key for m in METHODS], help="likewise")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 (default: 3)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes, of one thread each")
    parser.add_argument("--cache", type=Path, default=ROOT / ".bench" / "update_size", help="folder of the cache")
    parser.add_argument("--measured", action="store_true", help="print what was measured so far, measure nothing")
    parser.add_argument("--json", type=Path, help="write the report here too")
    parser.add_argument("--plot", type=Path, help="write the plot here (PNG)")
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    cases, seeds = asked.case or list(CASES), range(asked.seeds)
    methods = asked.method or [method.key for method in METHODS]
    asked.cache.mkdir(parents=True, exist_ok=True)
    earlier: Mapping[str, Sequence[str]] = {}
    if asked.measured:
        gains, found, earlier = measured(cases, seeds, methods)
    else:
        ledgers = [ledger_of(case, seed) for case in cases for seed in seeds]
        unfinished = [key for key in methods if any(METHODS_BY_KEY[key].missing(one) for one in ledgers)]
        make_environments(unfinished, asked.cache.parent)
        gains, found = run(cases, seeds, methods, folder=asked.cache, jobs=asked.jobs)
    report = report_of(gains, found, seeds)
    print(f"{report['date']}, {report['machine']}, seeds {', '.join(map(str, seeds))}")
    print("bytes: median over the seeds (95 % bootstrap interval; recovered gain on the test split)\n")
    for case in cases:
        needs = {key: row["needs"] for key, row in report["cases"][case].items()}
        for seed, of_problem in gains[case].items():
            print(f"{case}, seed {seed}: {told(of_problem)}")
        print("\n".join([f"{case}", "", *table(METHODS, needs, asked.seeds), ""]))
        if titles := earlier.get(case):
            print(f"made by earlier code, and not looked at again since: {'; '.join(titles)}\n")
    if asked.plot:
        print(draw([method for method in METHODS if method is not AUTO], found, asked.plot))
    if asked.json:
        asked.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
