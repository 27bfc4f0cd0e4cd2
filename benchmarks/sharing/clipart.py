"""Clip art by subject: all pictures of eight kinds."""

from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt
from sizes.cases import openclipart

KINDS: Final = (
    *("animals", "computer", "food", "people", "recreation", "shapes", "signs_and_symbols", "transportation"),
)


@cache
def pictures() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return the pictures (n, 3, 48, 48) in [-1, 1] and their kinds (n,), as places in `KINDS`."""
    shown, kinds = openclipart.pictures(KINDS)
    return shown.astype(np.float32) / 127.5 - 1, kinds
