"""Maps: what is solved from streamed sums is the least squares of all samples at once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sprat_server.sharing.maps import (
    RIDGES,
    Form,
    Moments,
    as_rows,
    fit,
    form_of,
    moments,
    prepared,
    resampling,
)
from sprat_shared.errors import InvalidInput


def dense(x: np.ndarray, y: np.ndarray, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    """Ridge least squares with a free bias, all rows at once, by a stacked system and numpy's solver."""
    centred_x, centred_y = x - x.mean(axis=0), y - y.mean(axis=0)
    penalty = np.sqrt(ridge * np.square(centred_x).mean(axis=0).mean() * len(x)) * np.eye(x.shape[1])
    stacked = np.vstack([centred_x, penalty]), np.vstack([centred_y, np.zeros((x.shape[1], y.shape[1]))])
    weight = np.linalg.lstsq(*stacked, rcond=None)[0].T
    return weight, y.mean(axis=0) - weight @ x.mean(axis=0)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(12, 60), st.integers(1, 20), st.integers(0, 1000))
def test_streamed_sums_give_what_the_dense_solve_gives(n_x: int, n_y: int, rows: int, batch: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(rows, n_x)) + draw.normal(size=n_x)
    y = x @ draw.normal(size=(n_x, n_y)) + draw.normal(size=(rows, n_y))
    streamed = Moments(n_x, n_y)
    for start in range(0, rows, batch):
        streamed.add(x[start : start + batch], y[start : start + batch])
    for ridge, (weight, bias) in zip(RIDGES, streamed.solve(*RIDGES), strict=True):
        wished = dense(x, y, ridge)
        np.testing.assert_allclose(weight, wished[0], atol=1e-7)
        np.testing.assert_allclose(bias, wished[1], atol=1e-7)
        error = np.square(y - x @ weight.T - bias).sum() / np.square(y - y.mean(axis=0)).sum()
        assert streamed.r2(weight, bias) == pytest.approx(1 - error, abs=1e-7)


def test_the_ridge_is_the_one_that_does_best_on_samples_held_out() -> None:
    draw = np.random.default_rng(1)
    truth = draw.normal(size=(1, 40)) * (np.arange(40) < 3)
    fitted, held_out = Moments(40, 1), Moments(40, 1)
    for sums, rows in ((fitted, 50), (held_out, 2000)):
        x = draw.normal(size=(rows, 40))
        sums.add(x, x @ truth.T + draw.normal(size=(rows, 1)))
    chosen = fit((40,), (1,), fitted, held_out)
    assert chosen.r2 == pytest.approx(max(held_out.r2(*one) for one in fitted.solve(*RIDGES)))
    assert chosen.r2 > held_out.r2(*fitted.solve(RIDGES[0])[0])


@pytest.mark.parametrize(
    ("donor", "recipient", "form"),
    [
        ((4, 8, 8), (6, 4, 4), Form.CHANNELS),
        ((4,), (7,), Form.DENSE),
        ((4, 8, 8), (7,), Form.POOLED),
        ((6, 4), (6, 3), Form.TOKENS),
        ((6, 4), (5, 3), None),
        ((4,), (6, 4, 4), None),
    ],
)
def test_shapes_say_the_form(donor: tuple[int, ...], recipient: tuple[int, ...], form: Form | None) -> None:
    assert form_of(donor, recipient) is form


def test_shapes_without_a_form_are_refused() -> None:
    with pytest.raises(InvalidInput):
        prepared(np.zeros((2, 6, 4)), (5, 3))
    with pytest.raises(InvalidInput):
        fit((6, 4), (5, 3), Moments(4, 3), Moments(4, 3))
    with pytest.raises(InvalidInput):
        Moments(4, 3).solve(0.1)
    with pytest.raises(InvalidInput):
        Moments(4, 3).add(np.zeros((2, 4)), np.zeros((3, 3)))


@given(st.integers(1, 30), st.integers(1, 30))
def test_resampling_keeps_what_is_constant(before: int, after: int) -> None:
    matrix = resampling(before, after)
    assert matrix.shape == (after, before)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=1e-5)
    assert (matrix >= 0).all()


def test_halving_averages_pairs() -> None:
    np.testing.assert_allclose(resampling(4, 2), [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])


@pytest.mark.parametrize(("recipient", "grid"), [((3, 4, 4), 1), ((5,), 1), ((5,), 2)])
def test_a_map_that_there_is_is_found(recipient: tuple[int, ...], grid: int) -> None:
    draw, donor = np.random.default_rng(2), (4, 8, 8)
    sums = [moments(donor, recipient, grid) for _ in range(2)]
    width = 4 * grid * grid if len(recipient) == 1 else 4
    truth, shift = draw.normal(size=(recipient[0], width)), draw.normal(size=recipient[0])
    for one in sums:
        for _ in range(8):
            rows = prepared(draw.normal(size=(16, *donor)), recipient, grid)
            one.add(rows, rows @ truth.T + shift)
    found = fit(donor, recipient, *sums, grid=grid)
    assert found.r2 > 0.999
    np.testing.assert_allclose(found.weight, truth, atol=1e-2)
    x = draw.normal(size=(3, *donor)).astype(np.float32)
    np.testing.assert_allclose(as_rows(found.apply(x)), prepared(x, recipient, grid) @ truth.T + shift, atol=0.05)
    assert found.nbytes == 4 * (truth.size + shift.size)
