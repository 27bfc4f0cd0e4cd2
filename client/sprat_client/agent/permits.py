"""Whether the agent may work on an update now: pauses, maintenance windows, what the device itself says of its state.

Pure but for the facts and the clock that are handed in. An answer says what it waits for and when to look again.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

from sprat_client.agent.desired import Desired
from sprat_client.agent.journal import Journal
from sprat_shared.trust.policy import Wanted
from sprat_shared.trust.windows import any_open

_LOOK_AGAIN_S: Final = 30.0


class Facts(Protocol):
    """What the device says of itself; None: nobody knows."""

    @property
    def metered(self) -> bool | None:
        """Return whether its link is paid by the byte."""

    @property
    def charging(self) -> bool | None:
        """Return whether it runs on mains or its battery is being charged."""

    @property
    def idle(self) -> bool | None:
        """Return whether nobody asks its models just now."""


@dataclass(frozen=True, slots=True)
class Unmet:
    """What something waits for.

    Attributes:
        reason: the sentence for people.
        wait_s: look again after so long.
    """

    reason: str
    wait_s: float = _LOOK_AGAIN_S


class Permits:
    """Says whether payloads may be fetched and releases activated.

    Args:
        facts: of the device.
        journal: holds its pause.
        now: the reference time (UTC).
    """

    def __init__(self, facts: Facts, journal: Journal, now: Callable[[], datetime]) -> None:
        self._facts, self._journal, self._now = facts, journal, now

    def fetch(self, wish: Desired) -> Unmet | None:
        """Return what fetching waits for; None: it may go on."""
        return self.paused() or self._unmet(wish.policy.fetch)

    def activate(self, wish: Desired) -> Unmet | None:
        """Return what activation waits for; None: it may go on."""
        if wish.prefetch:
            return Unmet("it was assigned ahead: a later assignment says that it may serve")
        return self.paused() or self._unmet(wish.policy.activate)

    def paused(self) -> Unmet | None:
        """Return the pause that everything waits for; None: there is none."""
        until = self._journal.paused_until
        left_s = 0.0 if until is None else until - time.time()
        if left_s <= 0:
            return None
        return Unmet("the agent is paused on this device: sprat-agent resume", min(left_s, _LOOK_AGAIN_S))

    def _unmet(self, wanted: Wanted) -> Unmet | None:
        if wanted.unmetered and self._facts.metered:
            return Unmet("the link is metered")
        if wanted.charging and self._facts.charging is False:
            return Unmet("the device runs on its battery")
        if wanted.idle and self._facts.idle is False:
            return Unmet("the device is busy")
        if not any_open(wanted.windows, self._now()):
            return Unmet("no maintenance window is open")
        return None
