"""When a second member is asked for the same: later than nearly all answers come, and for a small share of requests."""

import threading
from collections import deque
from typing import Final

_KEPT: Final = 100
_LEAST: Final = 20  # answers, before their 95th percentile says anything
_SHORTEST_S: Final = 0.005
_BURST: Final = 10.0  # as many as are under way to a device before it is known that it has become slow


class Latencies:
    """Seconds of the last answers. May be asked from several threads."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=_KEPT)
        self._lock = threading.Lock()

    def add(self, seconds: float) -> None:
        """Note one answer."""
        with self._lock:
            self._seconds.append(seconds)

    def p95(self) -> float | None:
        """Return the 95th percentile, seconds; None while there are too few answers."""
        with self._lock:
            known = sorted(self._seconds)
        return max(_SHORTEST_S, known[int(0.95 * (len(known) - 1))]) if len(known) >= _LEAST else None


class HedgeBudget:
    """So many second requests for so many first ones. May be asked from several threads.

    Args:
        share: of first requests that may get a second one.
    """

    def __init__(self, share: float) -> None:
        self._share, self._left, self._lock = share, 0.0, threading.Lock()

    def asked(self) -> None:
        """Note a first request."""
        with self._lock:
            self._left = min(_BURST, self._left + self._share)

    def take(self) -> bool:
        """Return whether a second request may be sent now."""
        with self._lock:
            if self._left < 1:
                return False
            self._left -= 1
            return True
