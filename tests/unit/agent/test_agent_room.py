"""Room on the disk and in memory: asked for before anything is taken, set aside, given back."""

import errno
import os
from pathlib import Path

import pytest
from faulty_disk import FaultyDisk

from sprat_client.agent.durable import PosixDisk
from sprat_client.agent.room import (
    MemoryShort,
    NoSpace,
    Reserve,
    available_memory,
    code_of,
    require_memory,
)
from sprat_shared.errors import TryLater


def blocks(path: Path) -> int:
    return path.stat().st_blocks * 512


def test_what_is_set_aside_is_taken_from_the_disk_and_given_back_as_it_is_spent(tmp_path: Path) -> None:
    reserve = Reserve(tmp_path, PosixDisk())
    reserve.take(1 << 20, margin=0)
    assert blocks(reserve.path) >= 1 << 20
    reserve.spend(3 << 18)
    assert (reserve.path.stat().st_size, blocks(reserve.path)) == (1 << 18, 1 << 18)
    reserve.spend(1 << 30)
    assert blocks(reserve.path) == 0
    reserve.give_back()
    assert not reserve.path.exists()
    reserve.give_back()
    reserve.spend(1)


def test_what_is_set_aside_already_counts_and_less_is_filled_up(tmp_path: Path) -> None:
    reserve = Reserve(tmp_path, PosixDisk())
    reserve.take(100_000, margin=0)
    before = reserve.path.stat().st_mtime_ns
    reserve.take(60_000, margin=0)
    assert (reserve.path.stat().st_size, reserve.path.stat().st_mtime_ns) == (100_000, before)
    reserve.take(200_000, margin=0)
    assert reserve.path.stat().st_size == 200_000


def test_a_full_disk_is_said_and_nothing_stays_taken(tmp_path: Path) -> None:
    reserve = Reserve(tmp_path, FaultyDisk(errno.ENOSPC, 0, only=lambda name: name == "reserve", lasting=True))
    with pytest.raises(NoSpace, match="4096 bytes cannot be set aside"):
        reserve.take(4096, margin=0)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(NoSpace, match="must stay free"):
        Reserve(tmp_path, PosixDisk()).take(1 << 60, margin=1)


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_a_file_system_that_cannot_set_aside_is_only_asked(tmp_path: Path, number: int) -> None:
    disk = FaultyDisk(number, 0, only=lambda name: name == "reserve", lasting=True)
    Reserve(tmp_path, disk).take(4096, margin=0)
    assert disk.failed["reserve"] == 1


def machine(root: Path, *, available: int, groups: dict[str, dict[str, str]], cgroup: str) -> Path:
    """Make a root folder whose kernel says so."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 9999999 kB\nMemAvailable: {available} kB\n")
    (root / "proc/self/cgroup").write_text(cgroup)
    for place, files in groups.items():
        folder = root / "sys/fs/cgroup" / place
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text)
    return root


def test_memory_is_the_machines_where_no_group_limits_it(tmp_path: Path) -> None:
    groups = {"a": {"memory.max": "max\n", "memory.current": "5\n"}}
    assert available_memory(machine(tmp_path, available=1000, groups=groups, cgroup="0::/a\n")) == 1000 << 10


def test_a_groups_limit_counts_also_one_above_and_what_can_be_read_again_is_free(tmp_path: Path) -> None:
    inner = {"memory.max": "900000", "memory.current": "800000", "memory.stat": "anon 1\ninactive_file 300000\n"}
    outer = {"memory.max": "500000", "memory.current": "450000", "memory.stat": "inactive_file 10000\n"}
    groups = {"outer": outer, "outer/inner": inner}
    assert available_memory(machine(tmp_path, available=10**6, groups=groups, cgroup="0::/outer/inner\n")) == 60000


def test_version_1_of_groups_is_asked_as_well(tmp_path: Path) -> None:
    files = {"memory.limit_in_bytes": "70000", "memory.usage_in_bytes": "50000", "memory.stat": "total_inactive_file 5"}
    groups = {"memory/a": files}
    root = machine(tmp_path, available=10**6, groups=groups, cgroup="3:cpu,cpuacct:/b\n2:memory:/a\n")
    assert available_memory(root) == 20005


def test_a_system_that_does_not_say_is_not_doubted(tmp_path: Path) -> None:
    assert available_memory(tmp_path) is None
    require_memory(1 << 60, "rebuilding", available=lambda: None)


def test_too_little_memory_is_said_before_anything_is_loaded() -> None:
    require_memory(100, "rebuilding", available=lambda: 100)
    with pytest.raises(MemoryShort, match="rebuilding tiny@2 needs about 5 MiB of memory and 3 MiB are available"):
        require_memory(5 << 20, "rebuilding tiny@2", available=lambda: 3 << 20)


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (OSError(errno.ENOSPC, "full"), "disk.no-space"),
        (OSError(errno.EDQUOT, "quota"), "disk.no-space"),
        (OSError(errno.EIO, "io"), "disk.failed"),
        (OSError(errno.EROFS, "read-only"), "disk.failed"),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "memory.short"),
        (MemoryError(), "memory.short"),
        (TryLater("soon", code="link.down"), "link.down"),
        (ValueError(), "sprat.failed"),
    ],
)
def test_every_error_has_a_public_code(bad: BaseException, code: str) -> None:
    assert code_of(bad) == code
