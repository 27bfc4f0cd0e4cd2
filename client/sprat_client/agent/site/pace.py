"""How long a module takes for so many rows in one go, at best: what cannot be done in time is not begun."""

from collections import deque
from typing import Final

_KEPT: Final = 16
_WORTH: Final = 0.8  # of a row by itself: a further one that takes more is as quick after the others
_SLIGHT_S: Final = 0.001  # what a go costs beside its rows
_LOOK_AGAIN: Final = 64  # goes by themselves, before rows run together once more to see what that takes


class Pace:
    """The fastest of the last goes: what ran beside them says nothing of the module. Used by one thread at a time."""

    def __init__(self) -> None:
        self._alone: deque[float] = deque(maxlen=_KEPT)
        self._further: deque[float] = deque(maxlen=_KEPT)
        self._declined = 0

    def ran(self, rows: int, seconds: float) -> None:
        """Note one go."""
        if rows == 1:
            self._alone.append(seconds)
        elif rows > 1 and self._alone:
            self._further.append(max(0.0, seconds - self.seconds(1)) / (rows - 1))

    def seconds(self, rows: int) -> float:
        """Return what a go of so many rows takes at least, as far as is known; 0 where nothing is."""
        return min(self._alone, default=0.0) + min(self._further, default=0.0) * (rows - 1)

    def pays(self) -> bool:
        """Return whether rows run together rather than one after the other, or it is to be seen whether they should.

        On one thread a large model takes twice as long for two rows: then the first would only wait for the second.
        """
        worth = min(self._further, default=0.0) <= max(_WORTH * self.seconds(1), _SLIGHT_S)
        self._declined = 0 if worth else (self._declined + 1) % _LOOK_AGAIN
        return worth or self._declined == 0
