"""The lock that keeps two agents, or two rebuilds, off one folder."""

import errno
import fcntl
import math
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from sprat_shared.errors import Conflict

_NOT_WRITABLE: Final = frozenset({errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO})
_PATIENCE_S: Final = 0.3  # `is_locked` holds the lock for a moment, to see whether it is free


class FolderLock:
    """Holds a file's lock for as long as the process lives; the kernel releases it even after SIGKILL.

    Args:
        path: of the lock file.
        wait: wait for it instead of failing.

    Raises:
        Conflict: another process holds it.
    """

    def __init__(self, path: Path, *, wait: bool = False) -> None:
        self._descriptor = _open(path)
        try:
            self._take(math.inf if wait else time.monotonic() + _PATIENCE_S)
        except BlockingIOError:
            os.close(self._descriptor)
            raise Conflict(
                f"{path.parent}: another sprat-agent runs on this folder; stop it, or give each agent its own --dir",
                code="agent.folder-in-use",
            ) from None

    def _take(self, deadline: float) -> None:
        while True:
            try:
                return fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.01)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, bad: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)


def _open(path: Path) -> int:
    """Open a lock file, which is made; on a disk that takes no writes, as it is, or in its place the folder."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as bad:
        if bad.errno not in _NOT_WRITABLE:
            raise
    return os.open(path if path.exists() else path.parent, os.O_RDONLY | os.O_CLOEXEC)


def is_locked(path: Path) -> bool:
    """Return whether a process holds the lock."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)
