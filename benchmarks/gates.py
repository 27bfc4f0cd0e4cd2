"""Simulated rollouts, each looked at after every report: how often and when the gate halts, beside what others use.

    python benchmarks/gates.py [--rollouts 2000] [--json FILE]

Every row is so many rollouts; the peers of a row see the same devices. The goals are asserted; scipy is used by the
peers only.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from gating import devices as of
from gating import engine, peers
from gating.devices import Devices
from gating.engine import NEVER, Counts

from sprat_server.rollouts.gate_policy import GatePolicy, MetricRule

POLICY: Final = GatePolicy()
ACCURACY: Final = POLICY.metrics["accuracy"]
TOLERANCE: Final = ACCURACY.tolerance
LATENCY: Final = POLICY.metrics["latency_p50"]
NULL_HORIZON, HORIZON = 1000, 1000  # devices watched where nothing is wrong, and where something is
ENOUGH: Final = 2000  # rollouts from which the goals are asserted
FLEET: Final = 10_000
WAVES: Final = tuple(10 * 2**i for i in range(11))  # 10, 20, 40, ... 10,240
POINT: Final = 0.01  # of accuracy


def only(metric: str, rule: MetricRule) -> GatePolicy:
    """Return a policy that spends all of its alpha on one metric over all devices."""
    return replace(POLICY, failures_weight=0.0, first_failures=0, metrics={metric: replace(rule, weight=1.0)})


ONLY_ACCURACY: Final = only("accuracy", ACCURACY)
ONLY_LATENCY: Final = only("latency_p50", LATENCY)
ONLY_FAILURES: Final = replace(POLICY, failures_weight=1.0, first_failures=0, metrics={})
WITH_HARD_STOP: Final = replace(ONLY_FAILURES, first_failures=POLICY.first_failures)
SPLIT: Final = POLICY


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Rollouts of one kind.

    Attributes:
        name: of the row.
        devices: how they behave.
        policy: of the gate.
        null: nothing is wrong: halts are false alarms.
        alarms: goal, share of false alarms at most; None: none.
        median: goal, median of reports at the halt at most; None: none.
        sites: whether the false-alarm rate is split over sites too.
        peers: that watch the same devices.
    """

    name: str
    devices: Devices
    policy: GatePolicy
    null: bool = False
    alarms: float | None = None
    median: float | None = None
    sites: int | None = None
    peers: "Makers" = ()


Makers: TypeAlias = Sequence[Callable[[int, int], peers.Peer]]
"""Each makes a peer for so many rollouts of at most so many devices."""

FOR_ACCURACY: Final[Makers] = (
    lambda rollouts, _: peers.FailedShare(rollouts),
    lambda rollouts, horizon: peers.MannWhitney(rollouts, horizon, TOLERANCE),
    lambda rollouts, _: peers.Binomial(rollouts, TOLERANCE, allowed=None),
)
FOR_FAILURES: Final[Makers] = (
    lambda rollouts, _: peers.FailedShare(rollouts),
    lambda rollouts, _: peers.Binomial(rollouts, TOLERANCE, allowed=POLICY.allowed_failures),
)


def accuracy_rows() -> list[Row]:
    """One metric at alpha = 0.01, with the issue's noise, and with counts."""
    goals = {-1: 100.0, -2: 30.0, -5: 13.0}
    rows = []
    for name, noise in (("normal", of.normal), ("counts", None)):
        common: dict[str, Any] = {"policy": ONLY_ACCURACY, "peers": FOR_ACCURACY if noise is not None else ()}
        rows += [
            Row(name=f"{name}: no change", devices=Devices(noise=noise), null=True, alarms=0.01, **common),
            Row(
                name=f"{name}: -0.5 points, the tolerance",
                devices=Devices(noise=noise, shift=-TOLERANCE),
                null=True,
                alarms=0.01,
                **common,
            ),
            *(
                Row(
                    name=f"{name}: {points} points",
                    devices=Devices(noise=noise, shift=points * POINT),
                    median=goal if noise is not None else None,
                    **common,
                )
                for points, goal in goals.items()
            ),
        ]
    return rows


def tail_rows() -> list[Row]:
    """Heavy tails: no goal but the false alarms, which the theory bounds for symmetric noise."""
    rows = []
    for name, noise in (("t, 3 d.f.", of.student), ("5 % at ten times", of.contaminated), ("skewed", of.skewed)):
        rows += [
            Row(name=f"{name}: no change", devices=Devices(noise=noise), policy=ONLY_ACCURACY, null=True),
            Row(
                name=f"{name}: at the tolerance",
                devices=Devices(noise=noise, shift=-TOLERANCE),
                policy=ONLY_ACCURACY,
                null=True,
            ),
            *(
                Row(
                    name=f"{name}: {points} points",
                    devices=Devices(noise=noise, shift=points * POINT),
                    policy=ONLY_ACCURACY,
                )
                for points in (-1, -2, -5)
            ),
        ]
    return rows


def failure_rows() -> list[Row]:
    """Failures at alpha = 0.01 (2 % allowed), and latency."""
    quiet = Devices(noise=of.normal)
    failing = {0.05: None, 0.1: 65.0, 0.3: None, 1.0: None}
    return [
        Row(
            name="2 % fail, as allowed",
            devices=replace(quiet, failing=0.02),
            policy=WITH_HARD_STOP,
            null=True,
            alarms=0.01,
            peers=FOR_FAILURES,
        ),
        *(
            Row(
                name=f"{share:.0%} fail".replace("%", " %"),
                devices=replace(quiet, failing=share),
                policy=ONLY_FAILURES if goal else WITH_HARD_STOP,
                median=goal,
                peers=FOR_FAILURES,
            )
            for share, goal in failing.items()
        ),
        Row(name="latency as before", devices=quiet, policy=ONLY_LATENCY, null=True, alarms=0.01),
        Row(
            name="10.5 % slower, the tolerance",
            devices=replace(quiet, slower=float(np.exp(LATENCY.tolerance))),
            policy=ONLY_LATENCY,
            null=True,
            alarms=0.01,
        ),
        *(
            Row(name=f"{slower:g} times slower", devices=replace(quiet, slower=slower), policy=ONLY_LATENCY)
            for slower in (1.2, 1.5, 2.0)
        ),
    ]


def split_rows() -> list[Row]:
    """The default policy: alpha over metrics, all devices and five sites."""
    edge = Devices(shift=-TOLERANCE, failing=POLICY.allowed_failures, slower=float(np.exp(LATENCY.tolerance)))
    bad = {
        "-1 points": Devices(shift=-POINT),
        "-2 points": Devices(shift=-2 * POINT),
        "-5 points": Devices(shift=-5 * POINT),
        "-5 points at one site of five": Devices(shift=-5 * POINT, bad_site=True),
        "-10 points at one site of five": Devices(shift=-10 * POINT, bad_site=True),
        "10 % fail": Devices(failing=0.1),
        "1.5 times slower": Devices(slower=1.5),
        "-2 points, t, 3 d.f.": Devices(shift=-2 * POINT, noise=of.student),
    }
    common: dict[str, Any] = {"policy": SPLIT, "sites": FLEET // of.SITES}
    return [
        Row(name="nothing wrong", devices=Devices(), null=True, alarms=0.01, **common),
        Row(name="everything at its tolerance", devices=edge, null=True, alarms=0.01, **common),
        *(Row(name=name, devices=devices, **common) for name, devices in bad.items()),
    ]


def measure(row: Row, rollouts: int, seed: int) -> dict[str, Any]:
    """Run a row, its peers on the same devices."""
    horizon = NULL_HORIZON if row.null else HORIZON
    began = time.perf_counter()
    outcome = engine.run(row.devices, row.policy, rollouts=rollouts, horizon=horizon, seed=seed, sites=row.sites)
    said: dict[str, Any] = {"row": row.name, "null": row.null, "rollouts": rollouts, "horizon": horizon}
    said["gate"] = summary(outcome.halted_after)
    if row.devices.bad_site:
        said["named_the_site"] = float(np.mean([scope == "site=0" for scope in outcome.scopes]))
    said["peers"] = {}
    for make in row.peers:
        peer = make(rollouts, horizon)
        stops = peers.run(row.devices, peer, rollouts=rollouts, horizon=horizon, seed=seed)
        said["peers"][peer.name] = {setting: summary(after) for setting, after in stops.after.items()}
    said["seconds"] = time.perf_counter() - began
    if rollouts >= ENOUGH:
        check(row, said["gate"])
    return said


def summary(after: Counts) -> dict[str, float | None]:
    """Return the share that halted, and median and 90th percentile of reports at the halt over all rollouts."""
    quantiles = [float(np.quantile(after, q, method="higher")) for q in (0.5, 0.9)]
    median, most = (None if value >= NEVER else value for value in quantiles)
    return {"halted": float((after < NEVER).mean()), "median": median, "p90": most}


def check(row: Row, gate: dict[str, float | None]) -> None:
    """Assert the row's goals."""
    halted, median = gate["halted"], gate["median"]
    assert row.alarms is None or (halted is not None and halted <= row.alarms), (row.name, gate)
    assert row.median is None or (median is not None and median <= row.median), (row.name, gate)


def expose(rollouts: int, seed: int) -> list[dict[str, Any]]:
    """Waves of 10, 20, 40, ... in a fleet of 10,000 at five sites: who is exposed when it ends, and how."""
    rows = {
        "no change": Devices(),
        "+0.5 points": Devices(shift=0.5 * POINT),
        "-0.25 points": Devices(shift=-0.25 * POINT),
        "-1 points": Devices(shift=-POINT),
        "-2 points": Devices(shift=-2 * POINT),
        "-5 points": Devices(shift=-5 * POINT),
        "-5 points at one site of five": Devices(shift=-5 * POINT, bad_site=True),
        "10 % fail": Devices(failing=0.1),
        "all fail": Devices(failing=1.0),
        "1.5 times slower": Devices(slower=1.5),
    }
    found = []
    for name, devices in rows.items():
        began = time.perf_counter()
        outcome = engine.run(
            devices, SPLIT, rollouts=rollouts, horizon=FLEET, seed=seed, sites=FLEET // of.SITES, waves=WAVES
        )
        halted = outcome.halted_after < NEVER
        stopped = outcome.exposed[halted | outcome.held]
        found.append(
            {
                "row": name,
                "rollouts": rollouts,
                "whole_fleet": float((~halted & ~outcome.held).mean()),
                "held": float(outcome.held.mean()),
                "halted": float(halted.mean()),
                "exposed_median": float(np.median(stopped)) if len(stopped) else None,
                "exposed_p90": float(np.quantile(stopped, 0.9)) if len(stopped) else None,
                "seconds": time.perf_counter() - began,
            }
        )
    return found


def best_setting(rows: Sequence[dict[str, Any]], peer: str, nulls: Sequence[str]) -> str | None:
    """Return the setting of a peer that halts the earliest of those with at most 1 % false alarms in these rows."""
    by_name = {row["row"]: row["peers"].get(peer) for row in rows}
    settings: Sequence[str] = next((list(said) for said in by_name.values() if said), [])
    fit = [one for one in settings if all(by_name[null][one]["halted"] <= POLICY.alpha for null in nulls)]
    harmed = [said for row in rows if not row["null"] and (said := row["peers"].get(peer))]

    def lateness(setting: str) -> float:
        return sum(float(np.log(said[setting]["median"] or 10 * HORIZON)) for said in harmed)

    return min(fit, key=lateness) if fit else None


def print_rows(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print one table: the gate, and of each peer the usual setting and the best that keeps to 1 % false alarms."""
    print(f"\n### {title}\n")
    names = list(dict.fromkeys(peer for row in rows for peer in row["peers"]))
    nulls = [row["row"] for row in rows if row["null"] and row["peers"]]
    columns: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [("gate", lambda row: row["gate"])]
    for name in names:
        usual = next(iter(next(row["peers"][name] for row in rows if name in row["peers"])))
        best = best_setting(rows, name, nulls)
        columns.append((f"{name}, {usual}", partial(_of_peer, name, usual)))
        if best is None:
            print(f"No setting of {name} keeps to 1 % false alarms.\n")
        elif best != usual:
            columns.append((f"{name}, {best}", partial(_of_peer, name, best)))
    print("| " + " | ".join(["", *(title for title, _ in columns)]) + " |")
    print("|---|" + "---:|" * len(columns))
    for row in rows:
        cells = [_cell(read(row), null=row["null"]) for _, read in columns]
        extra = f" (named in {row['named_the_site']:.0%})".replace("%", " %") if "named_the_site" in row else ""
        print(f"| {row['row']}{extra} | " + " | ".join(cells) + " |")


def _of_peer(name: str, setting: str, row: dict[str, Any]) -> Any:
    return row["peers"].get(name, {}).get(setting)


def _cell(said: dict[str, float | None] | None, *, null: bool) -> str:
    if said is None:
        return ""
    halted = f"{100 * (said['halted'] or 0.0):.2f} %"
    if null:
        return halted
    median = "never" if said["median"] is None else f"{said['median']:.0f}"
    return median if said["halted"] == 1 else f"{median} ({halted})"


def print_exposure(rows: Sequence[dict[str, Any]]) -> None:
    """Print who was exposed."""
    print(f"\n### Waves up to 10, 20, 40, ... of {FLEET:,} devices\n")
    print(
        "| | whole fleet | held for a person | halted | exposed, median | exposed, 90 % |\n"
        "|---|---:|---:|---:|---:|---:|"
    )
    for row in rows:
        shares = " | ".join(f"{100 * row[name]:.1f} %" for name in ("whole_fleet", "held", "halted"))
        exposed = " | ".join("" if row[n] is None else f"{row[n]:.0f}" for n in ("exposed_median", "exposed_p90"))
        print(f"| {row['row']} | {shares} | {exposed} |")


def main() -> None:
    """Run every row and print the tables."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rollouts", type=int, default=ENOUGH, help="of a row; goals are asserted from 2000")
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--json", type=Path, help="write all figures here")
    args = options.parse_args()
    tables = {
        "Accuracy alone, noise of 1.4 points a device": accuracy_rows(),
        "Accuracy alone, heavy tails": tail_rows(),
        "Failures alone, latency alone": failure_rows(),
        "The default policy: all metrics, five sites": split_rows(),
    }
    found: dict[str, Any] = {}
    for title, rows in tables.items():
        found[title] = [measure(row, args.rollouts, args.seed + i) for i, row in enumerate(rows)]
        print_rows(title, found[title])
    found["exposure"] = expose(args.rollouts, args.seed)
    print_exposure(found["exposure"])
    if args.json:
        args.json.write_text(json.dumps({"policy": POLICY.as_json(), "tables": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
