"""The real programs as processes on loopback: `sprat-server up`, `sprat-agent run`, and `sprat` commands between."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Final, Self, TypeVar

T = TypeVar("T")

_LOOK_EVERY_S: Final = 0.05
_STOP_S: Final = 20.0
_TAIL_LINES: Final = 15
ROOT: Final = Path(__file__).resolve().parents[2]


class ProcessFailed(RuntimeError):
    """A program ended, or did not do in time what it should."""


def environment(**more: str) -> dict[str, str]:
    """Return the environment of the programs: ours without any `SPRAT_` variable, plus `more`, one thread each."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("SPRAT_")}
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH", "")) if part)
    return {**ours, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **more}


def program(name: str) -> str:
    """Return the path of a command of sprat, installed beside this Python.

    Raises:
        ProcessFailed: it is not installed.
    """
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        raise ProcessFailed(f"{path} does not exist; install sprat into this environment: pip install -e '.[demo]'")
    return str(path)


class Program:
    """A process in a group of its own whose output goes to files; stopped when the block ends, whatever happened.

    Args:
        name: what to call it in messages.
        command: its command line.
        log: file to which stderr is added; stdout goes beside it, `.out`, begun anew at each start.
        env: its environment.
    """

    def __init__(self, name: str, command: Sequence[str], *, log: Path, env: Mapping[str, str]) -> None:
        self.name, self.command, self.log, self.env = name, list(command), log, dict(env)
        self.out = log.with_suffix(".out")
        self._process: subprocess.Popen[bytes] | None = None
        self._files: list[IO[bytes]] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process id."""
        if self._process is None:
            raise ProcessFailed(f"{self.name} was not started")
        return self._process.pid

    def start(self) -> None:
        """Start it."""
        self._files = [self.out.open("wb"), self.log.open("ab")]
        self._process = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=self._files[0],
            stderr=self._files[1],
            env=self.env,
            cwd=self.log.parent,
            start_new_session=True,
        )

    def stop(self) -> int | None:
        """Ask it to end (SIGTERM); kill its group if it does not in time. Returns its exit status."""
        process = self._process
        if process is None:
            return None
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self.kill()
        self._close()
        return process.returncode

    def kill(self) -> None:
        """Kill it and what is left of its group (SIGKILL), at once."""
        process = self._process
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self._close()

    def check_alive(self) -> None:
        """Raise if it has ended.

        Raises:
            ProcessFailed: with the last lines of its log.
        """
        if self._process is not None and self._process.poll() is not None:
            raise ProcessFailed(f"{self.name} ended with status {self._process.returncode}:\n{self.tail()}")

    def until(self, look: Callable[[], T | None], what: str, timeout_s: float) -> T:
        """Return what `look` finds, asked again and again while the process lives.

        Raises:
            ProcessFailed: it ended, or nothing was found in time.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            found = look()
            if found is not None:
                return found
            self.check_alive()
            time.sleep(_LOOK_EVERY_S)
        raise ProcessFailed(f"{self.name}: {what} did not happen in {timeout_s:g} s:\n{self.tail()}")

    def tail(self) -> str:
        """Return the last lines of its log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(f"  | {line[:400]}" for line in lines[-_TAIL_LINES:])

    def _close(self) -> None:
        self._process = None
        while self._files:
            self._files.pop().close()
