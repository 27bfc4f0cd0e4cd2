"""Room on the disk and in memory: estimated before an update takes any, set aside on the disk, and given back.

The room that an update will take lies in one file of the agent's folder, allocated and unwritten. Every byte that is
kept of the update shrinks it by as much, so that what is free for others does not change while the update goes on, and
nobody else can take what it was promised. File systems that cannot set room aside are only asked how much is free.
"""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from sprat_client.agent.durable import Disk
from sprat_shared.errors import SpratError

RESERVE_FILE: Final = "reserve"
REBUILD_PROCESS_BYTES: Final = 64 << 20  # an interpreter with numpy, and the update file
_CANNOT_RESERVE: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


class NoSpace(SpratError):
    """The disk has too little room for the update; nothing was written."""

    code = "disk.no-space"
    exit_code = 74


class MemoryShort(SpratError):
    """The device has too little memory for the update; nothing was loaded, and the old release serves on."""

    code = "memory.short"
    exit_code = 71


def code_of(bad: BaseException) -> str:
    """Return the public code of what went wrong, of the system's own errors too."""
    if isinstance(bad, SpratError):
        return bad.code
    if isinstance(bad, MemoryError) or (isinstance(bad, OSError) and bad.errno == errno.ENOMEM):
        return MemoryShort.code
    if isinstance(bad, OSError):
        return NoSpace.code if bad.errno in {errno.ENOSPC, errno.EDQUOT} else "disk.failed"
    return SpratError.code


def free_bytes(folder: Path) -> int:
    """Return how many bytes the file system of `folder` still takes."""
    return shutil.disk_usage(folder).free


def require_space(folder: Path, needed: int, *, margin: int, free: Callable[[Path], int] = free_bytes) -> None:
    """Check that `needed` bytes fit and `margin` bytes stay free, before the first byte is taken.

    Raises:
        NoSpace: they do not.
    """
    have = free(folder)
    if needed + margin > have:
        raise NoSpace(
            f"{folder}: the update needs {needed} bytes and {margin} must stay free, but only {have} are; "
            "make room, then assign the release again"
        )


class Reserve:
    """The room that is set aside for the update under way.

    Args:
        folder: of the agent.
        disk: where it is set aside.
    """

    def __init__(self, folder: Path, disk: Disk) -> None:
        self._folder, self._disk = folder, disk
        self.path = folder / RESERVE_FILE

    def take(self, needed: int, *, margin: int) -> None:
        """See to it that `needed` bytes are set aside; what is set aside already counts.

        Raises:
            NoSpace: they do not fit, or less than `margin` bytes would stay free.
        """
        if self.path.is_file() and self.path.stat().st_size >= needed:
            return
        self.give_back()
        require_space(self._folder, needed, margin=margin)
        try:
            self._disk.reserve(self.path, needed)
        except OSError as bad:
            if bad.errno == errno.ENOSPC:
                self.give_back()
                raise NoSpace(f"{self._folder}: {needed} bytes cannot be set aside: {bad.strerror}") from bad
            if bad.errno not in _CANNOT_RESERVE:
                raise

    def spend(self, size: int) -> None:
        """Give back room for `size` bytes, which are being written."""
        spend(self.path, size)

    def give_back(self) -> None:
        """Give back all of it. What is not there need not be."""
        if self._disk.exists(self.path):
            self._disk.remove(self.path)


def spend(reserve: Path, size: int) -> None:
    """Give back room for `size` bytes of a reserve. It is a promise to oneself: that it fails costs nothing."""
    try:
        os.truncate(reserve, max(0, reserve.stat().st_size - size))
    except OSError:
        return


def require_memory(needed: int, doing: str, *, available: Callable[[], int | None] | None = None) -> None:
    """Check that `needed` bytes of memory are to be had, before anything is loaded.

    Args:
        needed: bytes.
        doing: what they are needed for, for the message.
        available: says how many there are; the kernel when left out.

    Raises:
        MemoryShort: they are not.
    """
    have = (available or available_memory)()
    if have is not None and needed > have:
        raise MemoryShort(
            f"{doing} needs about {needed >> 20} MiB of memory and {have >> 20} MiB are available; "
            "end other programs or raise the service's memory limit, then assign the release again"
        )


def available_memory(root: Path = Path("/")) -> int | None:
    """Return how many bytes this process may still take: of the machine, and of its control group's limit.

    What can be read again from the disk counts as available. None where the system does not say.

    Args:
        root: in which `proc` and `sys` lie.
    """
    said = [_of_machine(root / "proc/meminfo"), *_of_groups(root)]
    known = [size for size in said if size is not None]
    return min(known, default=None)


def _of_machine(meminfo: Path) -> int | None:
    return _field(meminfo, "MemAvailable:", unit=1024)


def _of_groups(root: Path) -> list[int | None]:
    """Return what the limits of this process's control group and of those above it leave (version 2, or 1)."""
    groups = root / "sys/fs/cgroup"
    left: list[int | None] = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        top, limit, used, cache = (
            (groups, "memory.max", "memory.current", "inactive_file")
            if not controllers
            else (groups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        )
        parts = [part for part in path.split("/") if part]
        for depth in range(len(parts), -1, -1):
            folder = top.joinpath(*parts[:depth])
            most, now = _number(folder / limit), _number(folder / used)
            if most is not None and now is not None:
                left.append(max(0, most - now + (_field(folder / "memory.stat", cache) or 0)))
    return left


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _number(file: Path) -> int | None:
    text = _text(file).strip()
    return int(text) if text.isdigit() else None


def _field(file: Path, name: str, *, unit: int = 1) -> int | None:
    for line in _text(file).splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == name and words[1].isdigit():
            return int(words[1]) * unit
    return None
