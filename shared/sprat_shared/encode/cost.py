"""What a run of integers costs in the file: the length of the adaptive code, without writing it.

The two counts of a model are a Krichevsky-Trofimov estimator, whose code length depends on how often it saw a 0 and a
1, not on their order (R. Krichevsky, V. Trofimov, IEEE Trans. Information Theory 27(2), 1981).
"""

from math import lgamma, log, pi
from typing import Any

import numpy as np
import numpy.typing as npt

_LN2 = log(2)


def run_bits(values: npt.NDArray[Any]) -> float:
    """Return the bits that a run of signed integers takes with models that begin at even odds.

    Args:
        values: integers below 2**24 in magnitude, of any type.
    """
    size = np.abs(values.reshape(-1)).astype(np.float32)
    length = np.frexp(size)[1]
    counts = np.bincount(length)
    above = counts[::-1].cumsum()[::-1]
    bits = sum(_model_bits(int(c), int(a - c)) for c, a in zip(counts, above, strict=True))
    bits += float(above[1:].sum())  # one each for sign and for all below the leading bit
    for j in range(2, counts.size):
        ones = int(np.count_nonzero(size[length == j] >= 1.5 * 2.0 ** (j - 1)))
        bits += _model_bits(int(counts[j]) - ones, ones) - int(counts[j])  # the second bit has a model
    return bits


def _model_bits(zeros: int, ones: int) -> float:
    """Return the bits of a sequence of zeros and ones under one model."""
    return (lgamma(zeros + ones + 1) - lgamma(zeros + 0.5) - lgamma(ones + 0.5) + log(pi)) / _LN2
