"""SIGKILL of a real agent that refreshes while the server publishes: trust never goes back, and the agent recovers."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ledger
import pytest
import tiny_onnx
from device_server import ENROLMENT_TOKEN, DeviceServer

from sprat_client.agent.durable import PosixDisk
from sprat_client.agent.enrol import enrol

pytestmark = pytest.mark.crash
MANY = int(os.environ.get("SPRAT_CRASH_TIMES", "1"))  # `make crash` has it higher
KILLS = 24 if MANY == 1 else 60  # of each seed
MODEL = "tiny"
ROTATE_EVERY = 40  # publications


@contextmanager
def publishing(server: DeviceServer) -> Iterator[None]:
    """Sign new versions of everything, over and over, and now and then new roots."""
    stop = threading.Event()

    def publish() -> None:
        for turn in range(1, 1 << 30):
            if stop.wait(0.01):
                return
            with server.lock:
                device = next(iter(server.devices.values()))
                server.repository.targets.version += 1
                if turn % ROTATE_EVERY == 0:
                    server.repository.rotate("targets")
                    server.director.rotate("timestamp", "snapshot", "targets")
                    if device.id in server.director.devices:
                        server.director.devices[device.id].said = None  # everything is signed again, by the new keys
                server.repository.publish(MODEL)
                server.assign(MODEL, 1, device)

    thread = threading.Thread(target=publish, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(10)


class Killed:
    """An agent that is started from a zygote and killed."""

    def __init__(self, device: Path, log: Path) -> None:
        self.device, self.log = device, log
        self._zygote = subprocess.Popen(
            [sys.executable, Path(__file__).parents[1] / "simulator" / "zygote.py", log],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def start(self) -> int:
        """Start it; return its process id."""
        assert self._zygote.stdin is not None
        assert self._zygote.stdout is not None
        arguments = ["run", "--dir", str(self.device), "--poll-interval-s", "0.01", "--trial-s", "0.01"]
        self._zygote.stdin.write(json.dumps(arguments) + "\n")
        self._zygote.stdin.flush()
        return int(self._zygote.stdout.readline())

    def end(self) -> None:
        """End the zygote."""
        assert self._zygote.stdin is not None
        assert self._zygote.stdout is not None
        self._zygote.stdin.close()
        self._zygote.wait(10)
        self._zygote.stdout.close()


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except OSError:
            return
        time.sleep(0.005)
    raise AssertionError(f"{pid} does not die")


def files_of(device: Path) -> dict[str, int]:
    """Return the versions of the metadata files; each must be whole."""
    return {
        f"{path.parent.name}/{path.stem}": json.loads(path.read_bytes())["signed"]["version"]
        for path in (device / "trust").glob("*/*.json")
    }


def marks_of(device: Path) -> dict[str, int]:
    """Return the marks."""
    marks = json.loads((device / "journal.json").read_bytes())["trust"]["marks"]
    return {f"{name}/{role}": version for name, one in marks.items() for role, version in one["versions"].items()}


def state_of(device: Path) -> str:
    """Return the state of the model; idle before it has one."""
    models = json.loads((device / "journal.json").read_bytes())["models"]
    return str(models[MODEL]["state"]) if MODEL in models else "idle"


def written_at(journal: Path) -> int:
    return journal.stat().st_mtime_ns if journal.exists() else 0


def wait_for_a_refresh(journal: Path, before: int) -> None:
    """Wait until marks were written: the files follow now."""
    deadline = time.monotonic() + 20
    while written_at(journal) == before:
        assert time.monotonic() < deadline, "the agent does not refresh"
        time.sleep(0.001)


@pytest.mark.parametrize("seed", range(7, 7 + MANY))
def test_kills_during_refresh_never_take_trust_back(tmp_path: Path, seed: int) -> None:
    draw, device, server = random.Random(seed), tmp_path / "device", DeviceServer()
    server.add_release(MODEL, tiny_onnx.weights(1))
    with server.running() as url:
        enrol(device, PosixDisk(), server_url=url, token=ENROLMENT_TOKEN, name="gate-7")
        killed = Killed(device, tmp_path / "agent.log")
        server.assign(MODEL, 1)
        files: dict[str, int] = {}
        epochs = grew = partly = 0
        window_s = 0.4
        try:
            with publishing(server):
                for _ in range(KILLS):
                    before = written_at(device / "journal.json")
                    pid = killed.start()
                    wait_for_a_refresh(device / "journal.json", before)
                    time.sleep(draw.uniform(0.0, draw.choice([0.0, 1.0, 1.0, 1.0]) * window_s))  # at once, or anywhere
                    kill(pid)
                    ledger.note("kills", {state_of(device): 1})
                    found, marks = files_of(device), marks_of(device)
                    new_keys = found.get("director/root", 0) > files.get("director/root", 0)
                    epochs += new_keys
                    for role, version in found.items():
                        assert new_keys or version >= files.get(role, 0), f"{role} went back from {files}"
                        assert version <= marks.get(role, 0), f"{role} {version} is trusted and not marked: {marks}"
                    grew += found != files
                    window_s *= 1.25 if found == files else 0.95  # a loaded machine takes longer for a refresh
                    partly += bool(found) and found != marks
                    files = found
            pid = killed.start()
            newest = {f"image/{role}": version for role, version, _ in server.repository.newest()}
            deadline = time.monotonic() + 20
            while not newest.items() <= files_of(device).items() and time.monotonic() < deadline:
                time.sleep(0.05)
            kill(pid)
        finally:
            killed.end()
        assert newest.items() <= files_of(device).items(), (tmp_path / "agent.log").read_text()[-3000:]
    assert grew > KILLS / 2, "most agents lived long enough to take something"
    assert partly, "some were killed between the marks and the last of the files"
    assert epochs > 1
