"""Scales and their steps: what one unit of a record's integers is worth (docs/wire-format.md, section 4)."""

from typing import Final

import numpy as np
import numpy.typing as npt

SCALES: Final = 256
_OCTAVE: Final = np.array(  # 2**(k/8) rounded to float32, k = 0..7; section 4 gives the bits
    [0x3F800000, 0x3F8B95C2, 0x3F9837F0, 0x3FA5FED7, 0x3FB504F3, 0x3FC5672A, 0x3FD744FD, 0x3FEAC0C7], dtype=np.uint32
).view(np.float32)
STEPS: Final[npt.NDArray[np.float32]] = np.ldexp(np.tile(_OCTAVE, SCALES // 8), np.arange(SCALES) // 8 - 24).astype(
    np.float32
)
STEPS.flags.writeable = False


def nearest_scale(step: float) -> int:
    """Return the scale whose step is nearest to `step` on a log axis; steps beyond the table give its ends."""
    if not step > 0:
        return 0
    return int(np.clip(np.rint(8 * np.log2(step)) + 192, 0, SCALES - 1))
