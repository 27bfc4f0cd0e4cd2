"""Damage on the disk is found by digest at start: mended here where that can be, else fetched again, or dropped."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny_onnx
from device_server import DeviceServer
from one_device import MODEL, OneDevice, one_device, release_of

from sprat_client.agent.durable import PosixDisk
from sprat_client.agent.releases import Shelf, Slot
from sprat_client.agent.store import TensorStore
from sprat_shared.protocol.report import Outcome


@pytest.fixture
def device(tmp_path: Path) -> Iterator[OneDevice]:
    """A device that holds releases 2 and 1."""
    with one_device(tmp_path) as device:
        add(device, 2)
        assert device.take(2)[0] == 0
        yield device


@pytest.fixture
def halves(tmp_path: Path) -> Iterator[OneDevice]:
    """A device whose model has bfloat16 tensors."""
    server = DeviceServer()
    server.add_release(
        MODEL,
        {
            name: ("BF16", (array.view(np.uint32) >> 16).astype(np.uint16)) if code == "F32" else (code, array)
            for name, (code, array) in tiny_onnx.weights(1).items()
        },
    )
    with server.running() as url:
        yield OneDevice(tmp_path, server, url)


def add(device: OneDevice, seed: int, base: int = 1) -> None:
    weights = tiny_onnx.nudged(device.server.models[MODEL][1].weights, seed)
    device.server.add_release(MODEL, weights, base=base)


def shelf_of(device: OneDevice) -> Shelf:
    store = TensorStore(device.folder / "store", PosixDisk())
    return Shelf(MODEL, device.folder / "models" / MODEL, store, PosixDisk())


def folder_of(device: OneDevice, which: str = "active") -> Path:
    shelf = shelf_of(device)
    slot: Slot = getattr(shelf.slots(), which)
    return shelf.folder_of(slot.release_id)


def damage(path: Path) -> None:
    """Turn a bit, as a disk does."""
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    path.chmod(0o444)


def served_without_a_byte(device: OneDevice, release: int, says: str, caplog: pytest.LogCaptureFixture) -> None:
    """Check that a start serves the release, whole, and asked the server for nothing."""
    asked = len(device.server.requests)
    with device.agent() as agent:
        serving = agent._shop.servings.of(MODEL)
        assert serving.slot.release == release
        assert serving.digest() == device.server.models[MODEL][release].digest
    assert len(device.server.requests) == asked
    assert says in caplog.text


def test_a_folder_that_lost_a_name_is_made_again_from_the_store(
    device: OneDevice, caplog: pytest.LogCaptureFixture
) -> None:
    (folder_of(device) / "t" / "2").unlink()
    served_without_a_byte(device, 2, "mended", caplog)


def test_a_graph_is_had_from_the_other_release_of_the_same_graph(
    device: OneDevice, caplog: pytest.LogCaptureFixture
) -> None:
    graph = folder_of(device) / "graph.onnx"
    whole = graph.read_bytes()
    other = folder_of(device, "previous") / "graph.onnx"
    other.unlink()
    other.write_bytes(whole)  # a name of its own for the same bytes: a folder that was restored
    damage(graph)
    served_without_a_byte(device, 2, "mended", caplog)


def test_a_manifest_is_proven_by_the_files_and_the_other_releases_table(
    device: OneDevice, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = folder_of(device) / "manifest.json"
    before = json.loads(manifest.read_bytes())
    damage(manifest)
    manifest.chmod(0o600)
    manifest.write_bytes(b"\0" * 100)
    served_without_a_byte(device, 2, "mended", caplog)
    assert json.loads(manifest.read_bytes()) == before


@pytest.mark.parametrize("where", ["store", "copy", "copy's low bits"])
def test_a_bfloat16_tensor_and_the_copy_that_the_graph_reads_mend_each_other(
    halves: OneDevice, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    shelf = shelf_of(halves)
    slot = shelf.slots().active
    assert slot is not None
    manifest = shelf.manifest(slot.release_id)
    copy = shelf.folder_of(slot.release_id) / "t" / "1"
    if where == "store":
        damage(TensorStore(halves.folder / "store", PosixDisk()).path(manifest.sha256s[1]))
        copy.chmod(0o600)
        copy.unlink()  # the digest is of what is mapped: the copy alone would do, so take away what it rests on
        (shelf.folder_of(slot.release_id) / "t" / "0").unlink()
        with halves.agent() as agent:
            agent.run(once=True)
            assert agent._shop.servings.of(MODEL).digest() == manifest.weights
        return
    if where == "copy":
        damage(copy)
    else:
        copy.chmod(0o600)
        wide = np.frombuffer(copy.read_bytes(), "<u4") | 1
        copy.write_bytes(wide.astype("<u4").tobytes())
    served_without_a_byte(halves, 1, "mended", caplog)


def test_a_tensor_that_no_copy_is_left_of_is_fetched_again_without_a_new_assignment(device: OneDevice) -> None:
    tensor = folder_of(device) / "t" / "1"
    damage(tensor)
    with device.agent() as agent:
        assert agent._shop.servings.of(MODEL).slot.release == 1, "the other slot serves meanwhile"
        assert agent.run(once=True) == 0
        assert release_of(agent, device.server) == 2
    report = device.server.wait_for_report(2)
    assert (report.outcome, report.serving_release) == (Outcome.COMMITTED, 2)


def test_a_damaged_previous_release_is_dropped_and_said_and_the_next_update_comes(
    device: OneDevice, caplog: pytest.LogCaptureFixture
) -> None:
    shared = folder_of(device)
    for path in (folder_of(device, "previous") / "t").iterdir():
        if path.stat().st_ino != (shared / "t" / path.name).stat().st_ino:
            damage(path)
    with device.agent() as agent:
        agent.run(once=True)
        assert release_of(agent, device.server) == 2
    assert shelf_of(device).slots().previous is None
    assert "the other slot is dropped" in caplog.text
    assert len(list((device.folder / "models" / MODEL / "releases").iterdir())) == 1
    add(device, 3, base=2)
    assert device.take(3)[1].outcome is Outcome.COMMITTED


def test_a_base_that_is_damaged_while_the_update_is_under_way_makes_it_go_another_way(device: OneDevice) -> None:
    add(device, 3, base=2)
    assignment = device.server.assign(MODEL, 3)
    with device.agent() as agent:
        rebuilder = agent._shop.rebuilder

        def after_the_damage(*job: object) -> object:
            agent._shop.rebuilder = rebuilder
            damage(folder_of(device) / "t" / "1")
            return rebuilder(*job)  # type: ignore[arg-type]

        agent._shop.rebuilder = after_the_damage  # type: ignore[assignment]
        assert agent.run(once=True) == 0
        assert release_of(agent, device.server) == 3
    report = device.server.wait_for_report(assignment)
    assert report.received_bytes > len(device.server.models[MODEL][3].update or b""), "the short way was not enough"


@pytest.mark.parametrize("content", [b"", b"\0" * 200, b'{"active": 3}'])
def test_slots_that_cannot_be_read_are_made_again_from_the_releases_that_are_whole(
    device: OneDevice, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    slots = device.folder / "models" / MODEL / "slots.json"
    slots.write_bytes(content)
    served_without_a_byte(device, 2, "the slots cannot be read", caplog)
    found = shelf_of(device).slots()
    assert (found.active and found.active.release, found.previous and found.previous.release) == (2, 1)
