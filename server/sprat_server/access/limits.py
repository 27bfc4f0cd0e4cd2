"""Lockout: an address, or a token's id shown from it, that failed too often is not looked at for a while. And a rate.

Secrets have 128 random bits or more, so no rate of guesses finds one: the lock protects the database, the log and the
processor from a flood. That is each replica's own, so it is counted in its memory, bounded, and costs a flood nothing
to check. A token's id is locked for the address that fails with it only: whoever knows an id cannot lock its owner
out. What must hold across replicas (a jti counts once, a token's uses, the queue's bound) is in PostgreSQL instead.
"""

import ipaddress
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Final

from sprat_shared.errors import AccessDenied, TryLater

_KEYS: Final = 10_000
_WINDOW_S: Final = 60.0
_IPV6_NETWORK_BITS: Final = 64  # what one subscriber has; it may change the rest as it likes


class TooManyRequests(TryLater):
    """An address asked so often for what anybody may ask that it must wait.

    Attributes:
        retry_after_s: until then.
    """

    code = "access.too-many-requests"

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class TooManyFailures(TooManyRequests):
    """So many authentications failed that none is looked at for a while."""

    code = "access.too-many-failures"


class Counts:
    """Events by key in windows of a minute that begin with a key's first event. Bounded; safe between threads.

    Args:
        most: events of a key in one window, after which it must wait for the window's end.
        now_s: a monotonic clock.
        keys: the most keys that are remembered; the ones that were quiet longest are forgotten.
    """

    def __init__(self, most: int, *, now_s: Callable[[], float] = time.monotonic, keys: int = _KEYS) -> None:
        self._most, self._now_s, self._keys = most, now_s, keys
        self._windows: OrderedDict[Hashable, tuple[float, int]] = OrderedDict()
        self._lock = threading.Lock()

    def wait_s(self, key: Hashable) -> float:
        """Return how long the key must wait; 0 where it need not."""
        with self._lock:
            began_s, count = self._windows.get(key, (0.0, 0))
            left_s = began_s + _WINDOW_S - self._now_s()
            return left_s if count >= self._most and left_s > 0 else 0.0

    def add(self, key: Hashable) -> None:
        """Count one event."""
        with self._lock:
            now_s = self._now_s()
            began_s, count = self._windows.pop(key, (now_s, 0))
            self._windows[key] = (began_s, count + 1) if now_s < began_s + _WINDOW_S else (now_s, 1)
            if len(self._windows) > self._keys:
                self._windows.popitem(last=False)


class RateLimit:
    """Lets an address ask for what anybody may ask so often in a minute.

    Args:
        most: requests of one address.
        now_s: a monotonic clock.
    """

    def __init__(self, most: int, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._asked = Counts(most, now_s=now_s)

    def spend(self, address: str) -> None:
        """Count a request.

        Raises:
            TooManyRequests: not now.
        """
        key = _network(address)
        if (wait_s := self._asked.wait_s(key)) > 0:
            raise TooManyRequests(f"{address} asks too often; ask again in {wait_s:.0f} s", retry_after_s=wait_s)
        self._asked.add(key)


class Lockout:
    """Counts failed authentications by address, and by token id within an address.

    Args:
        failures_per_minute: of one address; with one token's id a tenth of them.
        now_s: a monotonic clock.
    """

    def __init__(self, failures_per_minute: int, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._of_address = Counts(failures_per_minute, now_s=now_s)
        self._of_token = Counts(max(1, failures_per_minute // 10), now_s=now_s)

    def check(self, address: str, token_id: str = "") -> None:
        """Return if this may be looked at.

        Raises:
            TooManyFailures: not now.
        """
        key = _network(address)
        wait_s = max(self._of_address.wait_s(key), self._of_token.wait_s((key, token_id)) if token_id else 0.0)
        if wait_s > 0:
            raise TooManyFailures(
                f"too many authentications from {address} failed; try again in {wait_s:.0f} s, with a valid token",
                retry_after_s=wait_s,
            )

    def failed(self, address: str, token_id: str = "") -> None:
        """Count a failure."""
        key = _network(address)
        self._of_address.add(key)
        if token_id:
            self._of_token.add((key, token_id))

    @contextmanager
    def watching(
        self, address: str, token_id: str = "", *, pardoned: type[Exception] | tuple[()] = ()
    ) -> Iterator[None]:
        """Check, let the block authenticate, and count it if it refuses.

        Args:
            address: from where.
            token_id: what the caller claims to be, unproven; empty: nothing.
            pardoned: refusals that do not count.
        """
        self.check(address, token_id)
        try:
            yield
        except pardoned:
            raise
        except AccessDenied:
            self.failed(address, token_id)
            raise


def _network(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address  # a Unix socket, or a test
    if parsed.version == 4:  # noqa: PLR2004 - IPv4
        return address
    return str(ipaddress.ip_network((parsed, _IPV6_NETWORK_BITS), strict=False))
