"""Power cuts between any two of the real writes of a real install: the device boots the old or the new release.

The writes of an agent that installs an update from a server are recorded at the disk port. They are replayed on a
simulated disk up to every point; there the power goes, and the real agent is started on what is left.
"""

import gc
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ledger
import pytest
import tiny_onnx
from crashing_disk import Call, CrashingDisk, Names, RecordingDisk
from device_server import ENROLMENT_TOKEN, DeviceServer
from one_device import MODEL, agent_on, release_of

from sprat_client.agent.durable import PosixDisk
from sprat_client.agent.enrol import enrol
from sprat_client.agent.releases import Shelf
from sprat_client.agent.states import BEFORE_TRIAL, State
from sprat_client.agent.store import TensorStore
from sprat_shared.errors import SpratError

pytestmark = pytest.mark.crash
OLD, NEW, NEXT = 1, 2, 3
MANY = int(os.environ.get("SPRAT_CRASH_TIMES", "1"))  # `make crash` has it higher
TAKE_THE_NEXT_EVERY = max(1, 4 // MANY)  # cuts; taking a release costs more than booting
PARTS = 4  # that run side by side


@dataclass
class Install:
    """A recorded install: the server, what the disk held before, what was written."""

    server: DeviceServer
    before: Path
    calls: list[Call]


@pytest.fixture(scope="module")
def install(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Install]:
    gc.freeze()  # agents collect garbage after each release: what the test itself holds need not be looked through
    folder = tmp_path_factory.mktemp("install")
    server = DeviceServer()
    base = tiny_onnx.weights(1)
    server.add_release(MODEL, base)
    server.add_release(MODEL, tiny_onnx.nudged(base, 2), base=OLD)
    server.add_release(MODEL, tiny_onnx.nudged(base, 3), base=NEW)
    with server.running() as url:
        device = folder / "device"
        enrol(device, PosixDisk(), server_url=url, token=ENROLMENT_TOKEN, name="gate-7")
        server.assign(MODEL, OLD)
        with agent_on(device) as agent:
            assert agent.run(once=True) == 0
        disk = CrashingDisk(folder)
        disk.take(device)
        disk.give(folder / "before")
        server.assign(MODEL, NEW)
        recording = RecordingDisk(device)
        with agent_on(device, recording, shadow_s=0.05) as agent:
            assert agent.run(once=True) == 0
            assert release_of(agent, server) == NEW
        yield Install(server, folder / "before", recording.calls)


def replayed(install: Install, calls: list[Call], names: Names) -> CrashingDisk:
    disk = CrashingDisk(install.before.parent / "disk", names)
    disk.take(install.before)
    for call in calls:
        disk.replay(call)
    disk.power_cut()
    return disk


def state_in(folder: Path) -> State:
    """Return the state that the journal says."""
    return State(json.loads((folder / "journal.json").read_bytes())["models"][MODEL]["state"])


def boot(disk: CrashingDisk, folder: Path, server: DeviceServer, *, take_next: bool) -> int | None:
    """Start the agent on what the disk kept; return the release that serves. None serves before its trial.

    Raises:
        SpratError: the cut left damage, which the agent could mend, and must not have to.
    """
    disk.give(folder)
    state = state_in(folder)
    shelf = Shelf(MODEL, folder / "models" / MODEL, TensorStore(folder / "store", PosixDisk()), PosixDisk())
    active = shelf.slots().active
    assert active is not None
    shelf.check(shelf.manifest(active.release_id))
    with agent_on(folder) as agent:
        release = release_of(agent, server)
        assert release == OLD or state not in BEFORE_TRIAL, f"{release} serves while {state}"
        if take_next:
            next(iter(server.devices.values())).reports.clear()  # of other cuts
            server.assign(MODEL, NEXT)
            assert agent.run(once=True) == 0
            assert release_of(agent, server) == NEXT
            server.assign(MODEL, NEW)  # what the recorded install was about
    return release


@pytest.mark.parametrize("names", ["lost", "kept"])
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.timeout(900)
def test_every_power_cut_in_a_real_install_leaves_the_old_or_the_new_release(
    install: Install, names: Names, part: int, tmp_path: Path
) -> None:
    for cut in range(part, len(install.calls) + 1, PARTS):
        disk = replayed(install, install.calls[:cut], names)
        take_next = cut // PARTS % TAKE_THE_NEXT_EVERY == 0
        release = boot(disk, tmp_path / str(cut), install.server, take_next=take_next)
        if release not in {OLD, NEW}:
            ledger.note("outside", {"power cut": 1})
        assert release in {OLD, NEW}, f"bricked by a cut before call {cut}: {install.calls[cut : cut + 1]}"
        ledger.note("power cuts", {state_in(replayed_into(disk, tmp_path / f"{cut}-cut")): 1})


@pytest.mark.parametrize("names", ["lost", "kept"])
def test_the_first_cut_leaves_the_old_release_and_the_last_one_the_new(
    install: Install, names: Names, tmp_path: Path
) -> None:
    for cut, release in ((0, OLD), (len(install.calls), NEW)):
        disk = replayed(install, install.calls[:cut], names)
        assert boot(disk, tmp_path / str(cut), install.server, take_next=False) == release


def replayed_into(disk: CrashingDisk, folder: Path) -> Path:
    disk.give(folder)
    return folder


def survives(install: Install, calls: list[Call], folder: Path, every: int = 1) -> bool:
    """Return whether every cut in `calls` leaves the old or the new release, and the last one the new."""
    release = None
    for cut in (*range(0, len(calls), every), len(calls)):
        disk = replayed(install, calls[:cut], "lost")
        try:
            release = boot(disk, folder / str(cut), install.server, take_next=False)
        except (SpratError, OSError, ValueError, AssertionError):
            return False  # it does not start, something durable is damaged, or what serves was never on trial
        if release not in {OLD, NEW}:
            return False
    return release == NEW


@pytest.mark.parametrize("forgotten", ["sync", "sync_folder"])
def test_a_forgotten_sync_turns_it_red(install: Install, forgotten: str, tmp_path: Path) -> None:
    calls = [call for call in install.calls if call[0] != forgotten]
    assert not survives(install, calls, tmp_path)


@pytest.mark.parametrize("live", ["slots.json", "journal.json"])
def test_writing_into_what_is_live_turns_it_red(install: Install, live: str, tmp_path: Path) -> None:
    """Slots or journal written in place instead of replaced."""
    in_place: list[Call] = []
    for name, arguments in install.calls:
        if name == "write" and arguments[0].name == f".{live}.new":
            in_place.append(("write", (arguments[0].with_name(live), *arguments[1:])))
        elif name == "sync" and arguments[0].name == f".{live}.new":
            in_place.append(("sync", (arguments[0].with_name(live),)))
        elif not (isinstance(arguments[0], Path) and arguments[0].name == f".{live}.new"):
            in_place.append((name, arguments))
    assert len(in_place) < len(install.calls)
    assert not survives(install, in_place, tmp_path)


def test_a_journal_that_is_written_after_acting_turns_it_red(install: Install, tmp_path: Path) -> None:
    """Slots that point at the new release before the journal says that its trial began."""
    writes = [
        at for at, (name, said) in enumerate(install.calls) if name == "write" and said[0].name == ".journal.json.new"
    ]
    trial = next(at for at in writes if b'"state": "trial"' in install.calls[at][1][1])
    slots = next(
        at
        for at, (name, said) in enumerate(install.calls)
        if at > trial and name == "sync_folder" and install.calls[at - 1][1][-1].name == "slots.json"
    )
    journal, acting = install.calls[trial : trial + 4], install.calls[trial + 4 : slots + 1]
    late = [*install.calls[:trial], *acting, *journal, *install.calls[slots + 1 :]]
    assert sorted(map(str, late)) == sorted(map(str, install.calls))
    assert not survives(install, late, tmp_path)


def test_the_check_is_green_where_nothing_is_planted(install: Install, tmp_path: Path) -> None:
    assert survives(install, install.calls, tmp_path, every=6)
