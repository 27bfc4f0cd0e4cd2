"""The real disk, which fails: at one call, or from one call on until somebody mends it."""

import errno
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from sprat_client.agent.durable import Data, PosixDisk

WRITES: Final = frozenset(
    {"make_folder", "write", "append", "sync", "sync_folder", "rename", "link", "remove", "reserve"}
)


class FaultyDisk(PosixDisk):
    """Fails with an errno.

    Args:
        number: errno of the failure.
        at: the first call that fails, counted from 0; None: none.
        lasting: calls after it fail as well, until `mend`; with EROFS or ENOSPC those that write.
        only: calls that fail; all of them when left out.

    Attributes:
        calls: the names of all calls so far.
        failed: how many failed.
        mended_after: so many calls were made before `mend`.
    """

    def __init__(
        self,
        number: int = 0,
        at: int | None = None,
        *,
        lasting: bool = False,
        only: Callable[[str], bool] | None = None,
    ) -> None:
        self._number, self._at, self._lasting = number, at, lasting
        self._only = only or (lambda _: True)
        self.calls: list[str] = []
        self.failed: Counter[str] = Counter()
        self.mended_after = 0

    def mend(self) -> None:
        """Fail no more."""
        self._at, self.mended_after = None, len(self.calls)

    def _tick(self, name: str, path: Path) -> None:
        now = len(self.calls)
        self.calls.append(name)
        if self._at is None or now < self._at or (now > self._at and not self._lasting) or not self._only(name):
            return
        self.failed[name] += 1
        raise OSError(self._number, os.strerror(self._number), str(path))

    def read(self, path: Path) -> bytes:
        self._tick("read", path)
        return super().read(path)

    def exists(self, path: Path) -> bool:
        self._tick("exists", path)
        return super().exists(path)

    def names(self, folder: Path) -> list[str]:
        self._tick("names", folder)
        return super().names(folder)

    def make_folder(self, path: Path) -> None:
        self._tick("make_folder", path)
        super().make_folder(path)

    def write(self, path: Path, data: Data, mode: int) -> None:
        self._torn("write", path, data, lambda part: super(FaultyDisk, self).write(path, part, mode))

    def append(self, path: Path, data: Data) -> None:
        self._torn("append", path, data, lambda part: super(FaultyDisk, self).append(path, part))

    def _torn(self, name: str, path: Path, data: Data, write: Callable[[Data], Any]) -> None:
        """A write that fails leaves a part behind."""
        try:
            self._tick(name, path)
        except OSError as bad:
            if bad.errno != errno.EROFS:
                write(data[: len(data) // 2])
            raise
        write(data)

    def sync(self, path: Path) -> None:
        self._tick("sync", path)
        super().sync(path)

    def sync_folder(self, path: Path) -> None:
        self._tick("sync_folder", path)
        super().sync_folder(path)

    def rename(self, old: Path, new: Path) -> None:
        self._tick("rename", old)
        super().rename(old, new)

    def link(self, existing: Path, new: Path) -> None:
        self._tick("link", new)
        super().link(existing, new)

    def remove(self, path: Path) -> None:
        self._tick("remove", path)
        super().remove(path)

    def reserve(self, path: Path, size: int) -> None:
        self._tick("reserve", path)
        super().reserve(path, size)
