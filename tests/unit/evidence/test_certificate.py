"""The certificate of a near copy: what it promises, and that it keeps it."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sprat_shared.errors import InvalidInput
from sprat_shared.evidence.bounds import highest_share
from sprat_shared.evidence.certificate import certify, certify_answers, chance, outside, samples_needed


def test_one_look_is_the_bound_of_clopper_and_pearson() -> None:
    assert certify(3, 200).bound == highest_share(3, 200)


@given(st.integers(1, 400), st.data())
def test_more_looks_and_more_disagreement_only_widen_the_bound(compared: int, data: st.DataObject) -> None:
    disagreed = data.draw(st.integers(0, compared - 1))
    bound = certify(disagreed, compared).bound
    assert bound <= certify(disagreed, compared, looks=3).bound
    assert bound <= certify(disagreed + 1, compared).bound
    assert disagreed / compared <= bound


@pytest.mark.parametrize("share", [0.002, 0.01, 0.03, 0.2])
def test_in_at_most_five_of_a_hundred_cases_the_truth_is_above_the_bound(share: float) -> None:
    counted = np.random.default_rng(7).binomial(400, share, 4000)
    violated = np.mean([share > certify(int(k), 400).bound for k in counted])
    assert violated <= 0.05 + 0.011  # three standard errors of 4,000 cases


def test_the_best_of_several_looks_keeps_the_promise_too() -> None:
    draw, looks, share, violated = np.random.default_rng(8), 4, 0.04, 0
    for _ in range(1500):
        violated += share > min(certify(int(k), 300, looks=looks).bound for k in draw.binomial(300, share, looks))
    assert violated / 1500 <= 0.05 + 0.017


def test_bounds_of_all_classes_hold_together() -> None:
    draw, shares, violated = random.Random(9), {"car": 0.02, "bus": 0.1, "bike": 0.05}, 0
    for _ in range(400):
        original = draw.choices(list(shares), k=300)
        copy = [None if draw.random() < shares[one] else one for one in original]
        bounds = certify_answers(original, copy).classes
        violated += any(shares[name] > bounds[name].bound for name in bounds)
    assert violated / 400 <= 0.05 + 0.033


def test_the_drop_in_accuracy_never_exceeds_the_share_that_disagrees() -> None:
    draw = np.random.default_rng(10)
    for _ in range(200):
        labels, original, copy = draw.integers(0, 3, (3, 50))
        drop = (original == labels).mean() - (copy == labels).mean()
        assert drop <= (original != copy).mean()


def test_a_class_may_have_a_budget_of_its_own() -> None:
    original = ["cat"] * 900 + ["dog"] * 100
    certificate = certify_answers(original, ["cat"] * 900 + ["cat"] * 10 + ["dog"] * 90)
    assert certificate.disagreed == 10
    assert certificate.within(0.05)
    assert not certificate.within(0.05, class_budget=0.1)
    assert certificate.classes["dog"].disagreed == 10


def test_of_a_regression_the_share_outside_a_tolerance_is_certified() -> None:
    original = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    copy = [[1.05, 2.0], [3.0, 4.2], [5.0, float("nan")]]
    assert outside(original, copy, 0.1) == 2
    assert certify(outside(original, copy, 0.1), 3).disagreed == 2


# 59 samples without a disagreement prove 5 %: 0.95**59 < 0.05
@pytest.mark.parametrize(("bound", "samples"), [(0.05, 59), (0.01, 299), (0.005, 598)])
def test_how_many_samples_a_wished_bound_needs(bound: float, samples: int) -> None:
    assert samples_needed(bound) == samples


@given(st.floats(0.01, 0.3), st.floats(0, 0.7), st.integers(1, 5))
def test_so_many_samples_prove_the_bound(bound: float, part: float, looks: int) -> None:
    share = part * bound
    count = samples_needed(bound, share=share, looks=looks)
    assert certify(-int(-share * count // 1), count, looks=looks).bound <= bound


def test_the_chance_of_a_certificate_is_how_often_one_is_given() -> None:
    """Shares of any size, those that gave this count on the inputs that chose: how many are certified then."""
    draw = np.random.default_rng(11)
    shares = draw.uniform(0, 0.2, 400_000)
    alike = shares[draw.binomial(200, shares) == 5]
    given_to = [certify(int(k), 300, looks=2).bound <= 0.05 for k in draw.binomial(300, alike)]
    assert chance(5, 200, budget=0.05, more=300, looks=2) == pytest.approx(np.mean(given_to), abs=0.02)
    assert chance(0, 200, budget=1.0, more=300) == pytest.approx(1)
    assert chance(0, 200, budget=0.05, more=20) == 0


@pytest.mark.parametrize("call", [lambda: certify(5, 4), lambda: certify(1, 4, looks=0), lambda: samples_needed(0.0)])
def test_what_cannot_be_is_refused(call: "object") -> None:
    with pytest.raises(InvalidInput):
        call()  # type: ignore[operator]


def test_other_inputs_are_not_compared() -> None:
    with pytest.raises(InvalidInput):
        certify_answers([1, 2], [1])
    with pytest.raises(InvalidInput):
        outside([[1.0]], [], 1.0)
