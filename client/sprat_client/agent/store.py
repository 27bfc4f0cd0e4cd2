"""The content-addressed store: one raw little-endian file per tensor, named by its digest, never written again.

    store/sha256/<2 hex>/<64 hex>      tensors and graphs, mode 0444
A release folder (`releases.py`) holds hard links into it, so tensors that did not change cost nothing.
"""

import errno
import hashlib
import mmap
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from sprat_client.agent.durable import Data, Disk, is_temporary, link_file, make_folder, remove
from sprat_shared.errors import DigestMismatch, SpratError
from sprat_shared.wire.tensors import TensorSpec

_FILE_MODE: Final = 0o444
_CHUNK_BYTES: Final = 1 << 20
# What reading a damaged file fails with. Anything else, such as ENOMEM, says nothing of the file.
_DAMAGE: Final = frozenset({errno.EIO, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EUCLEAN, errno.EBADMSG})


class StoreCorrupted(SpratError):
    """A file of the store does not have the bytes that its name says."""

    code = "store.corrupted"
    exit_code = 74


def damaged(bad: OSError, subject: str) -> StoreCorrupted | OSError:
    """Return what it means that a file cannot be read: it is damaged, or the system is short of something just now."""
    if bad.errno in _DAMAGE:
        return StoreCorrupted(f"{subject} cannot be read ({bad.strerror})")
    return bad


def file_sha256(path: Path) -> bytes:
    """Return the SHA-256 of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK_BYTES):
            digest.update(piece)
    return digest.digest()


class TensorStore:
    """The store of one agent folder.

    Args:
        root: the folder `store`.
        disk: where it is written.
    """

    def __init__(self, root: Path, disk: Disk) -> None:
        self._root, self._disk = root / "sha256", disk
        self._unsettled: dict[Path, Path] = {}  # files that were put, and their temporary names

    def path(self, sha256: bytes) -> Path:
        """Return where the file of this digest lies."""
        name = sha256.hex()
        return self._root / name[:2] / name

    def holds(self, sha256: bytes, size: int) -> bool:
        """Return whether a file of this digest and size is there. Its bytes are checked by `check`."""
        try:
            return self.path(sha256).stat().st_size == size
        except OSError:
            return False

    def find(self, prefix: bytes, size: int) -> bytes | None:
        """Return the digest that begins so, of a file of this size; None where there is none, or more than one."""
        folder = self._root / prefix.hex()[:2]
        names = self._disk.names(folder) if self._disk.exists(folder) else []
        named = [bytes.fromhex(name) for name in names if name.startswith(prefix.hex())]
        found = [sha256 for sha256 in named if self.holds(sha256, size)]
        return found[0] if len(found) == 1 else None

    def put(self, sha256: bytes, data: Data) -> None:
        """Write one file. It is there, durably, after `settle`: many files wait for the disk once and not each."""
        path = self.path(sha256)
        make_folder(self._disk, self._root)
        if not self._disk.exists(path.parent):
            self._disk.make_folder(path.parent)
        temporary = self._room_for(path)
        self._disk.write(temporary, data, _FILE_MODE)
        self._unsettled[path] = temporary

    def adopt(self, sha256: bytes, file: Path) -> None:
        """Take a durable file that lies elsewhere on the same file system into the store, without copying it.

        Raises:
            DigestMismatch: it has other bytes.
        """
        if (actual := file_sha256(file)) != sha256:
            raise DigestMismatch(subject=file.name, expected=sha256.hex(), actual=actual.hex())
        path = self.path(sha256)
        self._room_for(path)
        remove(self._disk, path)
        file.chmod(_FILE_MODE)
        link_file(self._disk, file, path)

    def settle(self) -> None:
        """Make all files put so far durable: the bytes, then the names."""
        unsettled, self._unsettled = self._unsettled, {}
        for temporary in unsettled.values():
            self._disk.sync(temporary)
        for path, temporary in unsettled.items():
            self._disk.rename(temporary, path)
        for folder in sorted({path.parent for path in unsettled}):
            self._disk.sync_folder(folder)
        if unsettled:
            self._disk.sync_folder(self._root)  # some of the folders may be new

    def check(self, sha256: bytes, subject: str) -> None:
        """Recompute a file's digest.

        Raises:
            StoreCorrupted: the file is gone or has other bytes.
        """
        path = self.path(sha256)
        try:
            actual = file_sha256(path)
        except OSError as bad:
            raise damaged(bad, f"{subject}: {path}") from bad
        if actual != sha256:
            raise StoreCorrupted(f"{subject}: {path} has the digest {actual.hex()[:16]}…; the disk is damaged")

    def discard(self, sha256: bytes) -> None:
        """Remove a file, so that the next update writes it afresh."""
        remove(self._disk, self.path(sha256))

    def collect(self, wanted: Iterable[bytes]) -> int:
        """Remove every file whose digest is not in `wanted`; return how many."""
        names = {sha256.hex() for sha256 in wanted}
        self._unsettled = {}  # what was put and given up goes too
        gone = 0
        for folder in sorted(self._root.glob("*")):
            unwanted = [path for path in sorted(folder.iterdir()) if path.name not in names]
            for path in unwanted:
                self._disk.remove(path)
            if unwanted:
                self._disk.sync_folder(folder)
            gone += sum(not is_temporary(path.name) for path in unwanted)
        return gone

    def _room_for(self, path: Path) -> Path:
        make_folder(self._disk, path.parent)
        temporary = path.with_name(f".{path.name}.new")
        if self._disk.exists(temporary):
            self._disk.remove(temporary)
        return temporary


def map_file(path: Path, spec: TensorSpec) -> mmap.mmap | bytes:
    """Return the raw file `path` of a tensor, mapped.

    Raises:
        StoreCorrupted: the file is gone or has another length.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != spec.nbytes:
                raise StoreCorrupted(f"tensor {spec.name!r}: {path} has {size} bytes instead of {spec.nbytes}")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    except OSError as bad:
        raise damaged(bad, f"tensor {spec.name!r}: {path}") from bad
