"""How much memory models can share without retraining, by which rule, and what it costs.

    python benchmarks/layer_sharing.py [--zoo mixed] [--seeds 3] [--measured] [--json FILE] [--plot PNG]

Each zoo is trained once for each seed. Every ordered pair of its models is measured: scores, agreement on unlabelled
inputs, and, for the last column alone, accuracy on test. Each rule makes a plan by the inputs that choose; every plan
is certified on other ones, its recipients going down their ladders until the bound is within five points; drops are of
a test split that nothing has seen. What was measured is kept in `benchmarks/measured/layer_sharing` and not measured
again until the code changes; an interrupted run goes on. Trained models are cached in `.bench/sharing`.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))  # the digits are those of the demo

import torch  # noqa: E402 - after the path is set, as the next ones
from sharing.groups import GROUPS, Group  # noqa: E402
from sharing.report import plot, printed, report  # noqa: E402
from sizes.cases.case import CaseUnavailable  # noqa: E402

MEASURED: Final = ROOT / "benchmarks" / "measured" / "layer_sharing"


def main() -> None:
    """Print the tables; write JSON and plot where they are asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--zoo", action="append", choices=list(GROUPS), help="may be given again; all if not given")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 (default: 3)")
    parser.add_argument("--cache", type=Path, default=ROOT / ".bench" / "sharing", help="folder of trained models")
    parser.add_argument("--measured", action="store_true", help="print what was measured so far, measure nothing")
    parser.add_argument("--json", type=Path, help="write the report here too")
    parser.add_argument("--plot", type=Path, help="write the front of memory against bound here (PNG)")
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for seed in range(asked.seeds):
        for key in asked.zoo or list(GROUPS):
            try:
                group = Group(key, seed, asked.cache, MEASURED)
                if not asked.measured:
                    group.measure()
                if group.whole():
                    found.setdefault(key, {})[seed] = report(group)
            except CaseUnavailable as reason:
                print(f"left out: {key}: {reason}", file=sys.stderr)
    print("\n".join(printed(found)))
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if asked.plot:
        plot(found, asked.plot)


if __name__ == "__main__":
    main()
