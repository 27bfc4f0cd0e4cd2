"""Games against a bounded mean: fair at the null, monotone, and the same bits after storing."""

import itertools
import json
import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sprat_shared.errors import InvalidInput
from sprat_shared.evidence.eprocess import (
    Game,
    capital_as_json,
    capital_of,
    harm_game,
    no_harm_game,
    rate_game,
    scaled,
)

GAMES = {
    "harm": harm_game(0.005, 0.04),
    "no harm": no_harm_game(0.01, 0.005, 0.04),
    "rate": rate_game(0.02),
    "latency": harm_game(0.1, 0.5),
}
losses = st.floats(-1, 1, allow_nan=False)


def play(game: Game, all_losses: list[float]) -> float:
    capital = game.start()
    for loss in all_losses:
        capital = game.play(capital, loss)
    return game.e_value(capital)


@pytest.mark.parametrize("name", GAMES)
def test_a_game_starts_with_one_and_no_loss_can_ruin_it_or_make_it_owe(name: str) -> None:
    game = GAMES[name]
    assert game.e_value(game.start()) == pytest.approx(1.0)
    for loss in (0.0, 1.0) if name == "rate" else (-1.0, -0.04, 0.0, 0.04, 1.0):
        assert all(mantissa > 0 for mantissa, _ in game.play(game.start(), loss))


@given(st.floats(-0.04, 0.004), st.floats(0.006, 0.04), st.integers(1, 5))
def test_at_the_null_every_bet_is_fair_for_every_two_point_distribution(low: float, high: float, rounds: int) -> None:
    null = 0.005
    p_high = (null - low) / (high - low)
    for game in (harm_game(null, 0.04), no_harm_game(null, null, 0.04)):
        mean = 0.0
        for drawn in itertools.product((low, high), repeat=rounds):
            chance = math.prod(p_high if loss == high else 1 - p_high for loss in drawn)
            mean += chance * play(game, list(drawn))
        assert mean == pytest.approx(1.0, rel=1e-9)


@given(st.floats(0.001, 0.3), st.integers(1, 6))
def test_a_rate_game_is_fair_at_the_allowed_rate_and_loses_below_it(allowed: float, rounds: int) -> None:
    game = rate_game(allowed)

    def mean_at(rate: float) -> float:
        return sum(
            rate ** sum(hits) * (1 - rate) ** (rounds - sum(hits)) * play(game, list(hits))
            for hits in itertools.product((0.0, 1.0), repeat=rounds)
        )

    assert mean_at(allowed) == pytest.approx(1.0, rel=1e-9)
    assert mean_at(allowed / 2) < 1.0


@given(st.lists(losses, min_size=1, max_size=20), st.data())
def test_a_worse_loss_never_lowers_the_evidence_of_harm_nor_raises_that_of_none(
    drawn: list[float], data: st.DataObject
) -> None:
    worse = list(drawn)
    at = data.draw(st.integers(0, len(drawn) - 1))
    worse[at] = data.draw(st.floats(drawn[at], 1.0))
    assert play(GAMES["harm"], worse) >= play(GAMES["harm"], drawn)
    assert play(GAMES["no harm"], worse) <= play(GAMES["no harm"], drawn)


@given(st.lists(losses, max_size=20), st.floats(0.005, 0.04), st.floats(0.005, 0.04))
def test_a_wider_margin_is_never_harder_to_prove(drawn: list[float], one: float, other: float) -> None:
    narrow, wide = sorted((one, other))
    assert play(no_harm_game(wide, 0.005, 0.04), drawn) >= play(no_harm_game(narrow, 0.005, 0.04), drawn)


def test_capital_neither_overflows_nor_dies_after_a_hundred_thousand_devices() -> None:
    game = rate_game(0.02)
    for loss, least, most in ((1.0, 1e100, math.inf), (0.0, 0.0, 1e-4)):
        capital = game.start()
        for _ in range(100_000):
            capital = game.play(capital, loss)
        assert least <= game.e_value(capital) < math.inf
        assert game.e_value(capital) <= most
        assert all(mantissa > 0 for mantissa, _ in capital)


@given(st.lists(st.floats(0.01, 3), max_size=60))
def test_scaling_by_powers_of_two_changes_no_bit(factors: list[float]) -> None:
    wealth, plain = (0.5, 1), 1.0
    for factor in factors:
        wealth, plain = scaled(wealth, factor), plain * factor
    assert math.ldexp(*wealth) == plain


def test_capital_survives_json_bit_for_bit() -> None:
    game, random = GAMES["harm"], Random(7)
    capital = game.start()
    for _ in range(500):
        capital = game.play(capital, random.gauss(0.005, 0.02))
    assert capital_of(json.loads(json.dumps(capital_as_json(capital)))) == capital


def test_capital_of_another_game_is_refused() -> None:
    with pytest.raises(InvalidInput, match="replay the evidence"):
        GAMES["harm"].play(rate_game(0.02).start(), 0.0)
