"""The game against a share that rises at any time: fair, monotone, a mixture of beginnings, and never far too late."""

import itertools
import json
import math
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sprat_shared.errors import InvalidInput
from sprat_shared.evidence.change import ChangeGame, Standing

ENOUGH = 100.0
losses = st.floats(0, 1, allow_nan=False)


def play(game: ChangeGame, drawn: Sequence[float]) -> float:
    standing = game.start()
    for loss in drawn:
        standing = game.play(standing, loss)
    return game.e_value(standing)


@given(st.floats(0.001, 1.0), st.integers(1, 7))
def test_it_is_fair_at_what_is_allowed_and_loses_below(allowed: float, rounds: int) -> None:
    game = ChangeGame(allowed)

    def mean_at(rate: float) -> float:
        return sum(
            rate ** sum(hits) * (1 - rate) ** (rounds - sum(hits)) * play(game, hits)
            for hits in itertools.product((0.0, 1.0), repeat=rounds)
        )

    assert game.e_value(game.start()) == 1.0
    assert mean_at(allowed) == pytest.approx(1.0, rel=1e-9)
    if allowed < 1:
        assert mean_at(allowed / 2) < 1.0


@given(st.floats(0.01, 0.5), st.floats(0, 1), st.floats(0, 1))
def test_shares_between_none_and_all_are_fair_too(allowed: float, part: float, beyond: float) -> None:
    low, high = allowed * part, allowed + (1 - allowed) * beyond
    if high - low < 1e-6:
        return
    game, chance = ChangeGame(allowed), (allowed - low) / (high - low)
    assert (1 - chance) * play(game, [low]) + chance * play(game, [high]) == pytest.approx(1.0, rel=1e-9)


@given(st.lists(losses, min_size=1, max_size=30), st.data(), st.floats(0.001, 0.9))
def test_a_worse_observation_never_lowers_the_evidence(drawn: list[float], data: st.DataObject, allowed: float) -> None:
    worse = list(drawn)
    at = data.draw(st.integers(0, len(drawn) - 1))
    worse[at] = data.draw(st.floats(drawn[at], 1.0))
    game = ChangeGame(allowed)
    assert play(game, worse) >= play(game, drawn)


def test_it_is_the_mixture_of_games_that_begin_at_each_moment() -> None:
    game, draw = ChangeGame(0.1), Random(3)
    drawn = [float(draw.random() < 0.2) for _ in range(40)]
    begun = game.start()
    reserve = [1.0]
    for _ in drawn:  # of a loss that is allowed no bet wins or loses: what is left of 1 is the reserve
        begun = game.play(begun, game.allowed)
        reserve.append(1.0 - sum(w * one for w, one in zip(weights(), begun.wealth, strict=True)))
    mixture = reserve[-1]
    for start, (before, after) in enumerate(itertools.pairwise(reserve)):
        mixture += (before - after) * started_at_once(drawn[start:])
    assert play(game, drawn) == pytest.approx(mixture, rel=1e-9)


RATES = (1.5, 2.0, 3.0, 6.0, 20.0, 200.0)


def weights() -> Sequence[float]:
    return (0.1, 0.2, 0.3, 0.2, 0.1, 0.1)


def started_at_once(drawn: Sequence[float], allowed: float = 0.1) -> float:
    """Return the mixture of likelihood ratios of the rates that are bet on, no reserve kept."""
    total = 0.0
    for times, weight in zip(RATES, weights(), strict=True):
        rate = min(times * allowed, allowed + 0.8 * (1 - allowed))
        ratios = [rate / allowed if loss else (1 - rate) / (1 - allowed) for loss in drawn]
        total += weight * math.prod(ratios)
    return total


def observations_to_the_alarm(before: int, seed: int, *, rate: float = 0.15, allowed: float = 0.05) -> int:
    game, draw = ChangeGame(allowed), Random(seed)
    standing = game.start()
    for _ in range(before):
        standing = game.play(standing, float(draw.random() < allowed / 5))
    for count in itertools.count(1):
        standing = game.play(standing, float(draw.random() < rate))
        if game.e_value(standing) >= ENOUGH:
            return count
    raise AssertionError


def test_what_served_well_for_long_is_not_noticed_much_later_than_what_is_bad_from_the_start() -> None:
    medians = [
        sorted(observations_to_the_alarm(before, seed) for seed in range(31))[15] for before in (0, 1000, 20_000)
    ]
    assert medians[0] < 100
    assert medians[0] < medians[1] < medians[2] < 4 * medians[0]


def test_answers_that_have_nothing_to_do_with_each_other_are_noticed_within_a_handful() -> None:
    for allowed in (0.001, 0.01, 0.05):
        assert play(ChangeGame(allowed), [1.0] * 3) >= ENOUGH


def test_where_everything_may_differ_nothing_is_ever_too_much() -> None:
    assert play(ChangeGame(1.0), [1.0] * 1000) == pytest.approx(1.0)


@given(st.lists(losses, max_size=30))
def test_a_stored_game_goes_on_with_the_same_bits(drawn: list[float]) -> None:
    game = ChangeGame(0.02)
    standing = game.start()
    for loss in drawn:
        standing = game.play(standing, loss)
    stored = json.loads(json.dumps(list(standing.wealth)))
    assert ChangeGame.standing(len(drawn), stored) == standing


def test_evidence_stays_a_number_however_much_there_is() -> None:
    game, standing = ChangeGame(0.001), ChangeGame(0.001).start()
    for _ in range(5000):
        standing = game.play(standing, 1.0)
    assert math.isfinite(game.e_value(standing))
    assert ChangeGame.standing(standing.observations, standing.wealth) == standing


@pytest.mark.parametrize(
    "wealth", [[], [1.0] * 5, [*[1.0] * 5, -1.0], [*[1.0] * 5, math.nan], [*[1.0] * 5, "1"], [*[1.0] * 5, 1e308]]
)
def test_what_is_no_standing_is_refused(wealth: list[object]) -> None:
    with pytest.raises(InvalidInput, match="no standing"):
        ChangeGame.standing(3, wealth)


@pytest.mark.parametrize("allowed", [0.0, -0.1, 1.1, math.nan])
def test_a_share_that_makes_no_sense_is_refused(allowed: float) -> None:
    with pytest.raises(InvalidInput, match="cannot be allowed"):
        ChangeGame(allowed)


@pytest.mark.parametrize("loss", [-0.1, 1.1, math.nan])
def test_a_loss_out_of_its_bounds_is_refused(loss: float) -> None:
    game = ChangeGame(0.1)
    with pytest.raises(InvalidInput, match="not within 0 to 1"):
        game.play(Standing(0, game.start().wealth), loss)
