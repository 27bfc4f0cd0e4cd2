"""One agent process through update after update: nothing piles up, whatever goes wrong on the way.

The agent is the shipped command, the server a behaving one. Of every four assignments three are good (an update, one on
top of it, a return), one is bad (refused by the holdout); many are met by a busy server or a cut body. SPRAT_SOAK_S
sets the seconds.

Memory is judged by a line through the least resident memory of each window (least squares): a peak while a release is
loaded beside another is no growth, and a leak lifts the floor. A short soak has no slope worth the name; it is judged
by what it grew.
"""

import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import tiny_onnx
from device_server import DeviceServer
from one_device import MODEL, one_device

from sprat_shared.protocol.report import Outcome
from sprat_shared.trust.policy import DevicePolicy

SOAK_S = float(os.environ.get("SPRAT_SOAK_S", "10"))
LONG_S, LEAST_CYCLES = 900.0, 2000  # a soak of so many seconds goes through so many updates and faults
WARM_UP_S = min(180.0, SOAK_S / 4)  # the allocator of the C library has its floor after some hundred updates
WINDOWS = 24
SLOPE_BYTES_PER_HOUR = 1 << 20
GROWTH_BYTES = 8 << 20  # of a soak that is too short for a slope
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
        files = sum(
            1 for path in folder.rglob("*") if path.is_file() and not path.name.startswith("events")
        )  # it turns
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


def slope_per_hour(samples: Sequence[tuple[float, int]]) -> float:
    """Return by how many bytes an hour the floor of memory rises, from (seconds, resident bytes).

    The least value of each of WINDOWS windows of equal length, and a line of least squares through them.
    """
    times = np.array([at for at, _ in samples])
    values = np.array([size for _, size in samples], float)
    window = np.minimum(((times - times[0]) / (times[-1] - times[0] + 1e-9) * WINDOWS).astype(int), WINDOWS - 1)
    floors = [(times[window == one].mean(), values[window == one].min()) for one in np.unique(window)]
    at, least = np.array(floors).T
    return float(np.polyfit(at, least, 1)[0] * 3600.0)


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGESIZE")


def assign(server: DeviceServer, draw: random.Random, release: int) -> tuple[Outcome, int]:
    """Wish a release over a link with faults or none, and wait for the report; return it, and how many faults."""
    server.inline = draw.random() < 0.3
    server.unavailable = draw.choice([0, 2, 3])
    server.cut_after = draw.choice([[40], [20, 60], [10, 30, 50]])
    faults = server.unavailable + (0 if server.inline else len(server.cut_after))
    return server.wait_for_report(server.assign(MODEL, release), timeout_s=60.0).outcome, faults


def test_a_leak_shows_in_the_slope_and_peaks_do_not() -> None:
    draw = np.random.default_rng(1)
    peaks = [(float(at), int(50e6 + 20e6 * (draw.random() < 0.5))) for at in range(0, 900, 2)]
    assert abs(slope_per_hour(peaks)) < SLOPE_BYTES_PER_HOUR
    leak = [(at, size + int(at * 2e6 / 3600)) for at, size in peaks]
    assert 1.5e6 < slope_per_hour(leak) < 2.5e6


@pytest.mark.soak
@pytest.mark.timeout(2 * SOAK_S + 300)
def test_update_after_update_leaves_neither_descriptors_nor_files_nor_memory_behind(tmp_path: Path) -> None:
    draw = random.Random(20)  # a repeatable order
    with one_device(tmp_path) as device:
        server, first = device.server, device.server.models[MODEL][1].weights
        server.poll_interval_s = 0.01
        server.add_release(MODEL, tiny_onnx.nudged(first, 2), base=1)
        server.add_release(MODEL, tiny_onnx.nudged(first, 3), base=2)
        server.add_release(MODEL, {**tiny_onnx.weights(99), "steps": ("I64", np.array(1, np.int64))}, base=1)
        server.says = lambda assigned: replace(assigned, policy=DevicePolicy(attempts=1000))
        command = [Path(sys.executable).parent / "sprat-agent", "run", "--dir", device.folder]
        command += ["--holdout", f"{MODEL}={device.holdout}", "--trial-s", "0.01", "--poll-interval-s", "0.02"]
        with (tmp_path / "agent.log").open("wb") as log, subprocess.Popen(command, stderr=log) as agent:
            try:
                start, cycles, samples = None, 0, list[tuple[float, int]]()
                begun = time.monotonic()
                least = LEAST_CYCLES if SOAK_S >= LONG_S else 0
                while start is None or time.monotonic() - begun < SOAK_S or cycles < least:
                    for release in (2, 3, 1):
                        outcome, faults = assign(server, draw, release)
                        assert outcome in {Outcome.COMMITTED, Outcome.RETURNED}
                        cycles += 1 + faults
                        samples.append((time.monotonic(), resident_bytes(agent.pid)))
                    outcome, faults = assign(server, draw, BAD)
                    assert outcome is Outcome.REFUSED
                    cycles += 1 + faults
                    if start is None and time.monotonic() - begun > WARM_UP_S:
                        start = Footprint.at_rest(agent.pid, device.folder)
                        samples.clear()
                    server.requests.clear()
                    assert agent.poll() is None, (tmp_path / "agent.log").read_text(encoding="utf-8")[-4000:]
                took_s = time.monotonic() - begun
                end = Footprint.at_rest(agent.pid, device.folder)
            finally:
                agent.terminate()
                agent.wait(30)
        slope = slope_per_hour(samples) if len(samples) > 1 else 0.0
        sys.stdout.write(
            f"\n{took_s:.0f} s, {cycles} updates and faults; {start} then {end}; slope {slope / 1e6:+.2f} MB/hour\n"
        )
        assert (end.descriptors, end.files) == (start.descriptors, start.files)
        if SOAK_S >= LONG_S:
            assert slope < SLOPE_BYTES_PER_HOUR
        assert end.resident_bytes - start.resident_bytes < GROWTH_BYTES
        assert device.serves() == 1
