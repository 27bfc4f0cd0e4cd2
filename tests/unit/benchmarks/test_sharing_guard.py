"""The benchmark's guard over many streams is the device's own; and that one alarms seldom by mistake, and soon."""

import numpy as np
import pytest
import sharing_guard
from sharing_guard import ALPHA, NEVER, Guard, Peeking, independent, watch

from sprat_shared.evidence.bounds import highest_share
from sprat_shared.evidence.change import ChangeGame


@pytest.mark.parametrize("budget", [0.01, 0.05, 0.5])
def test_every_e_value_is_the_guards_own(budget: float) -> None:
    rng, streams = np.random.default_rng(2), 5
    game, many = ChangeGame(budget), Guard(budget, streams)
    standings = [game.start()] * streams
    for _ in range(200):
        losses = np.where(rng.random(streams) < 0.3, rng.random(streams), 0.0)
        many.play(losses)
        standings = [game.play(one, float(loss)) for one, loss in zip(standings, losses, strict=True)]
        np.testing.assert_allclose(many.e_values(), [game.e_value(one) for one in standings], rtol=1e-9)
    assert max(many.e_values()) > 1 / ALPHA or budget == 0.5


def test_at_the_budget_a_stream_ever_alarms_in_at_most_one_of_a_hundred_cases_however_often_one_looks() -> None:
    for budget in (0.01, 0.05):
        seen = watch(budget, independent(budget), streams=2000, requests=2000, seed=4)
        assert 0 < seen.share("guard") <= ALPHA
        assert seen.share("Clopper-Pearson, peeking") > 5 * ALPHA, "what the guard is for"


def test_requests_of_one_scene_raise_no_alarm_because_each_is_one_observation() -> None:
    def scene(rng: np.random.Generator, streams: int) -> np.ndarray:
        """Return the shares of requests that mostly agree on everything, or on nothing."""
        return np.asarray(rng.choice([0.0, 0.5, 1.0], streams, p=[0.97, 0.02, 0.01]))

    assert watch(0.02, scene, streams=2000, requests=2000, seed=5).share("guard") <= ALPHA


@pytest.mark.parametrize(("budget", "most"), [(0.01, 500), (0.02, 250), (0.05, 100)])
def test_three_times_the_budget_is_noticed_within_so_many_requests_and_more_sooner(budget: float, most: int) -> None:
    medians = [
        watch(budget, independent(rise * budget), streams=201, requests=4000, seed=6).median("guard")
        for rise in (2.0, 3.0, 5.0, 10.0)
    ]
    assert medians[1] < most
    assert sorted(medians, reverse=True) == medians


def test_after_ten_thousand_requests_that_agreed_a_rise_is_noticed_almost_as_soon() -> None:
    seen = watch(0.02, independent(0.06), streams=101, requests=5000, seed=7, quiet=10_000)
    assert seen.before["guard"] == 0
    assert seen.median("guard") < 600
    assert seen.median("Clopper-Pearson, peeking") > 2000
    assert seen.median("a rate's game, once started") == NEVER


def test_the_peer_alarms_where_the_lower_bound_exceeds_the_budget() -> None:
    requests, budget = 300, 0.05
    for differing in range(10, 40):
        peer = Peeking(budget, 1)
        for request in range(requests):
            peer.play(np.array([float(request < differing)]))
        agreeing = highest_share(requests - differing, requests, confidence=1 - ALPHA)  # the lower bound, from above
        assert bool(peer.alarms()[0]) is (1 - agreeing > budget)


def test_the_cost_of_one_time_of_comparing_is_measured() -> None:
    cost = sharing_guard.cost(hidden=200)
    assert cost["weights_mb"] < 0.1
    assert 0 < cost["load_s"] < 30
    assert cost["after_mb"] < 20
