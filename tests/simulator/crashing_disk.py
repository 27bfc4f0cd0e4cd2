"""A file system in memory that forgets, on a power cut, what was not synced; and a recorder of real writes.

Bytes that were not synced are torn: half of them are there. Names that were not synced are, by choice, lost or kept:
real file systems do either, and durable code must survive both. With a draw, each name is lost or kept by chance, in
whatever order they were made, and bytes are torn anywhere, or are zeros as after a length that came before its data.
"""

from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Literal

from sprat_client.agent.durable import Data, PosixDisk

Names = Literal["lost", "kept"]
Call = tuple[str, tuple[Any, ...]]


class PowerCut(BaseException):
    """The power went: nobody handles that."""


@dataclass(eq=False)
class _File:
    data: bytes = b""
    synced: bytes | None = None  # None: never
    mode: int = 0o600

    def after_a_cut(self, draw: Random | None) -> "_File":
        if self.synced == self.data:
            return self
        kept = self.synced or b""
        start = len(kept) if self.data.startswith(kept) else 0
        tail = self.data[start:]
        end = len(tail) // 2 if draw is None else draw.randrange(len(tail) + 1)
        torn = self.data[:start] + tail[:end]
        if draw is not None and draw.random() < 0.3:
            torn += bytes(len(tail) - end)
        return _File(torn, torn, self.mode)


@dataclass(eq=False)
class _Folder:
    names: dict[str, "_File | _Folder"] = field(default_factory=dict)
    synced: dict[str, "_File | _Folder"] = field(default_factory=dict)


class CrashingDisk:
    """Implements `durable.Disk`. After a cut it is the disk that the next start finds.

    Args:
        root: the folder that stands for the disk; it is there from the start.
        names: whether names that were not synced are lost or kept by a cut.
        draw: decides instead, for each name and each torn file.
    """

    def __init__(self, root: Path, names: Names = "lost", draw: Random | None = None) -> None:
        self._root, self._names, self._draw = root, names, draw
        self._tree = _Folder()
        self.calls_left: int | None = None

    # faults ------------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        if self.calls_left is not None:
            if self.calls_left == 0:
                self.power_cut()
                raise PowerCut
            self.calls_left -= 1

    def power_cut(self) -> None:
        """Forget what was not synced."""
        self.calls_left = None
        seen: dict[int, _File] = {}
        self._tree = self._after_a_cut(self._tree, seen)

    def _after_a_cut(self, folder: _Folder, seen: dict[int, _File]) -> _Folder:
        left: dict[str, _File | _Folder] = {}
        for name, node in self._names_left(folder).items():
            if isinstance(node, _Folder):
                left[name] = self._after_a_cut(node, seen)
            else:
                left[name] = seen.setdefault(id(node), node.after_a_cut(self._draw))
        return _Folder(dict(left), dict(left))

    def _names_left(self, folder: _Folder) -> "dict[str, _File | _Folder]":
        if self._draw is None:
            return folder.synced if self._names == "lost" else folder.names
        left = {}
        for name in sorted({*folder.names, *folder.synced}):
            node = (folder.names if self._draw.random() < 0.5 else folder.synced).get(name)
            if node is not None:
                left[name] = node
        return left

    # the port ----------------------------------------------------------------------------------------------------

    def read(self, path: Path) -> bytes:
        return self._file(path).data

    def exists(self, path: Path) -> bool:
        try:
            return path == self._root or path.name in self._folder(path.parent).names
        except FileNotFoundError:
            return False

    def names(self, folder: Path) -> list[str]:
        return sorted(self._folder(folder).names)

    def make_folder(self, path: Path) -> None:
        self._tick()
        names = self._folder(path.parent).names
        if path.name in names:
            raise FileExistsError(path)
        names[path.name] = _Folder()

    def write(self, path: Path, data: Data, mode: int) -> None:
        self._tick()
        names = self._folder(path.parent).names
        file = names.setdefault(path.name, _File(mode=mode))
        assert isinstance(file, _File)
        if file.mode == 0o444 and file.data:
            raise PermissionError(path)
        file.data, file.synced = bytes(data), None

    def append(self, path: Path, data: Data) -> None:
        self._tick()
        file = self._folder(path.parent).names.setdefault(path.name, _File())
        assert isinstance(file, _File)
        file.data += bytes(data)

    def sync(self, path: Path) -> None:
        self._tick()
        file = self._file(path)
        file.synced = file.data

    def sync_folder(self, path: Path) -> None:
        self._tick()
        folder = self._folder(path)
        folder.synced = dict(folder.names)

    def rename(self, old: Path, new: Path) -> None:
        self._tick()
        source, target = self._folder(old.parent).names, self._folder(new.parent).names
        node = source[old.name] if old.name in source else _missing(old)
        if isinstance(target.get(new.name), _Folder):
            raise FileExistsError(new)
        del source[old.name]
        target[new.name] = node

    def link(self, existing: Path, new: Path) -> None:
        self._tick()
        names = self._folder(new.parent).names
        if new.name in names:
            raise FileExistsError(new)
        names[new.name] = self._file(existing)

    def remove(self, path: Path) -> None:
        self._tick()
        names = self._folder(path.parent).names
        node = names[path.name] if path.name in names else _missing(path)
        if isinstance(node, _Folder) and node.names:
            raise OSError(39, "folder is not empty", str(path))
        del names[path.name]

    def reserve(self, path: Path, size: int) -> None:
        """Never durable, and so gone after a cut."""
        self._tick()
        self._folder(path.parent).names[path.name] = _File(bytes(size), b"")

    # to and from real folders ------------------------------------------------------------------------------------

    def take(self, folder: Path) -> None:
        """Become a copy of a real folder, all of it durable; hard links stay links."""
        self._tree = _taken(folder, {})

    def give(self, folder: Path) -> None:
        """Write everything into a real folder, which is made."""
        _given(self._tree, folder, {})

    def replay(self, call: Call) -> None:
        """Do what a `RecordingDisk` recorded."""
        name, arguments = call
        getattr(self, name)(*(self._root / one if isinstance(one, Path) else one for one in arguments))

    def _folder(self, path: Path) -> _Folder:
        node: _File | _Folder = self._tree
        for part in path.relative_to(self._root).parts:
            if not isinstance(node, _Folder) or part not in node.names:
                raise FileNotFoundError(path)
            node = node.names[part]
        if not isinstance(node, _Folder):
            raise NotADirectoryError(path)
        return node

    def _file(self, path: Path) -> _File:
        names = self._folder(path.parent).names
        node = names[path.name] if path.name in names else _missing(path)
        if not isinstance(node, _File):
            raise IsADirectoryError(path)
        return node


def _missing(path: Path) -> Any:
    raise FileNotFoundError(path)


def _taken(folder: Path, seen: dict[int, _File]) -> _Folder:
    names: dict[str, _File | _Folder] = {}
    for path in folder.iterdir():
        if path.is_dir():
            names[path.name] = _taken(path, seen)
        else:
            about = path.stat()
            data = path.read_bytes()
            names[path.name] = seen.setdefault(about.st_ino, _File(data, data, about.st_mode & 0o777))
    return _Folder(names, dict(names))


def _given(tree: _Folder, folder: Path, seen: dict[int, Path]) -> None:
    folder.mkdir()
    for name, node in tree.names.items():
        path = folder / name
        if isinstance(node, _Folder):
            _given(node, path, seen)
        elif id(node) in seen:
            path.hardlink_to(seen[id(node)])
        else:
            path.write_bytes(node.data)
            path.chmod(node.mode)
            seen[id(node)] = path


class RecordingDisk(PosixDisk):
    """The real disk, which remembers every call that changes something.

    Args:
        root: paths are remembered relative to it.
        calls_left: the power goes before the call after so many; None: never.
    """

    def __init__(self, root: Path, calls_left: int | None = None) -> None:
        self._root, self._calls_left = root, calls_left
        self.calls: list[Call] = []

    def _tick(self) -> None:
        if self._calls_left is not None and len(self.calls) >= self._calls_left:
            raise PowerCut

    def _note(self, name: str, *arguments: Any) -> None:
        self.calls.append(
            (name, tuple(one.relative_to(self._root) if isinstance(one, Path) else one for one in arguments))
        )

    def make_folder(self, path: Path) -> None:
        self._tick()
        super().make_folder(path)
        self._note("make_folder", path)

    def write(self, path: Path, data: Data, mode: int) -> None:
        self._tick()
        super().write(path, data, mode)
        self._note("write", path, bytes(data), mode)

    def append(self, path: Path, data: Data) -> None:
        self._tick()
        super().append(path, data)
        self._note("append", path, bytes(data))

    def sync(self, path: Path) -> None:
        self._tick()
        super().sync(path)
        self._note("sync", path)

    def sync_folder(self, path: Path) -> None:
        self._tick()
        super().sync_folder(path)
        self._note("sync_folder", path)

    def rename(self, old: Path, new: Path) -> None:
        self._tick()
        super().rename(old, new)
        self._note("rename", old, new)

    def link(self, existing: Path, new: Path) -> None:
        self._tick()
        super().link(existing, new)
        self._note("link", existing, new)

    def remove(self, path: Path) -> None:
        self._tick()
        super().remove(path)
        self._note("remove", path)

    def reserve(self, path: Path, size: int) -> None:
        self._tick()
        super().reserve(path, size)
        self._note("reserve", path, min(size, 4096))  # what is in it does not matter
