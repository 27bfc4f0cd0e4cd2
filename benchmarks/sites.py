"""A real site of devices with quotas and shaped links: memory, latency, exactness, and what happens where it breaks.

    python benchmarks/sites.py [--only latency] [--json FILE]

Devices, links, deadlines and data are those of `benchmarks/siting/given.yaml`. Encoders are pretrained; heads are
trained on real data the first time, and kept in `.bench/site`. Needs root (namespaces, quotas), and Debian's
openclipart-png, wordnet-base and asterisk-core-sounds-{en,es,fr,it,ru}-wav.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))  # its programs are started by the demo's ways

import torch  # noqa: E402 - after the path is set, as the next ones
import yaml  # noqa: E402
from siting import heads  # noqa: E402
from siting.faults import faults  # noqa: E402
from siting.measures import PARTS as MEASURES  # noqa: E402
from siting.rig import Rig  # noqa: E402
from sizes.cases.case import CaseUnavailable  # noqa: E402

GIVEN: Final = ROOT / "benchmarks" / "siting" / "given.yaml"
PARTS: Final = {**MEASURES, "faults": faults}


def main() -> None:
    """Print the tables; write JSON where it is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", action="append", choices=list(PARTS), help="may be given again; all if not given")
    parser.add_argument("--fault", action="append", help="of the faults, only this one; may be given again")
    parser.add_argument("--cache", type=Path, default=ROOT / ".bench" / "site", help="folder of trained heads")
    parser.add_argument("--json", type=Path, help="write the report here too")
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    given = yaml.safe_load(GIVEN.read_text())
    begun = time.monotonic()

    def told(what: str) -> None:
        print(f"  {time.monotonic() - begun:5.0f} s  {what}", file=sys.stderr, flush=True)

    trained = asked.cache / heads.digest(GIVEN)
    if not (trained / "trained.json").exists():
        try:
            heads.write(trained, *heads.train_all(given, told))
        except CaseUnavailable as reason:
            sys.exit(f"not measured: {reason}")
    folder = Path(tempfile.mkdtemp(prefix="sprat-site-"))
    report: dict[str, Any] = {"accuracy": json.loads((trained / "trained.json").read_text())}
    failed: list[str] = []
    try:
        with Rig(folder, given, trained, told) as rig:
            rig.faults = asked.fault or ()
            for part in asked.only or list(PARTS):
                told(part)
                try:
                    report[part], said = PARTS[part](rig, trained)
                except (RuntimeError, ValueError, KeyError) as bad:  # the others are measured all the same
                    traceback.print_exc()
                    failed.append(part)
                    said = [f"{part} failed: {bad}"]
                print("\n".join(said), flush=True)
    except PermissionError as bad:
        sys.exit(f"not measured: {bad}; it needs root, /dev/net/tun and the kernel's quotas of CPU time")
    if failed:
        told(f"logs and stores are in {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    if asked.json:
        asked.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
