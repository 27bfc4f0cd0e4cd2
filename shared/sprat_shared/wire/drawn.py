"""Numbers that writer and reader draw alike (docs/wire-format.md, section 4.1): counters through SplitMix64's mix.

G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014). Integers only, and every
number by its position alone: the same everywhere, in any order, a block at a time. Speed: 25 million values in about
a second.
"""

from enum import IntEnum
from typing import Final

import numpy as np
import numpy.typing as npt

_MASK: Final = (1 << 64) - 1
_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_BLOCK: Final = 1 << 15  # numbers drawn at a time: they stay in the processor's cache
_WORD: Final = 64
Words = npt.NDArray[np.uint64]


class Use(IntEnum):
    """What numbers are drawn for: each use of a tensor has a key of its own."""

    LEFT = 0
    RIGHT = 1
    SUBSPACE = 2


def slots_and_signs(
    seed: int, index: int, positions: Words, count: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int8]]:
    """Return which coefficient each value of a tensor takes, and whether as it is or its negative.

    Args:
        seed: of the file, 0 to 2**32 - 1.
        index: of the tensor in its table.
        positions: of the values, row-major; any shape.
        count: of the coefficients, 1 to 2**20.

    Returns:
        Slots in [0, count) and signs, 1 or -1, both of the shape of `positions`.
    """
    drawn = _numbers(_key(seed, index, Use.SUBSPACE), positions)
    signs = (1 - 2 * (drawn & np.uint64(1)).astype(np.int8)).astype(np.int8)
    drawn >>= np.uint64(32)
    drawn *= np.uint64(count)
    drawn >>= np.uint64(32)
    return drawn.astype(np.int32), signs


def subspace_of(seed: int, index: int, size: int, count: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int8]]:
    """Return `slots_and_signs` of all values of a tensor of `size` values: int32 (size,) and int8 (size,)."""
    slots, signs = np.empty(size, np.int32), np.empty(size, np.int8)
    for at in range(0, size, _BLOCK):
        part = slice(at, min(size, at + _BLOCK))
        slots[part], signs[part] = slots_and_signs(
            seed, index, np.arange(part.start, part.stop, dtype=np.uint64), count
        )
    return slots, signs


def drawn_matrix(seed: int, index: int, use: Use, rows: int, columns: int) -> npt.NDArray[np.int8]:
    """Return a matrix of 1 and -1, int8 (rows, columns).

    Args:
        seed: of the file, 0 to 2**32 - 1.
        index: of the tensor in its table.
        use: LEFT for U, RIGHT for V.
        rows: of the matrix.
        columns: of the matrix.
    """
    key, size = _key(seed, index, use), rows * columns
    out = np.empty(size, np.int8)
    for at in range(0, size, _BLOCK):
        end = min(size, at + _BLOCK)
        drawn = _numbers(key, np.arange(at // _WORD, -(-end // _WORD), dtype=np.uint64))
        bits = np.unpackbits(drawn.astype("<u8").view(np.uint8), bitorder="little", count=end - at)
        out[at:end] = 1 - 2 * bits.astype(np.int8)
    return out.reshape(rows, columns)


def _key(seed: int, index: int, use: Use) -> int:
    return int(_numbers(seed, np.array([4 * index + use], np.uint64))[0])


def _numbers(key: int, positions: Words) -> Words:
    """Return the numbers at these positions from a key."""
    z = positions + np.uint64(1)
    z *= np.uint64(_GOLDEN)
    z += np.uint64(key & _MASK)
    z ^= z >> np.uint64(30)
    z *= np.uint64(_FIRST)
    z ^= z >> np.uint64(27)
    z *= np.uint64(_SECOND)
    z ^= z >> np.uint64(31)
    return z
