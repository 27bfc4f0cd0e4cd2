"""The tensor store and the release folders over it."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from sprat_client.agent import durable
from sprat_client.agent.durable import PosixDisk
from sprat_client.agent.releases import Manifest, Shelf, Slot, Slots
from sprat_client.agent.room import NoSpace, require_space
from sprat_client.agent.store import StoreCorrupted, TensorStore
from sprat_client.agent.stored import HeldTensors, StoredTensors
from sprat_shared.errors import DigestMismatch
from sprat_shared.ids import digest_text
from sprat_shared.wire.tensors import ArrayTensors, raw_bytes, release_id, weights_digest

GRAPH = b"a graph"
TENSORS = ArrayTensors(
    {
        "a": ("F32", np.arange(6, dtype=np.float32).reshape(2, 3)),
        "b": ("BF16", np.array([0x3F80, 0xC000, 0x0001], np.uint16)),
        "steps": ("I64", np.array(7, np.int64)),
    }
)


@pytest.fixture
def store(tmp_path: Path) -> TensorStore:
    return TensorStore(tmp_path / "store", PosixDisk())


@pytest.fixture
def shelf(tmp_path: Path, store: TensorStore) -> Shelf:
    return Shelf("tiny", tmp_path / "models" / "tiny", store, PosixDisk())


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def installed(shelf: Shelf, store: TensorStore, tmp_path: Path, *, release: int = 1, graph: bytes = GRAPH) -> Manifest:
    sha256s = tuple(TENSORS.sha256(index) for index in range(len(TENSORS.table)))
    for index, digest in enumerate(sha256s):
        if not store.holds(digest, TENSORS.read(index).nbytes):
            store.put(digest, raw_bytes(TENSORS.read(index)))
    store.settle()
    file = tmp_path / f"graph-{release}"
    durable.write_file(PosixDisk(), file, graph)
    store.adopt(sha256(graph), file)
    weights = weights_digest(TENSORS.table, sha256s)
    manifest = Manifest(
        model="tiny",
        release=release,
        release_id=release_id(digest_text(sha256(graph)), weights),
        graph=digest_text(sha256(graph)),
        weights=weights,
        table=TENSORS.table,
        sha256s=sha256s,
    )
    shelf.publish(manifest)
    return manifest


def test_store_files_are_named_by_their_digest_and_read_only(store: TensorStore) -> None:
    store.put(sha256(b"raw"), b"raw")
    store.settle()
    path = store.path(sha256(b"raw"))
    assert (path.name, path.read_bytes()) == (sha256(b"raw").hex(), b"raw")
    assert path.stat().st_mode & 0o777 == 0o444
    store.check(sha256(b"raw"), "raw")


def test_a_damaged_or_missing_store_file_is_named(store: TensorStore) -> None:
    with pytest.raises(StoreCorrupted, match="cannot be read"):
        store.check(sha256(b"raw"), "tensor 'a'")
    store.put(sha256(b"raw"), b"row")
    store.settle()
    with pytest.raises(StoreCorrupted, match=r"tensor 'a'.*damaged"):
        store.check(sha256(b"raw"), "tensor 'a'")


def test_a_file_with_other_bytes_is_not_taken_in(store: TensorStore, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"other")
    with pytest.raises(DigestMismatch):
        store.adopt(sha256(b"raw"), tmp_path / "f")


def test_tensors_are_read_as_they_were_written(store: TensorStore, shelf: Shelf, tmp_path: Path) -> None:
    manifest = installed(shelf, store, tmp_path)
    tensors = StoredTensors(manifest.table, manifest.sha256s, store)
    tensors.check_all()
    for index in range(len(TENSORS.table)):
        np.testing.assert_array_equal(tensors.read(index), TENSORS.read(index))
        assert not tensors.read(index).flags.writeable


def test_a_tensor_file_of_another_length_is_not_read(store: TensorStore, shelf: Shelf, tmp_path: Path) -> None:
    manifest = installed(shelf, store, tmp_path)
    path = store.path(manifest.sha256s[0])
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoreCorrupted, match="23 bytes instead of 24"):
        StoredTensors(manifest.table, manifest.sha256s, store).read(0)


def test_a_release_folder_links_into_the_store_and_widens_bfloat16(
    store: TensorStore, shelf: Shelf, tmp_path: Path
) -> None:
    manifest = installed(shelf, store, tmp_path)
    folder = shelf.folder_of(manifest.release_id)
    assert (folder / "t" / "0").stat().st_ino == store.path(manifest.sha256s[0]).stat().st_ino
    wide = np.frombuffer((folder / "t" / "1").read_bytes(), np.float32)
    assert wide.tolist() == [1.0, -2.0, np.float32(2.0**-133)]
    assert shelf.manifest(manifest.release_id) == manifest
    assert shelf.digest_of_files(manifest) == manifest.weights
    shelf.check(manifest)


@pytest.mark.parametrize("name", ["graph.onnx", "t/0", "t/1", "t/2"])
def test_one_changed_byte_in_a_release_folder_is_found(
    store: TensorStore, shelf: Shelf, tmp_path: Path, name: str
) -> None:
    manifest = installed(shelf, store, tmp_path)
    path = shelf.folder_of(manifest.release_id) / name
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreCorrupted, match="damaged"):
        shelf.check(manifest)
    if name != "graph.onnx":
        assert shelf.digest_of_files(manifest) != manifest.weights
    shelf.discard_damaged(manifest)
    assert not shelf.holds(manifest.release_id)


def test_releases_share_the_tensors_that_they_have_in_common(store: TensorStore, shelf: Shelf, tmp_path: Path) -> None:
    first = installed(shelf, store, tmp_path)
    second = installed(shelf, store, tmp_path, release=2, graph=b"another graph")
    inodes = {(shelf.folder_of(one.release_id) / "t" / "0").stat().st_ino for one in (first, second)}
    assert len(inodes) == 1


def test_slots_are_replaced_whole(shelf: Shelf) -> None:
    slot = Slot(release=1, release_id=f"sha256:{'ab' * 32}", weights=f"sha256:{'cd' * 32}")
    assert shelf.slots() == Slots()
    shelf.point(Slots(active=slot))
    assert shelf.slots() == Slots(active=slot)
    shelf.point(Slots(active=None, previous=slot))
    assert shelf.slots() == Slots(previous=slot)


def test_what_no_slot_needs_is_removed(store: TensorStore, shelf: Shelf, tmp_path: Path) -> None:
    first = installed(shelf, store, tmp_path)
    second = installed(shelf, store, tmp_path, release=2, graph=b"another graph")
    store.put(sha256(b"left over"), b"left over")
    store.settle()
    store.put(sha256(b"never settled"), b"never settled")
    kept = list(shelf.collect([second.release_id]))
    assert kept == [second]
    assert not shelf.holds(first.release_id)
    gone = store.collect([*second.sha256s, sha256(b"another graph")])
    assert gone == 2
    shelf.check(second)
    store.settle()
    assert not store.holds(sha256(b"never settled"), len(b"never settled"))


def test_too_little_room_is_said_with_the_numbers(tmp_path: Path) -> None:
    require_space(tmp_path, 100, margin=50, free=lambda _: 150)
    with pytest.raises(NoSpace, match="needs 101 bytes and 50 must stay free, but only 150 are"):
        require_space(tmp_path, 101, margin=50, free=lambda _: 150)


class CountingDisk(PosixDisk):
    """The real one, which remembers the order of what makes durable."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def sync(self, path: Path) -> None:
        self.calls.append("sync")
        super().sync(path)

    def rename(self, old: Path, new: Path) -> None:
        self.calls.append("rename")
        super().rename(old, new)

    def sync_folder(self, path: Path) -> None:
        self.calls.append("sync_folder")
        super().sync_folder(path)


def test_many_files_wait_for_the_disk_together_bytes_before_names(tmp_path: Path) -> None:
    disk = CountingDisk()
    store = TensorStore(tmp_path / "store", disk)
    (tmp_path / "store" / "sha256").mkdir(parents=True)
    data = [str(number).encode() for number in range(5)]
    for one in data:
        store.put(sha256(one), one)
    assert disk.calls == []
    store.settle()
    folders = len({sha256(one)[:1] for one in data})
    assert disk.calls == [*["sync"] * 5, *["rename"] * 5, *["sync_folder"] * (folders + 1)]


def test_a_tensor_is_found_by_the_beginning_of_its_digest_and_its_length(
    store: TensorStore, shelf: Shelf, tmp_path: Path
) -> None:
    installed(shelf, store, tmp_path)
    spec, digest = TENSORS.table[0], TENSORS.sha256(0)
    held = HeldTensors(store)
    found = held.find(digest[:8], spec)
    assert found is not None
    np.testing.assert_array_equal(found, TENSORS.read(0))
    assert held.find(digest[:8], TENSORS.table[2]) is None, "of another length"
    assert held.find(bytes(8), spec) is None
    store.path(digest).chmod(0o644)
    store.path(digest).write_bytes(bytes(spec.nbytes))
    assert held.find(digest[:8], spec) is None, "of other bytes"


def test_a_beginning_that_two_tensors_have_finds_neither(store: TensorStore, shelf: Shelf, tmp_path: Path) -> None:
    installed(shelf, store, tmp_path)
    spec, digest = TENSORS.table[0], TENSORS.sha256(0)
    twin = store.path(digest[:8] + bytes(24))
    twin.write_bytes(bytes(spec.nbytes))
    assert HeldTensors(store).find(digest[:8], spec) is None
