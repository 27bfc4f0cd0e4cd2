"""Power cuts at random, also while an earlier one is being recovered from: always the old or the new release.

A device walks from release to release: updates, updates that are called back in their trial, returns. Before a call
that is drawn the power goes: names that were not synced are lost or kept by chance, bytes that were not are torn. What
is left is started again, and cut again, up to three times; then it must take the next release, and hold exactly what
two slots need.
"""

import gc
import json
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ledger
import pytest
import tiny_onnx
from crashing_disk import CrashingDisk, PowerCut, RecordingDisk
from device_server import ENROLMENT_TOKEN, DeviceServer
from one_device import MODEL, agent_on, release_of

from sprat_client.agent.durable import PosixDisk
from sprat_client.agent.enrol import enrol
from sprat_client.agent.loop import Agent
from sprat_client.agent.releases import Shelf
from sprat_client.agent.states import BEFORE_TRIAL
from sprat_client.agent.store import TensorStore

pytestmark = pytest.mark.crash
MANY = int(os.environ.get("SPRAT_CRASH_TIMES", "1"))  # `make crash` has it higher
SEEDS, CUTS = 1 if MANY == 1 else 4 * MANY, 25
RELEASES = range(1, 6)
CALLS = 130  # of an update, about
ALLOWED_S = 20.0


@dataclass
class Walk:
    """One device and where it is."""

    server: DeviceServer
    folder: Path
    draw: random.Random
    serving: int = 1
    marks: dict[str, int] = field(default_factory=dict)
    cuts: Counter[str] = field(default_factory=Counter)
    starts: int = 0

    def agent(self, folder: Path, calls_left: int | None = None) -> tuple[Agent, RecordingDisk]:
        disk = RecordingDisk(folder, calls_left)
        quick = {"trial_s": 0.01, "shadow_s": 0.01, "attempts": 10**6}
        return agent_on(folder, disk, **quick), disk

    def check(self, agent: Agent, allowed: set[int], journal: dict[str, Any]) -> None:
        """What serves is allowed, and was tried only if the journal said so before."""
        release = release_of(agent, self.server)
        assert release in allowed, f"{release} serves, not one of {allowed}"
        record = journal["models"].get(MODEL)
        if record is not None and record["state"] in BEFORE_TRIAL:
            assert release == self.serving, f"{release} serves before its trial, while {record['state']}"

    def checked_marks(self, journal: dict[str, Any]) -> None:
        """Versions that were trusted never fall."""
        for name, one in journal["trust"]["marks"].items():
            for role, version in one["versions"].items():
                before = self.marks.get(f"{name}/{role}", 0)
                if version < before:
                    ledger.note("regressions", {role: 1})
                assert version >= before, f"{name}/{role} {version} after {before}"
                self.marks[f"{name}/{role}"] = version


def journal_of(folder: Path) -> dict[str, Any]:
    said: dict[str, Any] = json.loads((folder / "journal.json").read_bytes())
    return said


@pytest.fixture
def walk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Walk]:
    gc.freeze()  # agents collect garbage after each release: what the test itself holds need not be looked through
    server, base = DeviceServer(), tiny_onnx.weights(1)
    server.add_release(MODEL, base)
    for number in RELEASES[1:]:
        server.add_release(MODEL, tiny_onnx.nudged(base, number), base=1)
    with server.running() as url:
        device = tmp_path / "start"
        enrol(device, PosixDisk(), server_url=url, token=ENROLMENT_TOKEN, name="gate-7")
        server.assign(MODEL, 1)
        walk = Walk(server, device, random.Random(request.param))
        with agent_on(device) as agent:
            assert agent.run(once=True) == 0
        yield walk


def go(walk: Walk, agent: Agent, wished: int, *, call_back: bool) -> None:
    """Work until the wish is settled; with `call_back`, the release before is wished as soon as the new one serves."""
    ends = time.monotonic() + ALLOWED_S
    while time.monotonic() < ends:
        wait_s = agent.turn()
        if call_back and release_of(agent, walk.server) == wished:
            walk.server.assign(MODEL, walk.serving)
            call_back = False
        if is_done(walk, agent):
            return
        time.sleep(min(wait_s, 0.005))
    raise AssertionError(f"{wished} is not settled after {ALLOWED_S} s: {agent._machines[MODEL].record}")


def is_done(walk: Walk, agent: Agent) -> bool:
    """Whether the newest assignment has ended, and the server knows."""
    machine, newest = agent._machines.get(MODEL), walk.server.devices["gate-7"].counter
    known = machine is not None and machine.idle and machine.record.highest_assignment == newest
    return known and not agent._shop.reports_wait


def cut(walk: Walk, wished: int) -> bool:
    """Run until the power goes before a call that is drawn; return whether it did."""
    folder = walk.folder
    before = CrashingDisk(folder.parent / "disk", draw=walk.draw)
    before.take(folder)
    journal = journal_of(folder)
    call_back = walk.draw.random() < 0.2
    try:
        agent, disk = walk.agent(folder, walk.draw.randrange(CALLS))
        with agent:
            walk.check(agent, {walk.serving, wished}, journal)
            go(walk, agent, wished, call_back=call_back)
    except PowerCut:
        for call in disk.calls:
            before.replay(call)
    else:
        return False
    before.power_cut()
    walk.starts += 1
    walk.folder = folder.parent / str(walk.starts)
    before.give(walk.folder)
    journal = journal_of(walk.folder)
    walk.checked_marks(journal)
    record = journal["models"].get(MODEL)
    walk.cuts.update({"idle" if record is None else record["state"]: 1})
    return True


def settle(walk: Walk, allowed: set[int]) -> None:
    """Start once more, without a cut, and take another release; the folder holds what its slots need, and no more."""
    journal = journal_of(walk.folder)
    agent, _ = walk.agent(walk.folder)
    with agent:
        walk.check(agent, allowed, journal)
        wished = walk.draw.choice([release for release in RELEASES if release not in allowed])
        walk.server.assign(MODEL, wished)
        ends = time.monotonic() + ALLOWED_S
        while not (agent._machines[MODEL].idle and release_of(agent, walk.server) == wished):
            assert time.monotonic() < ends, f"{wished} is not taken: {agent._machines[MODEL].record}"
            time.sleep(min(agent.turn(), 0.005))
        for _ in range(2):  # reports, then what is left over
            agent.turn()
        walk.serving = wished
    assert not surplus(walk.folder)


def surplus(folder: Path) -> set[str]:
    """Return the files that neither the slots nor the agent itself need."""
    store = TensorStore(folder / "store", PosixDisk())
    shelf = Shelf(MODEL, folder / "models" / MODEL, store, PosixDisk())
    slots = shelf.slots()
    needed = {
        "agent.json",
        "device.key",
        "budget.json",
        "events.jsonl",
        "journal.json",
        "run.lock",
        "said.json",
        "store/rebuild.lock",
        f"models/{MODEL}/slots.json",
    }
    for slot in filter(None, (slots.active, slots.previous)):
        manifest, at = shelf.manifest(slot.release_id), shelf.folder_of(slot.release_id)
        shelf.check(manifest)
        needed |= {str(path.relative_to(folder)) for path in at.rglob("*")}
        needed |= {str(store.path(sha256).relative_to(folder)) for sha256 in manifest.files}
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {name for name in needed if (folder / name).is_file()} >= needed - {"said.json", "store/rebuild.lock"} - {
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_dir()
    }
    return {name for name in files - needed if not name.startswith(("trust/", "outbox/"))} | {
        name for name in files if Path(name).name.startswith(".")
    }


@pytest.mark.parametrize("walk", range(SEEDS), indirect=True)
@pytest.mark.timeout(900)
def test_cuts_at_random_and_cuts_of_the_recovery_leave_the_old_or_the_new_release(walk: Walk) -> None:
    while walk.cuts.total() < CUTS:
        walk.server.devices["gate-7"].reports.clear()
        wished = walk.draw.choice([release for release in RELEASES if release != walk.serving])
        walk.server.assign(MODEL, wished)
        try:
            for _ in range(walk.draw.randint(1, 3)):
                if not cut(walk, wished):
                    break
            settle(walk, {walk.serving, wished})
        except Exception:
            ledger.note("outside", {"power cut": 1})
            raise
    ledger.note("power cuts", walk.cuts)
    assert len(walk.cuts) >= 3, f"cuts in several states: {walk.cuts}"
