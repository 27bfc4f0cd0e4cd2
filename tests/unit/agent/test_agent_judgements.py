"""What ends a shadow or a trial, and how."""

from dataclasses import replace

import pytest

from sprat_client.agent.comparison import Comparison
from sprat_client.agent.shadow import ShadowLimits, judge_shadow
from sprat_client.agent.trial import GoOn, Healthy, Limits, Unhealthy, Verdict, Watch, judge

LIMITS = Limits(seconds=60, requests=100, errors=3, latency_ratio=2.0, confidence_drop=0.1)
SHADOW = ShadowLimits(seconds=60, requests=100, errors=2, agreement=0.9, latency_ratio=2.0, confidence_drop=0.1)
SLOW = Comparison(requests=100, old_times=(1.0,) * 100, new_times=(2.1,) * 100)
UNSURE = Comparison(requests=100, compared=100, agreed=100, old_confidence=0.9, new_confidence=0.7, fall_deviation=0.3)


def code_of(verdict: Verdict) -> str:
    assert isinstance(verdict, Unhealthy), verdict
    return verdict.code


@pytest.mark.parametrize("enough", [{"seconds": 60.0}, {"seconds": 1.0, "answered": 100}])
def test_a_trial_without_harm_ends_by_time_or_by_requests(enough: dict[str, float]) -> None:
    assert judge(Watch(**enough), LIMITS) == Healthy()  # type: ignore[arg-type]


def test_a_trial_goes_on_until_then() -> None:
    assert judge(Watch(seconds=20, answered=99, failed=2), LIMITS) == GoOn(40)


def test_failures_and_reported_errors_count_together_and_the_more_frequent_gives_the_code() -> None:
    failed = judge(Watch(seconds=1, failed=2, reported=1, last_failure="no such kernel"), LIMITS)
    assert code_of(failed) == "trial.errors"
    assert "no such kernel" in failed.why  # type: ignore[union-attr]
    reported = judge(Watch(seconds=1, failed=1, reported=2, last_reported="all boards are good"), LIMITS)
    assert code_of(reported) == "trial.reported"
    assert "all boards are good" in reported.why  # type: ignore[union-attr]


def test_harm_in_the_last_moment_counts() -> None:
    assert code_of(judge(Watch(seconds=60, answered=100, failed=3), LIMITS)) == "trial.errors"


def test_a_trial_ends_where_the_release_is_slower_or_less_sure_than_the_old_one() -> None:
    watch = Watch(seconds=1, answered=10)
    assert code_of(judge(replace(watch, comparison=SLOW), LIMITS)) == "trial.slow"
    assert code_of(judge(replace(watch, comparison=UNSURE), LIMITS)) == "trial.unsure"


def test_what_the_policy_does_not_say_is_not_judged() -> None:
    limits = Limits(seconds=60, requests=100)
    for seen in (SLOW, UNSURE):
        assert isinstance(judge(Watch(seconds=1, comparison=seen), limits), GoOn)
        assert isinstance(judge_shadow(1, replace(seen, agreed=0), ShadowLimits(seconds=60)), GoOn)


def test_a_fall_of_confidence_within_its_own_noise_or_of_few_samples_shows_nothing() -> None:
    for seen in (
        replace(UNSURE, new_confidence=0.79, fall_deviation=0.3),
        replace(UNSURE, requests=29, compared=29, agreed=29),
    ):
        assert isinstance(judge(Watch(seconds=1, comparison=seen), LIMITS), GoOn)


def test_a_shadow_ends_by_time_or_by_requests_and_without_any_request_by_time() -> None:
    assert judge_shadow(60, Comparison(), SHADOW) == Healthy()
    assert judge_shadow(5, Comparison(requests=100, compared=100, agreed=95), SHADOW) == Healthy()
    assert judge_shadow(5, Comparison(), SHADOW) == GoOn(55)


def test_a_shadow_is_refused_for_errors_disagreement_slowness_and_doubt() -> None:
    assert code_of(judge_shadow(1, Comparison(requests=9, failed=2, last_failure="x"), SHADOW)) == "shadow.errors"
    assert code_of(judge_shadow(60, Comparison(requests=50, compared=50, agreed=44), SHADOW)) == "shadow.disagrees"
    assert code_of(judge_shadow(1, SLOW, SHADOW)) == "shadow.slow"
    assert code_of(judge_shadow(1, UNSURE, SHADOW)) == "shadow.unsure"


def test_a_shadow_that_cannot_come_to_agree_any_more_is_refused_before_its_end_and_another_is_not() -> None:
    assert code_of(judge_shadow(1, Comparison(requests=9, compared=60, agreed=20), SHADOW)) == "shadow.disagrees"
    assert isinstance(judge_shadow(1, Comparison(requests=9, compared=60, agreed=50), SHADOW), GoOn)
