"""Power cuts before every call of the durable-write module, with names that were not synced lost and kept."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from crashing_disk import CrashingDisk, Names, PowerCut

from sprat_client.agent import durable
from sprat_client.agent.durable import Disk, PosixDisk

ROOT = Path("/disk")
FILE = ROOT / "slots.json"
FOLDER = ROOT / "release"

Act = Callable[[Disk], None]


def every_cut(prepare: Act, act: Act, names: Names) -> list[CrashingDisk]:
    """Return the disk after a cut before call 0, 1, 2 … of `act`, and last the one after all of it and a cut."""
    disks = []
    for calls in itertools.count():
        disk = CrashingDisk(ROOT, names)
        prepare(disk)
        disk.calls_left = calls
        try:
            act(disk)
        except PowerCut:
            disks.append(disk)
        else:
            disk.power_cut()
            return [*disks, disk]
    raise AssertionError


def nothing(_: Disk) -> None:
    """Leave the disk empty."""


both = pytest.mark.parametrize("names", ["lost", "kept"])


@both
def test_a_replaced_file_has_the_old_bytes_or_the_new_ones_after_any_cut(names: Names) -> None:
    disks = every_cut(
        lambda disk: durable.write_file(disk, FILE, b"old bytes"),
        lambda disk: durable.write_file(disk, FILE, b"new bytes"),
        names,
    )
    assert {disk.read(FILE) for disk in disks[:-1]} <= {b"old bytes", b"new bytes"}
    assert disks[-1].read(FILE) == b"new bytes"


@both
def test_a_new_file_is_whole_or_not_there_after_any_cut(names: Names) -> None:
    disks = every_cut(nothing, lambda disk: durable.write_file(disk, FILE, b"new bytes", mode=0o444), names)
    assert all(not disk.exists(FILE) or disk.read(FILE) == b"new bytes" for disk in disks)
    assert disks[-1].read(FILE) == b"new bytes"


@both
def test_a_write_goes_through_after_a_cut_left_a_temporary_file(names: Names) -> None:
    for disk in every_cut(nothing, lambda disk: durable.write_file(disk, FILE, b"one", mode=0o444), names):
        durable.write_file(disk, FILE, b"two", mode=0o444)
        disk.power_cut()
        assert disk.read(FILE) == b"two"


def publish(disk: Disk) -> None:
    """Build and publish a folder with one file and one link."""
    building = durable.building_folder(FOLDER)
    durable.remove_folder(disk, building, ("t",))
    durable.write_file(disk, ROOT / "stored", b"tensor")
    disk.make_folder(building)
    disk.make_folder(building / "t")
    disk.link(ROOT / "stored", building / "t" / "0")
    durable.write_file(disk, building / "manifest", b"all of it")
    durable.publish_folder(disk, building, FOLDER, ("t",))


def is_whole(disk: Disk) -> bool:
    return disk.read(FOLDER / "manifest") == b"all of it" and disk.read(FOLDER / "t" / "0") == b"tensor"


@both
def test_a_published_folder_is_whole_or_not_there_after_any_cut(names: Names) -> None:
    disks = every_cut(nothing, publish, names)
    assert all(not disk.exists(FOLDER) or is_whole(disk) for disk in disks)
    assert is_whole(disks[-1])


@both
def test_publishing_goes_through_after_any_cut(names: Names) -> None:
    for disk in every_cut(nothing, publish, names):
        durable.remove_folder(disk, FOLDER, ("t",))
        publish(disk)
        disk.power_cut()
        assert is_whole(disk)


@both
def test_a_removed_folder_is_whole_or_gone_after_any_cut(names: Names) -> None:
    disks = every_cut(publish, lambda disk: durable.remove_folder(disk, FOLDER, ("t",)), names)
    assert all(not disk.exists(FOLDER) or is_whole(disk) for disk in disks)
    assert not disks[-1].exists(FOLDER)
    assert not disks[-1].exists(durable.building_folder(FOLDER))


@both
def test_a_removed_file_stays_removed(names: Names) -> None:
    disks = every_cut(
        lambda disk: durable.write_file(disk, FILE, b"old"), lambda disk: durable.remove(disk, FILE), names
    )
    assert not disks[-1].exists(FILE)


@both
def test_folders_are_made_with_all_their_parents(names: Names) -> None:
    deep = ROOT / "a" / "b" / "c"
    disks = every_cut(nothing, lambda disk: durable.make_folder(disk, deep), names)
    assert disks[-1].exists(deep)
    for disk in disks:
        durable.make_folder(disk, deep)
        disk.power_cut()
        assert disk.exists(deep)


class ForgetsToSync(CrashingDisk):
    """A planted fault."""

    def sync(self, _path: Path) -> None:
        self._tick()


class ForgetsFolders(CrashingDisk):
    """A planted fault."""

    def sync_folder(self, _path: Path) -> None:
        self._tick()


def test_a_missing_sync_of_a_file_would_be_seen() -> None:
    disk = ForgetsToSync(ROOT)
    durable.write_file(disk, FILE, b"new bytes")
    disk.power_cut()
    assert disk.read(FILE) != b"new bytes"


def test_a_missing_sync_of_a_folder_would_be_seen() -> None:
    disk = ForgetsFolders(ROOT)
    durable.write_file(disk, FILE, b"new bytes")
    disk.power_cut()
    assert not disk.exists(FILE)


def test_writing_in_place_would_be_seen() -> None:
    disk = CrashingDisk(ROOT)
    durable.write_file(disk, FILE, b"old bytes")
    disk.write(FILE, b"new bytes", 0o600)
    disk.power_cut()
    assert disk.read(FILE) not in {b"old bytes", b"new bytes"}


def test_the_real_disk_does_the_same_as_the_simulated_one(tmp_path: Path) -> None:
    global ROOT, FILE, FOLDER  # the same acts, elsewhere
    before = ROOT, FILE, FOLDER
    ROOT, FILE, FOLDER = tmp_path, tmp_path / "slots.json", tmp_path / "release"
    try:
        disk = PosixDisk()
        durable.write_file(disk, FILE, b"one", mode=0o444)
        durable.write_file(disk, FILE, b"two", mode=0o444)
        assert FILE.read_bytes() == b"two"
        assert FILE.stat().st_mode & 0o777 == 0o444
        publish(disk)
        assert is_whole(disk)
        durable.remove_folder(disk, FOLDER, ("t",))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["slots.json", "stored"]
        durable.make_folder(disk, tmp_path / "a" / "b")
        assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
        disk.append(tmp_path / "part", b"ab")
        disk.append(tmp_path / "part", b"cd")
        durable.finish_appends(disk, tmp_path / "part")
        assert disk.read(tmp_path / "part") == b"abcd"
    finally:
        ROOT, FILE, FOLDER = before
