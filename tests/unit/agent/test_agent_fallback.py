"""An update that names another model's tensors, on a device that has them, that lost them, and that is killed then."""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_onnx
from one_device import INPUTS, MODEL, OneDevice, agent_on, one_device, release_of

from sprat_client.agent.durable import PosixDisk
from sprat_client.agent.releases import Shelf
from sprat_client.agent.states import State
from sprat_client.agent.store import TensorStore
from sprat_shared.protocol.report import Outcome
from sprat_shared.trust.targets import Shares

DONOR, TRUNK = "face", "first.weight"


@pytest.fixture
def device(tmp_path: Path) -> Iterator[OneDevice]:
    """A device that runs release 1 of a model and of its donor; release 2 of the model has the donor's trunk."""
    with one_device(tmp_path) as device:
        server = device.server
        base = server.models[MODEL][1]
        donor = server.add_release(DONOR, tiny_onnx.nudged(base.weights, 5))
        shared = {**base.weights, TRUNK: donor.weights[TRUNK]}
        shares = Shares(base=1, weights=base.digest, donor=DONOR, budget_ppm=50_000)
        server.add_release(MODEL, shared, base=1, shares=shares, donor=donor.weights)
        assignment = server.assign(DONOR, 1)
        with device.agent() as agent:
            assert agent.run(once=True) == 0
        assert server.wait_for_report(assignment).outcome is Outcome.COMMITTED
        server.inline = False
        yield device


def trunk(device: OneDevice) -> Path:
    """Return the file of the donor's trunk in the device's store."""
    store = TensorStore(device.folder / "store", PosixDisk())
    shelf = Shelf(DONOR, device.folder / "models" / DONOR, store, PosixDisk())
    active = shelf.slots().active
    assert active is not None
    manifest = shelf.manifest(active.release_id)
    return store.path(manifest.sha256s[manifest.table.index_of(TRUNK)])


def files(device: OneDevice) -> dict[str, str]:
    """Return the names of release 2's updates, by digest."""
    release = device.server.models[MODEL][2]
    assert release.update is not None
    return {hashlib.sha256(data).hexdigest(): name for data, name in ((release.update, "held"), (release.full, "full"))}


def taken(device: OneDevice) -> list[str]:
    """Bring the device to release 2; return which of its updates were fetched, in order."""
    before = len(device.server.requests)
    code, report = device.take(2)
    assert (code, report.outcome, device.serves()) == (0, Outcome.COMMITTED, 2)
    return fetched(device, before)


def fetched(device: OneDevice, before: int) -> list[str]:
    asked = [path.rpartition("/")[2] for _, path, _ in device.server.requests[before:] if path.startswith("/blobs/")]
    return [files(device)[digest] for digest in asked if digest in files(device)]


def agains(device: OneDevice) -> list[str]:
    """Return the codes with which an update was taken up anew, as the events tell."""
    lines = [json.loads(line) for line in (device.folder / "events.jsonl").read_text().splitlines()]
    return [line["code"] for line in lines if line.get("by") == "again"]


def test_a_device_that_has_the_donor_fetches_names_alone(device: OneDevice) -> None:
    assert taken(device) == ["held"]
    assert agains(device) == []


def test_a_device_without_the_donor_takes_the_full_update_once_and_says_so(device: OneDevice) -> None:
    trunk(device).unlink()
    assert taken(device) == ["held", "full"]
    assert agains(device) == ["update.base-mismatch"]


def test_a_donor_that_is_damaged_is_no_donor_and_keeps_its_own_way_of_being_mended(device: OneDevice) -> None:
    file = trunk(device)
    data = bytearray(file.read_bytes())
    data[5] ^= 1
    file.unlink()  # its release folder keeps the good bytes: a disk that rots one copy
    file.write_bytes(data)
    assert taken(device) == ["held", "full"]
    assert hashlib.sha256(file.read_bytes()).hexdigest() != hashlib.sha256(data).hexdigest(), "written afresh"


def test_a_kill_after_the_full_update_was_chosen_goes_on_with_it(device: OneDevice, tmp_path: Path) -> None:
    trunk(device).unlink()
    assignment = device.server.assign(MODEL, 2)
    device.server.cut_after = [40] * 500
    before = len(device.server.requests)
    with device.agent() as agent:
        for _ in range(200):
            work = agent._shop.journal.record(MODEL).work
            if work is not None and work.agains:
                break
            time.sleep(0.01)
            agent.turn()
        on_disk = shutil.ignore_patterns("*.sock")
        shutil.copytree(device.folder, tmp_path / "killed", ignore=on_disk)  # what a kill leaves at this moment
    work_of = json.loads((tmp_path / "killed" / "journal.json").read_text())["models"][MODEL]
    assert (work_of["state"], work_of["work"]["steps"]) == (State.FETCHING, [f"{MODEL}/2/full"])
    device.server.cut_after = []
    asked = len(device.server.requests)
    with agent_on(tmp_path / "killed", holdouts={MODEL: device.holdout}) as agent:
        assert agent.run(once=True) == 0
        assert release_of(agent, device.server) == 2
    assert device.server.wait_for_report(assignment).outcome is Outcome.COMMITTED
    assert set(fetched(device, asked)) == {"full"}, "never again the one that cannot be applied"
    assert set(fetched(device, before)) == {"held", "full"}


def test_a_donors_next_release_changes_no_bit_of_what_shares_its_layers(device: OneDevice) -> None:
    assert taken(device) == ["held"]
    file = trunk(device)
    with device.agent() as agent:
        before = agent.infer(MODEL, INPUTS).outputs["logits"].tobytes()
    donor = device.server.models[DONOR][1]
    for base in (1, 2):  # twice: then no slot of the donor's holds the release whose trunk is shared
        device.server.add_release(DONOR, tiny_onnx.nudged(donor.weights, 60 + base), base=base)
        assignment = device.server.assign(DONOR, base + 1)
        with device.agent() as agent:
            assert agent.run(once=True) == 0
        assert device.server.wait_for_report(assignment).outcome is Outcome.COMMITTED
    with device.agent() as agent:
        answer = agent.infer(MODEL, INPUTS)
        assert (answer.release, answer.outputs["logits"].tobytes()) == (2, before)
        assert release_of(agent, device.server) == 2
    assert file.exists(), "a file stays as long as a release names it"
