"""`python -m demo`: run the demo, write demo-report.json, end with 1 if a promise does not hold."""

import argparse
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType

from demo.processes import ROOT, ProcessFailed
from demo.report import PromiseBroken, broken_promises
from demo.screen import Screen
from demo.story import Story


def main() -> int:
    """Run the demo; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m demo", description="One update goes the whole way.")
    parser.add_argument("--report", type=Path, default=ROOT / "demo-report.json", help="where to write the figures")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, _stop)
    screen = Screen()
    folder = Path(tempfile.mkdtemp(prefix="sprat-demo-"))
    asked.report.unlink(missing_ok=True)
    try:
        report = Story(folder, screen).tell()
    except KeyboardInterrupt:
        screen.bad("stopped; every process of the demo has ended")
        shutil.rmtree(folder)
        return 130
    except (ProcessFailed, PromiseBroken) as error:
        screen.bad(f"{error}\nthe logs are kept in {folder}")
        return 1
    shutil.rmtree(folder)
    report.write(asked.report)
    screen.result(report)
    broken = list(broken_promises(report))
    for promise in broken:
        screen.bad(promise)
    screen.say(f"figures: {asked.report}")
    return 1 if broken else 0


def _stop(_number: int, _frame: FrameType | None) -> None:
    """SIGTERM ends the demo as Ctrl-C does: with all its processes."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
