"""What the crash suite did, over all its processes: `make crash` prints it, and fails if it is less than promised.

    python tests/crash/ledger.py [FOLDER]     adds up what the tests of one run noted there
Tests note what they did in the folder that SPRAT_CRASH_LEDGER names; without it nothing is noted.
"""

import json
import os
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

# What `make crash` must reach at least. By state: all of these together over the states of an agent.
PROMISED = {"kills": 1000, "power cuts": 1000, "errno faults": 1000}
NEVER = ("outside", "regressions", "stuck")
STATES = (
    "idle",
    "fetching",
    "verifying",
    "rebuilding",
    "ready",
    "validating",
    "shadow",
    "trial",
    "rolling_back",
)


def note(kind: str, counts: Mapping[str, int]) -> None:
    """Note that something of `kind` was done so often, by the agent's state or by errno.

    Args:
        kind: one of PROMISED, or of NEVER.
        counts: how often.
    """
    if folder := os.environ.get("SPRAT_CRASH_LEDGER"):
        line = json.dumps({"kind": kind, "counts": dict(counts)}) + "\n"
        with (Path(folder) / f"{os.getpid()}.jsonl").open("a", encoding="utf-8") as file:
            file.write(line)


def totals(folder: Path) -> dict[str, Counter[str]]:
    """Return what all processes noted, by kind."""
    found: dict[str, Counter[str]] = {kind: Counter() for kind in (*PROMISED, *NEVER)}
    for file in sorted(folder.glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            said = json.loads(line)
            found[said["kind"]].update(said["counts"])
    return found


def missing(found: Mapping[str, Counter[str]]) -> list[str]:
    """Return what was promised and not reached, and what must never be and was."""
    less = [
        f"{found[kind].total()} {kind}, {least} are promised"
        for kind, least in PROMISED.items()
        if found[kind].total() < least
    ]
    unseen = [
        f"no {kind} while {state}" for kind in ("kills", "power cuts") for state in STATES if not found[kind][state]
    ]
    return [*less, *unseen, *(f"{found[kind].total()} {kind}" for kind in NEVER if found[kind].total())]


def main(folder: Path) -> int:
    """Print the totals; return 1 if they are not what is promised."""
    found = totals(folder)
    for kind in PROMISED:
        parts = ", ".join(f"{name} {count}" for name, count in sorted(found[kind].items()))
        sys.stdout.write(f"{kind:<14}{found[kind].total():>6}   {parts}\n")
    for kind in NEVER:
        sys.stdout.write(f"{kind:<14}{found[kind].total():>6}\n")
    for said in (wrong := missing(found)):
        sys.stderr.write(f"make crash: {said}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
