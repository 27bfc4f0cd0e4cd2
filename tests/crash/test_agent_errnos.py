"""Every call of the disk port fails once, or from then on, with every errno: the old release serves, the next is taken.

An update, and another one that is called back in its trial, run on a disk whose n-th call fails. While it fails the
agent serves; once it is mended the same agent takes the next release, without a restart.
"""

import errno
import gc
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import ledger
import pytest
import tiny_onnx
from crashing_disk import CrashingDisk
from device_server import ENROLMENT_TOKEN, DeviceServer
from faulty_disk import WRITES, FaultyDisk
from one_device import MODEL, agent_on, release_of

from sprat_client.agent.durable import PosixDisk
from sprat_client.agent.enrol import enrol
from sprat_client.agent.journal import Journal
from sprat_client.agent.loop import Agent
from sprat_client.agent.trust.marks import Marks

pytestmark = pytest.mark.crash
MANY = int(os.environ.get("SPRAT_CRASH_TIMES", "1"))  # `make crash` has it higher
EVERY = max(1, 150 // MANY**2)  # calls
PARTS = 1 if MANY == 1 else 6  # that run side by side
BEFORE, OLD, NEW, NEXT = 1, 2, 3, 4
ERRNOS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.ENOMEM)
TURNS = 40
# A disk that is full still removes; one that is read-only still reads.
LASTING = {
    errno.ENOSPC: WRITES - {"remove", "sync_folder", "rename"},
    errno.EROFS: WRITES - {"sync", "sync_folder"},
}


@dataclass
class Device:
    """A device that holds two releases, as it is before anything fails."""

    server: DeviceServer
    disk: CrashingDisk
    marks: dict[str, Marks]

    def fresh(self, folder: Path) -> Path:
        """Make a copy of its folder."""
        self.disk.give(folder)
        return folder


def marks_of(folder: Path) -> dict[str, Marks]:
    return dict(Journal(folder / "journal.json", PosixDisk()).trust.marks)


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    gc.freeze()  # agents collect garbage after each release: what the test itself holds need not be looked through
    folder, server = tmp_path_factory.mktemp("errnos"), DeviceServer()
    base = tiny_onnx.weights(1)
    server.add_release(MODEL, base)
    for number in (OLD, NEW, NEXT):
        server.add_release(MODEL, tiny_onnx.nudged(base, number), base=number - 1)
    with server.running() as url:
        enrol(folder / "device", PosixDisk(), server_url=url, token=ENROLMENT_TOKEN, name="gate-7")
        for release in (BEFORE, OLD):
            server.assign(MODEL, release)
            with agent_on(folder / "device") as agent:
                assert agent.run(once=True) == 0
        disk = CrashingDisk(folder)
        disk.take(folder / "device")
        yield Device(server, disk, marks_of(folder / "device"))


def walk(device: Device, agent: Agent, served: list[int | None]) -> None:
    """Take NEW, and OLD again while NEW is on trial; note what serves after each turn."""

    def turn() -> None:
        wait_s = agent.turn()
        served.append(release_of(agent, device.server))
        time.sleep(min(wait_s, 0.01))

    for release in (NEW, OLD):
        device.server.assign(MODEL, release)
        for _ in range(TURNS):
            turn()
            if served[-1] == release and (release == NEW or agent._machines[MODEL].idle):
                break
        if served[-1] != release:
            return


def run_with(
    device: Device, folder: Path, disk: FaultyDisk, *, must_start: bool = True, cannot_read: bool = False
) -> None:
    """Walk on a disk that fails, mend it, and take the next release.

    The agent serves all along, unless from its start on the disk cannot be read (`cannot_read`). Where the disk takes
    no writes it must start all the same (`must_start`).
    """
    device.fresh(folder)
    device.server.devices["gate-7"].reports.clear()  # of other runs
    device.server.assign(MODEL, OLD)
    served: list[int | None] = []
    try:
        with agent_on(folder, disk, trial_s=30.0, trial_requests=10**6) as agent:
            assert release_of(agent, device.server) == OLD or cannot_read
            walk(device, agent, served)
            disk.mend()
            assert set(served) <= ({OLD, NEW, None} if cannot_read else {OLD, NEW}), f"{served} served"
            takes_the_next(device, agent)
    except OSError:  # at its start: the supervisor starts it again
        assert not served, "an agent that serves never ends by an error of its disk"
        assert not must_start, "it starts on a disk that takes no writes"
        disk.mend()
    with agent_on(folder) as agent:
        takes_the_next(device, agent)
        after = marks_of(folder)
        for name, marks in device.marks.items():
            assert all(after[name].versions[role] >= version for role, version in marks.versions.items())


def takes_the_next(device: Device, agent: Agent) -> None:
    machine = agent._machines[MODEL]
    agent._shop.settings = replace(agent._shop.settings, trial_s=0.001)  # the trial of the walk has no end
    device.server.assign(MODEL, NEXT)
    for _ in range(4 * TURNS):
        time.sleep(min(agent.turn(), 0.02))
        if machine.idle and release_of(agent, device.server) == NEXT and not agent._shop.reports_wait:
            return
    raise AssertionError(f"{NEXT} is not taken: {machine.record}")


@pytest.fixture(scope="module")
def calls(device: Device, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The calls of a walk on a disk that does not fail, up to where it would be mended."""
    disk, folder = FaultyDisk(), tmp_path_factory.mktemp("whole") / "device"
    run_with(device, folder, disk)
    assert set(disk.calls) >= WRITES | {"read", "exists", "names"}, "the walk does all that a disk can do"
    return disk.calls[: disk.mended_after]


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
@pytest.mark.parametrize("number", ERRNOS, ids=[errno.errorcode[number] for number in ERRNOS])
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.timeout(1800)
def test_every_call_may_fail(
    device: Device, calls: list[str], tmp_path: Path, number: int, part: int, *, lasting: bool
) -> None:
    starting = calls.index("write") + 1  # endpoint or journal: by then it has read its slots
    failing = LASTING.get(number, WRITES | {"read", "exists", "names"}) if lasting else None
    failed: Counter[str] = Counter()
    every = EVERY if not lasting else 5 * EVERY if MANY > 1 else EVERY  # a fault that lasts meets all calls after it
    start = ERRNOS.index(number) * every // len(ERRNOS)
    spots = range(start + part * every, len(calls), PARTS * every)
    assert spots or part, "the first part has calls; a walk may be too short for the others"
    for at in spots:
        only = None if failing is None else failing.__contains__
        disk = FaultyDisk(number, at, lasting=lasting, only=only)
        must_start = lasting and number in LASTING
        cannot_read = lasting and number not in LASTING and at < starting
        try:
            run_with(device, tmp_path / str(at), disk, must_start=must_start, cannot_read=cannot_read)
        except Exception as bad:
            ledger.note("outside", {errno.errorcode[number]: 1})
            raise AssertionError(f"{errno.errorcode[number]} from call {at} on, {calls[at]}") from bad
        failed.update({errno.errorcode[number]: min(1, disk.failed.total())})
    ledger.note("errno faults", failed)
    assert failed or not spots, "some calls were reached"
