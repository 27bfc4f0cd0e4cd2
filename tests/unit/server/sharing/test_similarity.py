"""Similarity: the debiased form, against its published formula, and not fooled where the biased one is."""

import math

import numpy as np
import pytest

from sprat_server.sharing.similarity import (
    agreement,
    correlation,
    gram,
    hsic,
    pooled,
    random_batches,
    similarity,
)
from sprat_shared.errors import InvalidInput


def published_hsic(k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741 - as in the paper
    """HSIC_1 of Song et al. 2012, equation 5, word for word: with traces and vectors of ones."""
    m, ones = len(k), np.ones(len(k))
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))  # noqa: E741
    first = np.trace(k @ l)
    second = (ones @ k @ ones) * (ones @ l @ ones) / ((m - 1) * (m - 2))
    third = 2 / (m - 2) * (ones @ k @ l @ ones)
    return float((first + second - third) / (m * (m - 3)))


def features(n: int, d: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)) + 1.0


def test_hsic_is_the_published_estimator() -> None:
    x, y = features(20, 7, 0), features(20, 3, 1) ** 2
    assert hsic(gram(x), gram(y)) == pytest.approx(published_hsic(x @ x.T, y @ y.T), rel=1e-9)


def test_hsic_is_unbiased() -> None:
    """Over many small batches it averages to the squared norm of the covariance."""
    draw = np.random.default_rng(2)
    x = draw.normal(size=(6000, 8, 3))
    y = x[..., :2] + 0.5 * draw.normal(size=(6000, 8, 2))
    mean = np.mean([hsic(gram(a), gram(b)) for a, b in zip(x, y, strict=True)])
    assert mean == pytest.approx(2.0, rel=0.06)  # covariance of x and y: two ones


def test_unrelated_features_are_not_alike_however_many_they_are() -> None:
    batches = [(gram(features(64, 2048, i)), gram(features(64, 2048, 99 + i))) for i in range(8)]
    found = similarity(batches)
    assert abs(found.cka) < 0.05
    k, l = (x @ x.T for x in (features(64, 2048, 0), features(64, 2048, 99)))  # noqa: E741
    h = np.eye(64) - 1 / 64
    biased = np.trace(k @ h @ l @ h) / math.sqrt(np.trace(k @ h @ k @ h) * np.trace(l @ h @ l @ h))
    assert biased > 0.9  # the trap


def test_turning_and_scaling_change_nothing() -> None:
    x = features(64, 10, 3)
    turn = np.linalg.qr(features(10, 10, 4))[0]
    found = similarity([(gram(x), gram(3 * x @ turn))])
    assert found.cka == pytest.approx(1)
    assert found.spread == 0


def test_batches_are_summed_before_the_ratio() -> None:
    pairs = [(gram(features(16, 4, i)), gram(features(16, 4, i) + features(16, 4, 50 + i))) for i in range(5)]
    each = [(published_hsic(a, b), published_hsic(a, a), published_hsic(b, b)) for a, b in pairs]
    parts = np.mean(each, axis=0)
    assert similarity(pairs).cka == pytest.approx(parts[0] / math.sqrt(parts[1] * parts[2]))


def waves(n: int, d: int, step: float) -> np.ndarray:
    return np.sin(np.arange(n * d).reshape(n, d) * step) + 1


# What hsic1 of ckatorch 1.0.3 gives for these features: of both, of the left one, of the right one.
CKATORCH = (-1.3019427986439103, 6.6604472223090445, 50.59037955057472)


def test_it_is_what_ckatorch_gives() -> None:
    left, right = gram(waves(32, 7, 0.7)), gram(waves(32, 5, 1.3) ** 2)
    ours = (hsic(left, right), hsic(left, left), hsic(right, right))
    assert ours == pytest.approx(CKATORCH, rel=1e-9)
    both, one, other = CKATORCH
    assert similarity([(left, right)]).cka == pytest.approx(both / math.sqrt(one * other))


def test_feature_maps_are_pooled_and_vectors_are_not() -> None:
    maps = np.arange(24.0).reshape(2, 3, 2, 2)
    np.testing.assert_allclose(pooled(maps)[0], [1.5, 5.5, 9.5])
    assert pooled(maps[:, :, 0, 0]).shape == (2, 3)


def test_batches_are_drawn_without_repetition_and_with_the_seed() -> None:
    one, other = (random_batches(50, size=20, batches=3, seed=4) for _ in range(2))
    assert all((a == b).all() for a, b in zip(one, other, strict=True))
    assert all(len(set(batch)) == 20 for batch in one)


def test_agreement_and_correlation_are_what_they_say() -> None:
    left, right = np.eye(4), np.eye(4)[[0, 1, 3, 2]]
    assert agreement(left, right) == 0.5
    assert correlation([1, 2, 3], [2, 4, 6]) == pytest.approx(1)
    assert math.isnan(correlation([1, 1], [2, 3]))


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(InvalidInput):
        hsic(np.zeros((3, 3)), np.zeros((3, 3)))
    with pytest.raises(InvalidInput):
        similarity([])
