"""Whether a member is asked: not while it is known to be away, and after failures only by one request at a time."""

import threading
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Final

_FAILURES: Final = 3  # in a row, before it is left alone
_REST_S: Final = 1.0  # doubles with each probe that fails
_LONGEST_REST_S: Final = 30.0


class Circuit(StrEnum):
    """What a breaker lets through."""

    CLOSED = "closed"  # everything
    HALF_OPEN = "half-open"  # one request, which shows whether it answers again
    OPEN = "open"  # nothing


class Breaker:
    """Watches one member. May be asked from several threads.

    Args:
        now: seconds on a clock that never goes back.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._lock = now, threading.Lock()
        self._failures, self._rest_s, self._until = 0, _REST_S, 0.0
        self._probing = False
        self._away = ""  # why it is known to be away; empty: it is not

    @property
    def circuit(self) -> Circuit:
        """Return what it lets through just now."""
        with self._lock:
            if self._away:
                return Circuit.OPEN
            if self._failures < _FAILURES:
                return Circuit.CLOSED
            return Circuit.HALF_OPEN if self._now() >= self._until else Circuit.OPEN

    @property
    def away(self) -> str:
        """Return why the member is known to be away; empty where it is not."""
        return self._away

    def let_through(self) -> bool:
        """Return whether to ask the member now. Whoever does says how that ended, by one of the calls below."""
        with self._lock:
            if self._away:
                return False
            if self._failures < _FAILURES:
                return True
            if self._now() < self._until:
                return False
            self._probing, self._until = True, self._now() + self._rest_s  # a probe that never ends hinders no other
            return True

    def succeeded(self) -> None:
        """Say that it answered."""
        with self._lock:
            self._failures, self._rest_s, self._probing = 0, _REST_S, False

    def failed(self) -> None:
        """Say that it did not answer, or not in time."""
        with self._lock:
            self._failures += 1
            if self._failures >= _FAILURES:
                if self._probing:
                    self._rest_s = min(_LONGEST_REST_S, 2 * self._rest_s)
                self._probing, self._until = False, self._now() + self._rest_s

    def given_up(self) -> None:
        """Say that nobody waited for its answer."""
        with self._lock:
            if self._probing:
                self._probing, self._until = False, self._now()

    def beat(self, away: str = "") -> None:
        """Say what a heartbeat showed: why it is away; empty: it answers."""
        with self._lock:
            if self._away and not away:
                self._failures, self._rest_s, self._probing = 0, _REST_S, False
            self._away = away
