"""Which processes of PostgreSQL live in a data folder, and how to end them. Read from /proc (Linux).

The pid in `postmaster.pid` proves nothing by itself: after a crash it can be anyone's. A process is taken for the
server of a folder only if its executable is called `postgres` and its working directory is that folder.
"""

import os
import signal
import time
from pathlib import Path
from typing import Final

from sprat_server.db.postgres_binaries import PostgresUnusable

_PROC: Final = Path("/proc")
_STEP_S: Final = 0.02


def living(data: Path) -> list[int]:
    """Return the pids of all PostgreSQL processes that work in the folder `data`."""
    try:
        folder = data.stat()
    except FileNotFoundError:
        return []
    return [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdecimal() and _works_in(entry, folder)]


def postmaster_of(data: Path) -> int | None:
    """Return the pid of the living server of this folder, or None; a stale or foreign pid file counts as none."""
    pid = written_pid(data)
    return pid if pid is not None and pid in living(data) else None


def written_pid(data: Path) -> int | None:
    """Return the pid in `postmaster.pid`, or None where there is no readable one."""
    try:
        first = (data / "postmaster.pid").read_text(encoding="utf-8", errors="replace").split("\n", 1)[0]
    except FileNotFoundError:
        return None
    return int(first) if first.isdecimal() else None


def clear(data: Path, *, timeout_s: float = 30.0) -> bool:
    """End whatever server of an earlier run still works in `data`, and remove a stale `postmaster.pid`.

    A living server is asked to stop as for a restart; children that outlive a killed server are given a moment to
    notice, then ended too, so that the next server finds shared memory free.

    Returns:
        Whether there was something to end.

    Raises:
        PostgresUnusable: something cannot be ended within the time.
    """
    found = living(data)
    if found:
        server = postmaster_of(data)
        if server is not None:
            _signal([server], signal.SIGINT)
        _wait(data, timeout_s if server is not None else 2.0)
        for number in (signal.SIGQUIT, signal.SIGKILL):
            left = living(data)
            if left:
                _signal(left, number)
                _wait(data, 5.0)
        left = living(data)
        if left:
            raise PostgresUnusable(f"processes {left} still work in {data} and cannot be ended; end them by hand")
    (data / "postmaster.pid").unlink(missing_ok=True)
    return bool(found)


def _works_in(process: Path, folder: os.stat_result) -> bool:
    try:
        if (process / "exe").readlink().name.removesuffix(" (deleted)") != "postgres":
            return False
        where = (process / "cwd").stat()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False
    return (where.st_dev, where.st_ino) == (folder.st_dev, folder.st_ino)


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def _wait(data: Path, timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while living(data) and time.monotonic() < end:
        time.sleep(_STEP_S)
