"""Power cuts between any two of the real writes of a real install: the device boots the old or the new release.

The writes of an agent that installs an update from a server are recorded at the disk port. They are replayed on a
simulated disk up to every point; there the power goes, and the real agent is started on what is left.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny_onnx
from crashing_disk import Call, CrashingDisk, Names, RecordingDisk
from device_server import ENROLMENT_TOKEN, DeviceServer
from one_device import MODEL, agent_on, release_of

from sprat_client.agent.durable import PosixDisk
from sprat_client.agent.enrol import enrol
from sprat_shared.errors import SpratError

pytestmark = pytest.mark.crash
OLD, NEW, NEXT = 1, 2, 3
TAKE_THE_NEXT_EVERY = 9  # cuts; taking a release costs more than booting


@dataclass
class Install:
    """A recorded install: the server, what the disk held before, what was written."""

    server: DeviceServer
    before: Path
    calls: list[Call]


@pytest.fixture(scope="module")
def install(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Install]:
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
        with agent_on(device, recording) as agent:
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


def boot(disk: CrashingDisk, folder: Path, server: DeviceServer, *, take_next: bool) -> int | None:
    """Start the agent on what the disk kept; return the release that serves."""
    disk.give(folder)
    with agent_on(folder) as agent:
        release = release_of(agent, server)
        if take_next:
            next(iter(server.devices.values())).reports.clear()  # of other cuts
            server.assign(MODEL, NEXT)
            assert agent.run(once=True) == 0
            assert release_of(agent, server) == NEXT
            server.assign(MODEL, NEW)  # what the recorded install was about
    return release


@pytest.mark.parametrize("names", ["lost", "kept"])
def test_every_power_cut_in_a_real_install_leaves_the_old_or_the_new_release(
    install: Install, names: Names, tmp_path: Path
) -> None:
    booted = []
    for cut in range(len(install.calls) + 1):
        disk = replayed(install, install.calls[:cut], names)
        take_next = cut % TAKE_THE_NEXT_EVERY == 0
        booted.append(boot(disk, tmp_path / str(cut), install.server, take_next=take_next))
        assert booted[-1] in {OLD, NEW}, f"bricked by a cut before call {cut}: {install.calls[cut : cut + 1]}"
    assert booted[0] == OLD
    assert booted[-1] == NEW


def survives(install: Install, calls: list[Call], folder: Path) -> bool:
    """Return whether every cut in `calls` leaves the old or the new release, and the last one the new."""
    release = None
    for cut in range(len(calls) + 1):
        disk = replayed(install, calls[:cut], "lost")
        try:
            release = boot(disk, folder / str(cut), install.server, take_next=False)
        except (SpratError, OSError):  # a start that fails is a brick
            return False
        if release not in {OLD, NEW}:
            return False
    return release == NEW


@pytest.mark.parametrize("forgotten", ["sync", "sync_folder"])
def test_a_forgotten_sync_turns_it_red(install: Install, forgotten: str, tmp_path: Path) -> None:
    calls = [call for call in install.calls if call[0] != forgotten]
    assert not survives(install, calls, tmp_path)


def test_writing_into_what_is_live_turns_it_red(install: Install, tmp_path: Path) -> None:
    """Slots and journal written in place instead of replaced."""
    in_place: list[Call] = []
    for name, arguments in install.calls:
        if name == "write" and arguments[0].name == ".slots.json.new":
            in_place.append(("write", (arguments[0].with_name("slots.json"), *arguments[1:])))
        elif not (isinstance(arguments[0], Path) and arguments[0].name == ".slots.json.new"):
            in_place.append((name, arguments))
    assert len(in_place) < len(install.calls)
    assert not survives(install, in_place, tmp_path)
