"""One agent process through update after update: nothing piles up, whatever goes wrong on the way.

The agent is the shipped command, the server a behaving one. Of every ten assignments some are good (from the base, or
full), some bad (refused by the holdout), some met by a busy server or a cut body. SPRAT_SOAK_S sets the seconds.
"""

import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tiny_onnx
from device_server import DeviceServer
from one_device import MODEL, one_device

from sprat_shared.protocol.report import Outcome

SOAK_S = float(os.environ.get("SPRAT_SOAK_S", "10"))
WARM_UP_CYCLES = 3
GROWTH_BYTES = 8 << 20  # of resident memory, after the warm-up, over any length of soak
BAD = 4


@dataclass(frozen=True)
class Footprint:
    """What a process holds."""

    descriptors: int
    files: int
    resident_bytes: int

    @classmethod
    def of(cls, pid: int, folder: Path) -> "Footprint":
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
        resident = next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmRSS:"))
        files = sum(1 for path in folder.rglob("*") if path.is_file())
        return cls(len(list(Path(f"/proc/{pid}/fd").iterdir())), files, resident)

    @classmethod
    def at_rest(cls, pid: int, folder: Path) -> "Footprint":
        """Return what it holds when nothing was opened or removed for a while: a report came before the tidying up."""
        seen = [cls.of(pid, folder)]
        for _ in range(50):
            time.sleep(0.2)
            seen.append(cls.of(pid, folder))
            if len({(one.descriptors, one.files) for one in seen[-4:]}) == 1 and len(seen) > 3:
                break
        return seen[-1]


def assign(server: DeviceServer, draw: random.Random, release: int) -> Outcome:
    """Wish a release over a link with a fault or none, and wait for the report."""
    server.inline = draw.random() < 0.5
    server.unavailable = draw.choice([0, 0, 2])
    server.cut_after = draw.choice([[], [], [40], [20, 60]])
    return server.wait_for_report(server.assign(MODEL, release), timeout_s=60.0).outcome


@pytest.mark.soak
@pytest.mark.timeout(SOAK_S + 240)
def test_update_after_update_leaves_neither_descriptors_nor_files_nor_memory_behind(tmp_path: Path) -> None:
    draw = random.Random(20)  # a repeatable order
    with one_device(tmp_path) as device:
        server, first = device.server, device.server.models[MODEL][1].weights
        server.add_release(MODEL, tiny_onnx.nudged(first, 2), base=1)
        server.add_release(MODEL, tiny_onnx.nudged(first, 3), base=2)
        server.add_release(MODEL, {**tiny_onnx.weights(99), "steps": ("I64", np.array(1, np.int64))}, base=1)
        command = [Path(sys.executable).parent / "sprat-agent", "run", "--dir", device.folder]
        command += ["--holdout", f"{MODEL}={device.holdout}", "--trial-s", "0.01", "--poll-interval-s", "0.05"]
        with (tmp_path / "agent.log").open("wb") as log, subprocess.Popen(command, stderr=log) as agent:
            try:
                start, cycles = None, 0
                ends = time.monotonic() + SOAK_S
                while cycles < 2 * WARM_UP_CYCLES or time.monotonic() < ends:
                    for release in (2, 3, 1):
                        assert assign(server, draw, release) in {Outcome.COMMITTED, Outcome.RETURNED}
                    assert assign(server, draw, BAD) is Outcome.REFUSED
                    cycles += 1
                    if cycles == WARM_UP_CYCLES:
                        start = Footprint.at_rest(agent.pid, device.folder)
                    assert agent.poll() is None, (tmp_path / "agent.log").read_text(encoding="utf-8")[-4000:]
                end = Footprint.at_rest(agent.pid, device.folder)
            finally:
                agent.terminate()
                agent.wait(30)
        sys.stdout.write(f"\n{4 * cycles} assignments, {start} then {end}\n")
        assert start is not None
        assert (end.descriptors, end.files) == (start.descriptors, start.files)
        assert end.resident_bytes - start.resident_bytes < GROWTH_BYTES
        assert device.serves() == 1
