"""Links to the hub of a site, out of what the ways between its devices took: each way is a term of its two ends.

What was measured are sums: a round trip is twice the delays of both ends, and what a byte takes is that of the
sender's way up and of the receiver's way down. Their parts are the non-negative least squares (Lawson and Hanson,
Solving Least Squares Problems, 1974, in the form of Bro and de Jong, J. Chemometrics 11, 1997). Where sums leave open
how they are divided, they are divided evenly. Pure.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

Part = TypeVar("Part", bound=Hashable)
Vector = npt.NDArray[np.float64]
_FLOOR: Final = 0.01  # of the largest sum: errors grow with what is measured, and are never less than that
_EVENLY: Final = 1e-3  # weight of the wish for small parts
_ZERO: Final = 1e-12


def parts_of(sums: Sequence[tuple[Part, Part, float]], said: Mapping[Part, float]) -> dict[Part, float]:
    """Return the parts whose sums come closest to those that were measured, relative to them.

    Args:
        sums: two parts, which may be the same one, and what they took together, not negative.
        said: parts that are known, and stay.

    Returns:
        Each part of the sums that is not known, not negative. O(parts^4) at worst; a site has 200 devices at most.
    """
    parts = sorted({one for pair in sums for one in pair[:2]} - said.keys(), key=repr)
    largest = max((value for *_, value in sums), default=0.0)
    if not parts or largest <= 0:
        return dict.fromkeys(parts, 0.0)
    column = {part: at for at, part in enumerate(parts)}
    matrix, right = np.zeros((len(sums), len(parts))), np.zeros(len(sums))
    for row, (one, other, value) in enumerate(sums):
        weight = 1.0 / max(value / largest, _FLOOR)
        right[row] = weight * value / largest
        for part in (one, other):
            if part in column:
                matrix[row, column[part]] += weight
            else:
                right[row] -= weight * said[part] / largest
    normal = matrix.T @ matrix + _EVENLY**2 * np.eye(len(parts))
    found = largest * _non_negative(normal, matrix.T @ right)
    return {part: float(found[at]) for part, at in column.items()}


def _non_negative(normal: Vector, target: Vector) -> Vector:
    """Return x >= 0 that minimises x'Nx/2 - t'x, for positive definite N."""
    size = len(target)
    found, free = np.zeros(size), np.zeros(size, dtype=bool)
    for _ in range(3 * size):
        slope = target - normal @ found
        slope[free] = -np.inf
        if slope.max(initial=-np.inf) <= _ZERO * max(1.0, float(np.abs(target).max())):
            break
        free[int(np.argmax(slope))] = True
        while True:
            trial = np.zeros(size)
            trial[free] = np.linalg.solve(normal[np.ix_(free, free)], target[free])
            negative = free & (trial <= 0)
            if not negative.any():
                break
            step = np.min(found[negative] / (found[negative] - trial[negative] + np.finfo(float).tiny))
            found = found + step * (trial - found)
            free &= found > _ZERO
            found[~free] = 0.0
        found = trial
    return found
