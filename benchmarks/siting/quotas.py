"""Quotas of CPU time for groups of processes, by the kernel's control groups (version 1 or 2), each on one processor.

A quota alone makes no small device: over several processors, what gives way to others (`nice`) runs beside them and
spends what is theirs.
"""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

_ROOT: Final = Path("/sys/fs/cgroup")
_PERIOD_US: Final = 10_000  # short: a process waits for at most so long where its quota is spent


class Quota:
    """A group of processes that take so much of one processor together; their children are of it.

    Args:
        name: of the group, unique on this machine.
        cores: 0.5 is half of one.
        processor: on which they run.

    Raises:
        OSError: privileges or the controller are missing.
    """

    def __init__(self, name: str, cores: float, processor: int) -> None:
        self._processor = processor
        whole = (_ROOT / "cgroup.controllers").exists()
        self._folder = (_ROOT if whole else _ROOT / "cpu") / f"sprat-{os.getpid()}-{name}"
        self._folder.mkdir()
        quota = round(cores * _PERIOD_US)
        if whole:
            (self._folder / "cpu.max").write_text(f"{quota} {_PERIOD_US}")
        else:
            (self._folder / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
            (self._folder / "cpu.cfs_quota_us").write_text(str(quota))

    def add(self, pid: int) -> None:
        """Put a process into the group, with all its threads."""
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
                os.sched_setaffinity(int(thread.name), {self._processor})
        (self._folder / "cgroup.procs").write_text(str(pid))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # a process of it still ends
            self._folder.rmdir()


def processors(cores: Mapping[str, float]) -> dict[str, int]:
    """Return which of this machine's processors each group is on: the largest first, each where least is taken yet."""
    taken = dict.fromkeys(sorted(os.sched_getaffinity(0)), 0.0)
    found = {}
    for name in sorted(cores, key=lambda name: (-cores[name], name)):
        found[name] = min(taken, key=lambda processor: (taken[processor], processor))
        taken[found[name]] += cores[name]
    return found
