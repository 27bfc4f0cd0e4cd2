"""Notices that the agent's one thread is stuck, says where, and ends the process: its supervisor starts it again.

The loop says before each step how long it may take. A step that takes longer is stuck: in a call that never returns,
on a dead disk or a broken hook. The stacks of all threads go to the log as one record, and the process ends with
EXIT_STUCK; the journal counts the restart, and the state's rule decides how often that goes on.

Where systemd supervises (NOTIFY_SOCKET, WATCHDOG_USEC; sd_notify(3)), it is told READY=1 once the agent serves,
WATCHDOG=1 as long as no step is stuck, and STOPPING=1 at the end. Without it nothing is told.
"""

import contextlib
import faulthandler
import json
import logging
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Final, Self

from sprat_client.agent.logs import JsonFormatter

EXIT_STUCK: Final = 79
_LOOK_EVERY_S: Final = 5.0  # limits are minutes; a device on a battery is not woken more often than it must be
_LAST_RESORT_S: Final = 120.0
_TO_SAY_IT_S: Final = 10.0


class Notifier:
    """Tells systemd how the service is, where it asks.

    Args:
        environment: variables of the process.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self.interval_s = self._interval_s(environment) if self._address else None

    @staticmethod
    def _interval_s(environment: Mapping[str, str]) -> float | None:
        """Return how often systemd wants to hear of the process; None: not at all."""
        pid, period_us = environment.get("WATCHDOG_PID", ""), environment.get("WATCHDOG_USEC", "")
        mine = not pid or pid == str(os.getpid())
        return int(period_us) / 1e6 / 2 if mine and period_us.isdigit() and int(period_us) > 0 else None

    def say(self, what: str) -> None:
        """Send one line, such as `READY=1`. That nobody hears it changes nothing."""
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as talk:
            talk.settimeout(1.0)
            talk.sendto(what.encode(), self._address)


class Watchdog:
    """Watches the steps of one thread from another. Until it is entered, steps may be said and nobody watches.

    Args:
        notifier: tells the supervisor; of this process's environment when left out.
        end: ends the process, with this exit code.
    """

    def __init__(self, notifier: Notifier | None = None, end: Callable[[int], object] = os._exit) -> None:
        self._notifier = notifier or Notifier(os.environ)
        self._end = end
        self._step: tuple[str, float, float] = ("starting", time.monotonic(), 600.0)  # name, since when, limit
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def step(self, name: str, limit_s: float) -> None:
        """Say what begins now, and after how many seconds it is stuck."""
        self._step = (name, time.monotonic(), limit_s)

    def beat(self) -> None:
        """Say that the present step goes forward: its time begins anew."""
        name, _, limit_s = self._step
        self._step = (name, time.monotonic(), limit_s)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Let other steps be made within the present one, whose time stands still meanwhile."""
        name, since, limit_s = self._step
        began = time.monotonic()
        try:
            yield
        finally:
            self._step = (name, since + time.monotonic() - began, limit_s)

    def ready(self) -> None:
        """Tell the supervisor that the agent serves."""
        self._notifier.say("READY=1")

    def __enter__(self) -> Self:
        """Watch from now on."""
        self.beat()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, bad: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._notifier.say("STOPPING=1")
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        told = armed = -_LAST_RESORT_S
        every_s = min(_LOOK_EVERY_S, self._notifier.interval_s or _LOOK_EVERY_S)
        while not self._stop.wait(every_s):
            name, since, limit_s = self._step
            now = time.monotonic()
            if now - armed >= _LAST_RESORT_S / 4:
                # A library that never lets go of the interpreter stops this thread as well; this timer is not Python's.
                faulthandler.dump_traceback_later(_LAST_RESORT_S, exit=True)
                armed = now
            if now - since > limit_s:
                self._end_stuck(name, now - since, limit_s)
                return
            if self._notifier.interval_s is not None and now - told >= self._notifier.interval_s:
                self._notifier.say("WATCHDOG=1")
                told = now

    def _end_stuck(self, name: str, after_s: float, limit_s: float) -> None:
        faulthandler.dump_traceback_later(_TO_SAY_IT_S, exit=True)  # stderr itself may be what is stuck
        record = logging.LogRecord(__name__, logging.CRITICAL, __file__, 0, "stuck", None, None)
        said = {"code": "agent.stuck", "step": name, "after_s": round(after_s, 1), "limit_s": limit_s}
        vars(record).update(said, stacks=_stacks())
        line = JsonFormatter().format(record) + "\n"
        with contextlib.suppress(OSError, ValueError):  # past the logging module, whose lock may be held
            os.write(sys.stderr.fileno(), line.encode())
        self._notifier.say(f"STATUS={json.dumps(said)}")
        self._end(EXIT_STUCK)


def _stacks() -> list[str]:
    """Return the stacks of all threads, line by line."""
    try:
        with tempfile.TemporaryFile() as file:
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            return file.read().decode(errors="replace").splitlines()
    except OSError:  # no temporary file to be had: the read-only disk that the step is stuck on
        faulthandler.dump_traceback(sys.stderr, all_threads=True)
        return []
