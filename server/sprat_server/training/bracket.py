"""Where on a ladder to look next: bracket the target, then refine between two rungs."""

import math
from typing import Final

_STRIDE: Final = 2  # rungs of the first step away from the start; doubled while the target stays on one side
_FINEST: Final = 0.25  # of a rung: closer ones differ by less than the luck of training


class Bracket:
    """Positions on a ladder, from few bytes to many, between which the target lies.

    Args:
        rungs: of the ladder, at least one; the first is at position 0.
        start: the first position to look at.

    Attributes:
        position: where to look; between whole numbers once two neighbouring rungs enclose the target.
        done: nothing is left to look at.
    """

    def __init__(self, rungs: int, start: int) -> None:
        self._low, self._high, self._last = -1.0, float(rungs), rungs - 1
        self._stride = _STRIDE
        self.position = float(start)
        self.done = False

    @property
    def used_up(self) -> bool:
        """Say whether even the last rung has too few bytes."""
        return self._low == self._last

    def move(self, *, wants_more_bytes: bool) -> None:
        """Learn on which side of the present position the target lies, and move on."""
        if wants_more_bytes:
            self._low = self.position
        else:
            self._high = self.position
        self.done = self._high - self._low <= _FINEST or self.used_up or self._high == 0
        if self.done:
            return
        if self._high > self._last:
            self.position, self._stride = min(self._low + self._stride, float(self._last)), 2 * self._stride
        elif self._low < 0:
            self.position, self._stride = max(self._high - self._stride, 0.0), 2 * self._stride
        else:
            middle = (self._low + self._high) / 2
            self.position = float(math.floor(middle)) if math.floor(middle) > self._low else middle
