"""The only module that writes what must survive a power cut. Everything else of the agent writes through it.

What is promised, on a local POSIX file system that honours fsync:
- `write_file`: after it returns, the file has the new bytes, whatever happens. If the power goes while it runs, the
  file has the old bytes or the new ones, never a mixture, and never none where there were some.
- `link_file`, `remove`, `make_folder`: after they return, the name is there, or is gone, for good.
- `publish_folder`: the folder appears under its final name with everything in it, or not at all.

What is NOT promised:
- Disks and controllers that acknowledge a flush they did not do; network file systems; bit rot (digests find it).
- Order between two calls that have not returned: callers are in one thread and wait for each.
- That a temporary file (`.<name>.new`) is gone after a cut: the next write of that name takes its place.
- Files opened by other programs at the time of a replacement: they keep the old bytes, which is what mapping relies on.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, TypeAlias

_FOLDER_MODE = 0o700

Data: TypeAlias = bytes | bytearray | memoryview


class Disk(Protocol):
    """The few calls of a file system that durability is made of. Each may raise OSError."""

    def read(self, path: Path) -> bytes:
        """Return the bytes of a file."""

    def exists(self, path: Path) -> bool:
        """Return whether the name is there."""

    def names(self, folder: Path) -> list[str]:
        """Return the names in a folder, sorted."""

    def make_folder(self, path: Path) -> None:
        """Make one folder, mode 0700; its parent exists."""

    def write(self, path: Path, data: Data, mode: int) -> None:
        """Create or empty the file and write the bytes. Not durable before `sync`."""

    def append(self, path: Path, data: Data) -> None:
        """Write the bytes at the end of the file, which is made (0600) if it is not there."""

    def sync(self, path: Path) -> None:
        """Make a file's bytes durable."""

    def sync_folder(self, path: Path) -> None:
        """Make the names in a folder durable."""

    def rename(self, old: Path, new: Path) -> None:
        """Give a file or folder another name, taking the place of a file of that name."""

    def link(self, existing: Path, new: Path) -> None:
        """Give a file a second name."""

    def remove(self, path: Path) -> None:
        """Remove a file's name, or an empty folder."""

    def reserve(self, path: Path, size: int) -> None:
        """Set room for `size` bytes aside, as a file of that length whose content nobody reads. Not durable."""


class PosixDisk:
    """The real one."""

    def read(self, path: Path) -> bytes:
        """See `Disk.read`."""
        return path.read_bytes()

    def exists(self, path: Path) -> bool:
        """See `Disk.exists`."""
        return os.path.lexists(path)

    def names(self, folder: Path) -> list[str]:
        """See `Disk.names`."""
        return sorted(os.listdir(folder))  # noqa: PTH208  # names, not paths

    def make_folder(self, path: Path) -> None:
        """See `Disk.make_folder`."""
        path.mkdir(mode=_FOLDER_MODE)

    def write(self, path: Path, data: Data, mode: int) -> None:
        """See `Disk.write`."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)

    def append(self, path: Path, data: Data) -> None:
        """See `Disk.append`."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "ab") as file:
            file.write(data)

    def sync(self, path: Path) -> None:
        """See `Disk.sync`."""
        _fsync(path, os.O_RDONLY)

    def sync_folder(self, path: Path) -> None:
        """See `Disk.sync_folder`."""
        _fsync(path, os.O_RDONLY | os.O_DIRECTORY)

    def rename(self, old: Path, new: Path) -> None:
        """See `Disk.rename`."""
        old.rename(new)

    def link(self, existing: Path, new: Path) -> None:
        """See `Disk.link`."""
        os.link(existing, new, follow_symlinks=False)

    def remove(self, path: Path) -> None:
        """See `Disk.remove`."""
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()

    def reserve(self, path: Path, size: int) -> None:
        """See `Disk.reserve`."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            if size:
                os.posix_fallocate(descriptor, 0, size)
        finally:
            os.close(descriptor)


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


def is_temporary(name: str) -> bool:
    """Return whether a name is one that a cut may have left behind."""
    return name.startswith(".") and name.endswith(".new")


def write_file(disk: Disk, path: Path, data: Data, *, mode: int = 0o600) -> None:
    """Replace or make a file, durably: temporary file, fsync, rename, fsync of the folder."""
    temporary = _temporary(path)
    if disk.exists(temporary):  # a read-only one, left by a cut, could not be opened again
        disk.remove(temporary)
    disk.write(temporary, data, mode)
    disk.sync(temporary)
    disk.rename(temporary, path)
    disk.sync_folder(path.parent)


def write_json(disk: Disk, path: Path, value: Any) -> None:
    """Replace or make a JSON file, durably."""
    write_file(disk, path, json.dumps(value, sort_keys=True, indent=1).encode())


def finish_appends(disk: Disk, path: Path) -> None:
    """Make durable what `Disk.append` wrote, and the file's name."""
    disk.sync(path)
    disk.sync_folder(path.parent)


def make_folder(disk: Disk, path: Path) -> None:
    """Make a folder and the parents it lacks, durably. A folder that is there is left alone."""
    if disk.exists(path):
        return
    make_folder(disk, path.parent)
    disk.make_folder(path)
    disk.sync_folder(path.parent)


def link_file(disk: Disk, existing: Path, new: Path) -> None:
    """Give a durable file a second name, durably."""
    disk.link(existing, new)
    disk.sync_folder(new.parent)


def remove(disk: Disk, path: Path) -> None:
    """Remove a file's name, durably. A name that is not there is left alone."""
    if disk.exists(path):
        disk.remove(path)
        disk.sync_folder(path.parent)


def _below(disk: Disk, folder: Path, folders: set[Path]) -> Iterator[Path]:
    """Yield what lies below `folder`, contents before the folder that holds them."""
    for name in disk.names(folder):
        if folder / name in folders:
            yield from _below(disk, folder / name, folders)
        yield folder / name


def remove_folder(disk: Disk, path: Path, inner: tuple[str, ...] = ()) -> None:
    """Remove a folder, the files in it, and in the sub-folders named in `inner`, durably.

    The folder is renamed first, so that a cut leaves the whole of it or a temporary one, never a part under its name.
    """
    temporary = path if is_temporary(path.name) else _temporary(path)
    if temporary != path and disk.exists(path):
        remove_folder(disk, temporary, inner)
        disk.rename(path, temporary)
        disk.sync_folder(path.parent)
    if disk.exists(temporary):
        for entry in list(_below(disk, temporary, {temporary / name for name in inner})):
            disk.remove(entry)
        disk.remove(temporary)
        disk.sync_folder(path.parent)


def publish_folder(disk: Disk, building: Path, final: Path, inner: tuple[str, ...] = ()) -> None:
    """Make a folder's names durable, and then let it appear under its final name, which must be free.

    The files in it were synced by the caller, or are links to files that were.
    """
    for name in inner:
        disk.sync_folder(building / name)
    disk.sync_folder(building)
    disk.rename(building, final)
    disk.sync_folder(final.parent)


def building_folder(final: Path) -> Path:
    """Return the temporary name under which the folder `final` is built."""
    return _temporary(final)
