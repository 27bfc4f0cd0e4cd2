"""The time against which metadata expire. A device's clock may be wrong in either direction; signed times are not.

- A clock behind (at 1970): the latest time that the director ever signed is a lower bound, kept in the journal.
- A clock ahead: everything seems expired. The next poll carries a nonce, the director signs it with the time, and from
  then on that time counts, carried on by the kernel's count of seconds since boot. Without the nonce's proof of
  freshness nothing is believed: else whoever holds back newer metadata could hold back time too.
"""

import base64
import secrets
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

from sprat_shared.trust.signed_time import SignedTime

TOLERANCE_S: Final = 600.0
_NONCE_BYTES: Final = 16


def _wall() -> datetime:
    return datetime.now(UTC)


def _since_boot() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)  # unlike the monotonic clock, it goes on while the device sleeps


class Clock:
    """The device's clock, and what the director's signed times say of it.

    Args:
        wall: the device's clock.
        since_boot: seconds since some fixed moment, on a clock that nobody sets.
    """

    def __init__(self, *, wall: Callable[[], datetime] = _wall, since_boot: Callable[[], float] = _since_boot) -> None:
        self._wall, self._since_boot = wall, since_boot
        self._latest: datetime | None = None
        self._proven: tuple[datetime, float] | None = None
        self._nonce: str | None = None
        self._asking = False

    @property
    def proven(self) -> bool:
        """Whether the director has proven the time to this process."""
        return self._proven is not None

    @property
    def behind_s(self) -> float:
        """By how much the device's clock is behind the latest time that was signed, seconds; 0 where it is not."""
        return 0.0 if self._latest is None else max(0.0, (self._latest - self._wall()).total_seconds())

    @property
    def ahead_s(self) -> float | None:
        """By how much the device's clock differs from signed times; None where it can be believed.

        Positive: it is ahead of the proven time. Negative: it is behind a time that was signed.
        """
        ahead_s = (self._wall() - self.now()).total_seconds() if self.proven else -self.behind_s
        return ahead_s if abs(ahead_s) > TOLERANCE_S else None

    def now(self) -> datetime:
        """Return the reference time: the proven one, else the later of the device's clock and what was signed."""
        if self._proven is not None:
            at, since_boot = self._proven
            return at + timedelta(seconds=self._since_boot() - since_boot)
        return self._wall() if self._latest is None else max(self._wall(), self._latest)

    def know(self, latest: datetime) -> None:
        """Take a time that was signed before this process began."""
        self._latest = latest if self._latest is None else max(self._latest, latest)
        if self.behind_s > TOLERANCE_S:
            self.ask()

    def ask(self) -> bool:
        """Let the next polls ask for a proof of the time, until there is one; return whether they did not before."""
        begins = not self.proven and not self._asking
        self._asking = not self.proven
        return begins

    def new_nonce(self) -> str | None:
        """Return the nonce that the poll about to be sent carries; None where no proof is needed."""
        self._nonce = None
        if self._asking:
            self._nonce = base64.urlsafe_b64encode(secrets.token_bytes(_NONCE_BYTES)).rstrip(b"=").decode()
        return self._nonce

    def forget(self) -> None:
        """Believe nothing that was signed before: the keys that signed it were replaced."""
        self._latest = self._proven = None

    def take(self, signed: SignedTime) -> None:
        """Take a time whose signature was verified."""
        self.know(signed.at)
        if self._nonce is not None and signed.nonce == self._nonce:
            self._proven = (signed.at, self._since_boot())
            self._nonce, self._asking = None, False
