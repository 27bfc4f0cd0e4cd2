"""bfloat16 as the store has it, two bytes a value, and as graphs read it: the equal float32. On bytes, without arrays.

Both are little-endian: a bfloat16 is the upper half of its float32, the last two of four bytes.
"""

import mmap
from typing import TypeAlias

Raw: TypeAlias = bytes | mmap.mmap


def widened(narrow: Raw) -> bytearray:
    """Return the float32 values that equal these bfloat16 ones."""
    wide = bytearray(2 * len(narrow))
    wide[2::4], wide[3::4] = narrow[0::2], narrow[1::2]
    return wide


def narrowed(wide: Raw) -> bytearray:
    """Return the upper halves of float32 values: the bfloat16 ones that equal them, where they are exact."""
    narrow = bytearray(len(wide) // 2)
    narrow[0::2], narrow[1::2] = wide[2::4], wide[3::4]
    return narrow


def are_exact(wide: Raw) -> bool:
    """Return whether each of these float32 values is a bfloat16 one: the lower halves are zero."""
    return all(half.count(0) == len(half) for half in (wide[0::4], wide[1::4]))
