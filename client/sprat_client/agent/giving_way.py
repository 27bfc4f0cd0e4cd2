"""What is looked at between two chunks of a download, while its stream stays open.

A download may take hours, and the agent has one thread for its link: so the poll that is due is made in between, and a
newer assignment, a pause, a condition that is not met any more, or the end of the day's bytes ends the download within
one chunk. What arrived stays on the disk.
"""

import time
from collections.abc import Callable
from typing import Final

from sprat_client.agent.desired import Desired
from sprat_client.agent.permits import Unmet
from sprat_client.agent.steps import Workshop

_LOOK_EVERY_S: Final = 2.0


class GiveWay(Exception):
    """The download ends here for now.

    Attributes:
        unmet: what it waits for; None: for nothing, there is something else to do first.
    """

    def __init__(self, unmet: Unmet | None) -> None:
        super().__init__("" if unmet is None else unmet.reason)
        self.unmet = unmet


class Watch:
    """Looks up between the chunks of one download. Call it with the size of each.

    Args:
        shop: what the agent works with.
        wish: what is being fetched for.
        count: told of each chunk's size.
        superseded: whether a newer assignment waits.
    """

    def __init__(
        self, shop: Workshop, wish: Desired, count: Callable[[int], None], superseded: Callable[[], bool]
    ) -> None:
        self._shop, self._wish, self.count, self._superseded = shop, wish, count, superseded
        self._look_at = time.monotonic() + _LOOK_EVERY_S

    def __call__(self, size: int) -> None:
        """Count a chunk, do what is due, and raise GiveWay where the download must end."""
        self.count(size)
        if self._shop.stopping.is_set() or self._shop.meanwhile() or self._superseded():
            raise GiveWay(None)
        if (unmet := self._unmet()) is not None:
            raise GiveWay(unmet)

    def allowed(self) -> int | None:
        """Return how many bytes the next request may bring; None: any number.

        Raises:
            GiveWay: none today.
        """
        left = self._shop.budget.left(self._wish.policy.daily_bytes)
        if left == 0:
            raise GiveWay(spent_for_today(self._shop, self._wish))
        return left

    def _unmet(self) -> Unmet | None:
        if time.monotonic() < self._look_at:
            return self._shop.permits.paused()
        self._look_at = time.monotonic() + _LOOK_EVERY_S
        return self._shop.permits.fetch(self._wish)


def spent_for_today(shop: Workshop, wish: Desired) -> Unmet:
    """Return what a download waits for whose day's bytes are spent."""
    return Unmet(
        f"the {wish.policy.daily_bytes} bytes that may be read in a day are spent; it goes on at 00:00 UTC",
        max(1.0, shop.budget.day_ends_in_s()),
    )
