"""SIGKILL of real agent processes, in every state and at random: always the old or the new release, always the next.

Hooks hold the agent in a state until it is killed there; at random it is killed wherever it is. After each kill the
agent starts again and is asked over HTTP what it serves, with the digest recomputed from the files.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import ledger
import numpy as np
import pytest
import tiny_onnx
from device_server import ENROLMENT_TOKEN, DeviceServer

from sprat_client.agent.durable import PosixDisk
from sprat_client.agent.enrol import enrol
from sprat_client.agent.states import BEFORE_TRIAL, State
from sprat_shared.trust.policy import DevicePolicy

pytestmark = pytest.mark.crash
MODEL = "tiny"
MANY = int(os.environ.get("SPRAT_CRASH_TIMES", "1"))  # `make crash` has it higher
PARTS = range(MANY)  # each on a device of its own, so that they run side by side
UPDATES, RANDOM_KILLS = (5, 30) if MANY == 1 else (4, 25)  # in each part
POLICY = DevicePolicy(shadow_s=0.05, attempts=1000)
HOOK = """#!/bin/sh
grep -qx "$SPRAT_STATE" {folder}/armed 2>/dev/null || exit 0
agent=$PPID
echo "$agent $SPRAT_STATE" > {folder}/reached.new && mv {folder}/reached.new {folder}/reached
while kill -0 $agent 2>/dev/null; do sleep 0.01; done
"""


def eventually(found: Callable[[], Any], what: str, timeout_s: float = 30.0) -> Any:
    """Return the first true value of `found`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := found():
            return value
        time.sleep(0.01)
    raise AssertionError(f"not in {timeout_s} s: {what}")


class Rig:
    """One device: its server, its folder, and its agent, which is killed over and over."""

    def __init__(self, folder: Path, url: str, server: DeviceServer) -> None:
        self.folder, self.server = folder, server
        self.device, self.hooks = folder / "device", folder / "hooks"
        self.hooks.mkdir()
        for state in State:
            hook = self.hooks / state.value
            hook.write_text(HOOK.format(folder=folder))
            hook.chmod(0o755)
        inputs, labels = tiny_onnx.samples(server.models[MODEL][1].weights, 64)
        np.savez(folder / "holdout.npz", inputs=inputs, labels=labels)
        enrol(self.device, PosixDisk(), server_url=url, token=ENROLMENT_TOKEN, name="gate-7")
        self.log = folder / "agent.log"
        self._zygote = subprocess.Popen(
            [sys.executable, Path(__file__).parents[1] / "simulator" / "zygote.py", self.log],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self.agent = 0
        self.kills: Counter[str] = Counter()
        self.marks: dict[str, int] = {}

    def start(self, *, trial_s: float = 0.05) -> None:
        """Start the agent."""
        arguments = ["run", "--dir", str(self.device), "--poll-interval-s", "0.05", "--trial-s", str(trial_s)]
        arguments += ["--hooks", str(self.hooks), "--holdout", f"{MODEL}={self.folder / 'holdout.npz'}"]
        assert self._zygote.stdin is not None
        assert self._zygote.stdout is not None
        self._zygote.stdin.write(json.dumps(arguments) + "\n")
        self._zygote.stdin.flush()
        self.agent = int(self._zygote.stdout.readline())

    def kill(self) -> str:
        """Kill the agent; return the state that its journal was in."""
        os.kill(self.agent, signal.SIGKILL)
        eventually(lambda: not alive(self.agent), "the killed process is gone")
        journal = json.loads((self.device / "journal.json").read_bytes())
        for name, one in journal["trust"]["marks"].items():
            for role, version in one["versions"].items():
                if version < self.marks.get(f"{name}/{role}", 0):
                    ledger.note("regressions", {role: 1})
                    raise AssertionError(f"{name}/{role} {version} is trusted, after {self.marks[f'{name}/{role}']}")
                self.marks[f"{name}/{role}"] = version
        state: str = journal["models"][MODEL]["state"]
        self.kills[state] += 1
        ledger.note("kills", {state: 1})
        return state

    def stop(self) -> None:
        """End everything."""
        if self.agent and alive(self.agent):
            os.kill(self.agent, signal.SIGKILL)
        assert self._zygote.stdin is not None
        self._zygote.stdin.close()
        self._zygote.wait(10)
        assert self._zygote.stdout is not None
        self._zygote.stdout.close()

    def arm(self, *states: State) -> None:
        """Let the hooks of these states hold the agent."""
        (self.folder / "reached").unlink(missing_ok=True)
        (self.folder / "armed").write_text("".join(f"{state}\n" for state in states))

    def wait_in(self, state: State) -> None:
        """Wait until the present agent is held in `state`."""

        def reached() -> bool:
            try:
                return (self.folder / "reached").read_text().split() == [str(self.agent), state.value]
            except FileNotFoundError:
                return False

        eventually(reached, f"the agent is in {state}; its log ends:\n{self.tail()}")

    def serves(self, *allowed: int) -> int:
        """Return the release that the running agent serves, having checked its digest against the registry's."""

        def asked() -> dict[str, Any] | None:
            try:
                endpoint = json.loads((self.device / "endpoint.json").read_bytes())
                if endpoint["pid"] != self.agent:
                    return None
                answer = httpx.get(f"{endpoint['url']}/v1/models/{MODEL}?verify=1", timeout=5.0)
            except (OSError, ValueError, httpx.HTTPError):
                return None
            said: dict[str, Any] = answer.json()
            return said if answer.status_code == 200 else None

        said = eventually(asked, f"the agent answers; its log ends:\n{self.tail()}")
        assert said["digest_matches"], said
        assert said["digest"] == self.server.models[MODEL][said["release"]].digest
        if said["release"] not in allowed:
            ledger.note("outside", {"kill": 1})
        assert said["release"] in allowed, f"{said['release']} serves, not one of {allowed}:\n{self.tail()}"
        release: int = said["release"]
        return release

    def settles_on(self, release: int) -> None:
        """Wait until the agent has committed `release`."""
        self.arm()
        eventually(lambda: self._idle_on(release), f"{release} is committed; the agent's log ends:\n{self.tail()}")

    def _idle_on(self, release: int) -> bool:
        journal = json.loads((self.device / "journal.json").read_bytes())
        if (record := journal["models"].get(MODEL)) is None or record["state"] != "idle" or record["pending"]:
            return False
        return alive(self.agent) and self.serves(*self.server.models[MODEL]) == release

    def tail(self) -> str:
        """Return the end of the agents' log."""
        return "\n".join(self.log.read_text().splitlines()[-12:]) if self.log.exists() else "(none)"


def alive(pid: int) -> bool:
    """Return whether a process is there and not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    server = DeviceServer()
    server.says = lambda assigned: replace(assigned, policy=POLICY)
    base = tiny_onnx.weights(1)
    server.add_release(MODEL, base)
    for number in range(2, UPDATES + 2):
        server.add_release(MODEL, tiny_onnx.nudged(base, number), base=number - 1)
    with server.running() as url:
        rig = Rig(tmp_path, url, server)
        try:
            server.assign(MODEL, 1)
            rig.start()
            eventually((rig.device / "journal.json").exists, "the journal is there")
            rig.settles_on(1)
            yield rig
        finally:
            rig.stop()


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.timeout(900)
def test_a_kill_in_every_state_leaves_the_old_or_the_new_release_and_the_next_is_taken(rig: Rig, part: int) -> None:
    del part  # a name for the device
    up = [state for state in State if state in BEFORE_TRIAL]
    for old in range(1, UPDATES + 1):
        new = old + 1
        rig.arm(State.FETCHING)
        rig.server.assign(MODEL, new)
        for state in up:  # each start resumes in the state that was killed, and is held in the next one
            rig.wait_in(state)
            rig.arm(*up[up.index(state) + 1 :][:1], State.TRIAL)
            assert rig.kill() == state
            rig.start()
            rig.serves(old)
        for cut in range(3):  # the third cut of one trial sends the release back
            rig.wait_in(State.TRIAL)
            rig.arm(State.TRIAL if cut < 2 else State.ROLLING_BACK)
            assert rig.kill() == State.TRIAL
            rig.start()
            rig.serves(old, new)
        rig.wait_in(State.ROLLING_BACK)
        rig.arm(State.IDLE)
        assert rig.kill() == State.ROLLING_BACK
        rig.start()
        rig.serves(old)
        rig.wait_in(State.IDLE)
        rig.arm()
        assert rig.kill() == State.IDLE
        rig.start()
        rig.serves(old)
        rig.server.assign(MODEL, new)  # asked for again, it is taken
        rig.settles_on(new)
    assert set(rig.kills) == set(State)
    assert min(rig.kills.values()) >= UPDATES, rig.kills


@pytest.mark.parametrize("seed", PARTS)
@pytest.mark.timeout(900)
def test_kills_at_random_leave_the_old_or_the_new_release_and_the_next_is_taken(rig: Rig, seed: int) -> None:
    draw = random.Random(seed)
    serving, wished = 1, 2
    rig.server.assign(MODEL, wished)
    for _ in range(RANDOM_KILLS):
        time.sleep(draw.uniform(0.0, 0.6))
        rig.kill()
        rig.start()
        now = rig.serves(serving, wished)
        journal = json.loads((rig.device / "journal.json").read_bytes())["models"][MODEL]
        if now == wished and journal["state"] == "idle" and journal["pending"] is None:
            serving, wished = wished, draw.choice([release for release in (1, 2, 3) if release != wished])
            rig.server.assign(MODEL, wished)
        elif journal["refused"] and journal["state"] == "idle":  # cut three times in its trial: asked for again
            rig.server.assign(MODEL, wished)
    assert rig.kills.total() >= RANDOM_KILLS
    rig.server.assign(MODEL, wished)
    rig.settles_on(wished)
    rig.server.assign(MODEL, 2 if wished == 1 else 1)
    rig.settles_on(2 if wished == 1 else 1)
