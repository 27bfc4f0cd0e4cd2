"""Links of a star, solved from what ways between its ends took."""

import itertools

import numpy as np
import pytest

from sprat_server.placement.star import parts_of

NAMES = [f"d{at}" for at in range(8)]


def delays(seed: int) -> dict[str, float]:
    return dict(zip(NAMES, np.random.default_rng(seed).uniform(0.5e-3, 40e-3, len(NAMES)), strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_delays_are_found_of_exact_and_of_noisy_pairs(seed: int) -> None:
    true = delays(seed)
    pairs = list(itertools.combinations(NAMES, 2))
    exact = parts_of([(one, other, true[one] + true[other]) for one, other in pairs], {})
    assert exact == {name: pytest.approx(value, rel=1e-3) for name, value in true.items()}
    noise = np.random.default_rng(seed).lognormal(0, 0.05, len(pairs))
    noisy = parts_of(
        [(one, other, by * (true[one] + true[other])) for (one, other), by in zip(pairs, noise, strict=True)], {}
    )
    for one, other in pairs:
        assert noisy[one] + noisy[other] == pytest.approx(true[one] + true[other], rel=0.15)
    assert max(abs(noisy[name] - true[name]) for name in NAMES) < 0.1 * max(true.values())


def test_ways_up_and_down_are_found_as_sums_although_only_sums_are_known() -> None:
    draw = np.random.default_rng(4)
    up, down = ({name: 10 ** draw.uniform(-8, -5) for name in NAMES} for _ in range(2))
    asked = [(one, other) for one, other in itertools.permutations(NAMES, 2) if other in NAMES[:3]]
    sums = [(("up", one), ("down", other), up[one] + down[other]) for one, other in asked]
    found = parts_of(sums, {})
    for one, other in asked:
        assert found["up", one] + found["down", other] == pytest.approx(up[one] + down[other], rel=1e-2)
    assert ("down", NAMES[5]) not in found, "nobody sent there"


def test_what_was_said_stays_and_the_rest_is_divided_evenly() -> None:
    assert parts_of([("a", "b", 0.02)], {}) == {"a": pytest.approx(0.01), "b": pytest.approx(0.01)}
    assert parts_of([("a", "b", 0.02)], {"a": 0.015}) == {"b": pytest.approx(0.005)}
    assert parts_of([("a", "b", 0.02)], {"a": 0.05}) == {"b": 0.0}, "no way is shorter than nothing"
    assert parts_of([("a", "b", 0.02)], {"a": 0.01, "b": 0.01}) == {}


def test_no_part_is_negative_where_the_sums_contradict_each_other() -> None:
    found = parts_of([("a", "b", 0.1), ("a", "c", 1.0), ("b", "c", 3.0)], {})
    assert min(found.values()) == 0.0
    best = min(
        ((a + b - 0.1) / 0.1) ** 2 + (a + c - 1.0) ** 2 + ((b + c - 3.0) / 3.0) ** 2
        for a, b, c in itertools.product(np.linspace(0, 0.2, 21), np.linspace(0, 0.5, 26), np.linspace(0, 3, 301))
    )
    a, b, c = (found[name] for name in "abc")
    assert ((a + b - 0.1) / 0.1) ** 2 + (a + c - 1.0) ** 2 + ((b + c - 3.0) / 3.0) ** 2 <= best * 1.01


def test_ways_that_took_nothing_are_nothing() -> None:
    assert parts_of([("a", "b", 0.0)], {}) == {"a": 0.0, "b": 0.0}
    assert parts_of([], {"a": 1.0}) == {}
