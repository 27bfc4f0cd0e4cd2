"""Exact bounds: of a share that was counted, and of a percentile that was timed."""

import math
from fractions import Fraction

import numpy as np
import pytest

from sprat_shared.evidence.bounds import at_most, highest_share, is_slower, lowest_share, percentile


@pytest.mark.parametrize(
    ("successes", "trials", "p"),
    [(0, 10, 0.3), (3, 10, 0.3), (9, 10, 0.3), (10, 10, 0.3), (95, 100, 0.95), (400, 1000, 0.5)],
)
def test_the_tail_of_the_binomial_is_the_sum_of_its_terms(successes: int, trials: int, p: float) -> None:
    q = Fraction(p)
    exact = sum(math.comb(trials, k) * q**k * (1 - q) ** (trials - k) for k in range(successes + 1))
    assert at_most(successes, trials, p) == pytest.approx(float(exact), rel=1e-10)


# Published tables of Clopper and Pearson, one-sided 95 %; with none counted it is 1 - 0.05**(1/n).
@pytest.mark.parametrize(
    ("successes", "trials", "bound"),
    [
        (0, 10, 0.2589),
        (1, 10, 0.3942),
        (5, 10, 0.7776),
        (0, 100, 0.02951),
        (10, 100, 0.1637),
        (0, 1000, 0.002991),
        (9, 10, 0.9949),
    ],
)
def test_the_bound_of_clopper_and_pearson_is_the_published_one(successes: int, trials: int, bound: float) -> None:
    assert highest_share(successes, trials) == pytest.approx(bound, rel=3e-4)


def test_of_none_or_of_all_the_bound_is_one() -> None:
    assert highest_share(0, 0) == 1.0
    assert highest_share(7, 7) == 1.0
    assert highest_share(0, 50) == pytest.approx(1 - 0.05 ** (1 / 50))


def test_the_lower_bound_is_the_published_one_and_says_nothing_of_none() -> None:
    assert lowest_share(1, 10) == pytest.approx(0.005116, rel=1e-3)  # 1 - 0.95**(1/10)
    assert lowest_share(5, 10) == pytest.approx(1 - 0.7776, rel=1e-3)
    assert (lowest_share(0, 0), lowest_share(0, 9)) == (0.0, 0.0)


def test_the_bound_holds_as_often_as_it_says() -> None:
    counted = np.random.default_rng(1).binomial(80, 0.06, 3000)
    bounds = {int(k): highest_share(int(k), 80) for k in np.unique(counted)}
    held = np.mean([bounds[int(k)] >= 0.06 for k in counted])
    assert held >= 0.95


def test_a_million_trials_take_no_time_to_speak_of() -> None:
    assert highest_share(1000, 1_000_000) == pytest.approx(0.001053, rel=1e-3)


def noisy(draw: np.random.Generator, count: int, scale: float = 1.0) -> list[float]:
    """Times of a busy device: one in twenty takes ten times as long, so the 95th percentile is of either kind."""
    times = scale * (1 + 0.1 * draw.random(count)) * np.where(draw.random(count) < 0.05, 10, 1)
    return [float(time) for time in times]


def test_the_noise_of_a_busy_device_does_not_make_a_release_slower() -> None:
    draw = np.random.default_rng(2)
    pairs = [(noisy(draw, 200), noisy(draw, 200)) for _ in range(300)]
    assert sum(is_slower(new, old, 1.2) for new, old in pairs) / len(pairs) < 0.05
    plain = [(percentile(new, 0.95) or 0) > 1.2 * (percentile(old, 0.95) or 0) for new, old in pairs]
    assert sum(plain) / len(plain) > 0.1, "as it would be by the percentiles themselves"


def test_a_release_of_twice_the_time_is_found_out() -> None:
    draw = np.random.default_rng(3)
    assert is_slower([2.0 + 0.01 * k for k in range(100)], [1.0 + 0.001 * k for k in range(100)], 1.5)
    rarely = [[time if time < 5 else 1.1 for time in noisy(draw, 400)] for _ in range(100)]
    said = [is_slower(noisy(draw, 400, scale=3.0), old, 1.5) for old in rarely]
    assert sum(said) / len(said) > 0.9


def test_a_few_times_show_nothing() -> None:
    assert not is_slower([9.0] * 71, [1.0] * 71, 2.0)
    assert is_slower([9.0] * 72, [1.0] * 72, 2.0)
    assert not is_slower([9.0] * 72, [], 2.0)


def test_a_percentile_is_one_of_the_times() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([float(k) for k in range(100)], 0.95) == 94.0
    assert percentile([], 0.5) is None
