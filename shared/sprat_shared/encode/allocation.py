"""One choice for every tensor together: a ladder of choices, each with more bytes and less error than the one before.

Y. Shoham, A. Gersho, "Efficient bit allocation for an arbitrary set of quantizers", IEEE Trans. ASSP 36(9), 1988: at a
price of a byte each tensor alone takes its cheapest way, which lies on the lower convex hull of its ways. As the price
falls, one tensor after the other moves on along its hull; the choices in between are the rungs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter

import numpy as np
import numpy.typing as npt

from sprat_shared.encode.candidates import Candidate


@dataclass(frozen=True, slots=True, eq=False)
class Ladder:
    """Choices from the fewest bytes to the least error.

    Attributes:
        bytes: of each rung, estimated, float64 (rungs,).
        squared_error: of each rung, estimated, float64 (rungs,); never rises.
    """

    bytes: npt.NDArray[np.float64]
    squared_error: npt.NDArray[np.float64]
    _first: tuple[Candidate, ...]
    _moves: tuple[tuple[int, Candidate], ...]

    def choice(self, rung: int) -> list[Candidate]:
        """Return one candidate for each tensor."""
        chosen = list(self._first)
        for tensor, way in self._moves[:rung]:
            chosen[tensor] = way
        return chosen

    def __len__(self) -> int:
        return len(self.bytes)

    def within_bytes(self, allowed: float) -> int:
        """Return the highest rung of at most so many bytes, 0 where there is none."""
        return max(0, int(np.searchsorted(self.bytes, allowed, side="right")) - 1)

    def within_error(self, allowed: float) -> int:
        """Return the lowest rung of at most so much error, the last where there is none."""
        return min(len(self) - 1, int(np.searchsorted(-self.squared_error, -allowed, side="left")))


def ladder(options: Sequence[Sequence[Candidate]]) -> Ladder:
    """Return the ladder of these ways: for each tensor at least one."""
    paths = [_path(ways) for ways in options]
    moves = [
        (gain, tensor, then.bytes - now.bytes, now.squared_error - then.squared_error, then)
        for tensor, path in enumerate(paths)
        for (_, now), (gain, then) in pairwise(path)
    ]
    moves.sort(key=itemgetter(0), reverse=True)  # stable, and gains never rise along a path: none is out of order
    added, saved = (np.array([move[column] for move in moves], np.float64) for column in (2, 3))
    rest = sum(path[-1][1].squared_error for path in paths)
    return Ladder(
        bytes=np.cumsum([sum(path[0][1].bytes for path in paths), *added]),
        squared_error=rest + np.cumsum([0.0, *saved[::-1]])[::-1],
        _first=tuple(path[0][1] for path in paths),
        _moves=tuple((tensor, then) for _, tensor, _, _, then in moves),
    )


def _path(ways: Sequence[Candidate]) -> list[tuple[float, Candidate]]:
    """Return ways of rising bytes and falling error, each with what a byte gains up to the hull's next corner.

    Ways between two corners of the hull are kept: they are worse for the price, and fit where the next corner does not.
    """
    better: list[Candidate] = []
    for way in sorted(ways, key=lambda way: (way.bytes, way.squared_error)):
        if not better or way.squared_error < better[-1].squared_error:
            better.append(way)
    corners: list[int] = []
    for i, way in enumerate(better):
        while len(corners) > 1 and _gain(better[corners[-2]], better[corners[-1]]) <= _gain(better[corners[-1]], way):
            corners.pop()
        corners.append(i)
    path = [(float("inf"), better[0])]
    for low, high in pairwise(corners):
        path += [(_gain(better[low], better[high]), way) for way in better[low + 1 : high + 1]]
    return path


def _gain(now: Candidate, then: Candidate) -> float:
    return (now.squared_error - then.squared_error) / max(then.bytes - now.bytes, 1e-9)
