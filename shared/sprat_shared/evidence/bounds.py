"""Exact bounds out of the binomial distribution: of a share that was counted, and of a quantile that was timed. Pure.

Sums run outwards from the count, where terms only fall: one costs about the square root of the number of trials.
"""

import math
from collections.abc import Sequence
from typing import Final

_NEGLIGIBLE: Final = 1e-17  # of a sum, below the last bit of a double
_HALVINGS: Final = 60
_P95: Final = 0.95
_SIDE: Final = 0.975  # level of each of the two bounds that a comparison of percentiles takes: 95 % together


def at_most(successes: int, trials: int, p: float) -> float:
    """Return the probability of at most so many successes in `trials` of probability `p`."""
    if successes < 0:
        return 0.0
    if successes >= trials or p <= 0:
        return 1.0
    if p >= 1:
        return 0.0
    if successes <= trials * p:
        return _falling(successes, trials, p, -1)
    return 1.0 - _falling(successes + 1, trials, p, 1)


def _falling(start: int, trials: int, p: float, by: int) -> float:
    """Return the sum of the binomial's terms from `start`, away from its mean."""
    term = math.exp(
        math.lgamma(trials + 1)
        - math.lgamma(start + 1)
        - math.lgamma(trials - start + 1)
        + start * math.log(p)
        + (trials - start) * math.log1p(-p)
    )
    total, odds, k = 0.0, p / (1 - p), start
    while 0 <= k <= trials and term > total * _NEGLIGIBLE:
        total += term
        term *= odds * (trials - k) / (k + 1) if by > 0 else k / (odds * (trials - k + 1))
        k += by
    return min(total, 1.0)


def highest_share(successes: int, trials: int, *, confidence: float = 0.95) -> float:
    """Return the upper bound of Clopper and Pearson (Biometrika 26, 1934) of the share behind a count.

    Of samples drawn independently, the true share is below it with at least this confidence, whatever it is.

    Args:
        successes: how many were counted, of
        trials: so many; none: the bound is 1.
        confidence: one-sided.
    """
    if successes >= trials:
        return 1.0
    low, high = successes / trials, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if at_most(successes, trials, middle) > 1 - confidence else (low, middle)
    return high


def lowest_share(successes: int, trials: int, *, confidence: float = 0.95) -> float:
    """Return the lower bound of Clopper and Pearson of the share behind a count, as `highest_share`; of no trials 0."""
    return 1 - highest_share(trials - successes, trials, confidence=confidence)


def is_slower(new: Sequence[float], old: Sequence[float], ratio: float) -> bool:
    """Return whether `new` is shown to have a 95th percentile of more than `ratio` times that of `old`.

    The percentile lies between two of the sorted times, and the binomial says between which ones (Conover, Practical
    Nonparametric Statistics): the new one's lower bound is compared with the old one's upper bound, each at 97.5 %.
    So the noise of a busy device, which hits both alike, shows nothing but that more times are needed, and fewer than
    72 of the old one never show anything.

    Args:
        new: seconds, any order,
        old: likewise, taken in turn with them.
        ratio: what is allowed.
    """
    lower = max((rank for rank in range(1, len(new) + 1) if 1 - at_most(rank - 1, len(new), _P95) >= _SIDE), default=0)
    upper = next((rank for rank in range(1, len(old) + 1) if at_most(rank - 1, len(old), _P95) >= _SIDE), 0)
    if not lower or not upper:
        return False
    return sorted(new)[lower - 1] > ratio * sorted(old)[upper - 1]


def percentile(times: Sequence[float], share: float) -> float | None:
    """Return the time that this share of all does not exceed, by the nearest rank; None: there are no times."""
    return sorted(times)[max(0, math.ceil(share * len(times)) - 1)] if times else None
