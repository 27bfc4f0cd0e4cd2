"""Where a member is looked for: at the plan's address first and always again; else where somebody says it has moved.

What somebody says is a hint, and worth one connection: who answers there must show the certificate that the plan holds
for the member (`peer`). Requests never look for anybody: they go where a heartbeat found the member.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol
from uuid import UUID

from sprat_client.agent.site.failures import DeadlineOver, Unreachable
from sprat_client.agent.site.peer import Peer
from sprat_shared.errors import SpratError

_log = logging.getLogger(__name__)
_HINT_EVERY_S: Final = 1.0  # hints of a stranger must not take the plan's address its turns
_HOME_EVERY_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Hint:
    """Where somebody says that a device is.

    Attributes:
        host: an IP address, and
        port: there.
        number: rises with each hint that is heard; of one that is heard again, too.
    """

    host: str
    port: int
    number: int


class Hints(Protocol):
    """Hears where devices are; nothing of it is trusted."""

    def of(self, device: UUID) -> Sequence[Hint]:
        """Return a few hints of a device that does not answer, and let others be asked for more; never waits."""


class Whereabouts:
    """One member under one plan, as the thread of its heartbeats looks for it.

    Args:
        peer: the member.
        timeout_s: of one look.
        hints: None: it is where the plan says, or nowhere.
        now: seconds on a clock that never goes back.
    """

    def __init__(
        self, peer: Peer, timeout_s: float, hints: Hints | None, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._peer, self._timeout_s, self._hints, self._now = peer, timeout_s, hints, now
        self._tried = -1  # number of the hint that was tried last
        self._next_hint = self._next_home = 0.0

    def beat(self) -> float:
        """Ask the member whether it is there; return the seconds that took.

        Raises:
            Unreachable, DeadlineOver: it is neither where it was nor where a hint says.
            SpratError: it is there, and does not answer under this plan.
        """
        if self._peer.moved is not None and self._now() >= self._next_home:
            self._next_home = self._now() + _HOME_EVERY_S
            with contextlib.suppress(SpratError):
                took_s = self._peer.try_at(None, self._timeout_s)
                _log.info("a device of the site is where its plan says again", extra={"device": self._peer.said})
                return took_s
        try:
            return self._peer.is_there(self._timeout_s)
        except (Unreachable, DeadlineOver) as bad:
            self._peer.ask_at(None)
            if (hint := self._next()) is None:
                raise
            try:
                took_s = self._peer.try_at((hint.host, hint.port), self._timeout_s)
            except SpratError as worse:
                said = {"device": self._peer.said, "hint": f"{hint.host}:{hint.port}", "detail": str(worse)}
                _log.info("a hint of where a device of the site is was wrong", extra=said)
                raise bad from None
        self._next_home = self._now() + _HOME_EVERY_S
        _log.warning("a device of the site is elsewhere than its plan says", extra={"device": self._peer.said})
        return took_s

    def _next(self) -> Hint | None:
        """Return the hint that is to be tried now: each once, until it is heard again."""
        if self._hints is None:
            return None
        member = self._peer.member
        hints = self._hints.of(member.device)
        heard = [one for one in hints if one.number > self._tried and (one.host, one.port) != member.host]
        if not heard or self._now() < self._next_hint:
            return None
        oldest = min(heard, key=lambda hint: hint.number)
        self._tried, self._next_hint = oldest.number, self._now() + _HINT_EVERY_S
        return oldest
