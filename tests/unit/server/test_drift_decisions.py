"""Drift: what the words of a fleet come to, and what is done about it."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sprat_server.fleet.drift import Action, Finding, History, Verdict, Word, decide, judge
from sprat_server.fleet.drift_policy import DriftPolicy

NOTIFY = DriftPolicy(min_accuracy=0.9)
RETRAIN = DriftPolicy.model_validate(
    {"min_accuracy": 0.9, "action": "retrain", "retrain": {"dataset": "line-3"}, "most_retrains": 2}
)
BAD = [Word(samples=100, correct=right) for right in (70, 72, 75, 71)]
READY = History(dataset="sha256:new")


def breached() -> Finding:
    found = judge(BAD, NOTIFY)
    assert found.verdict is Verdict.BREACHED
    return found


def test_a_fleet_that_is_clearly_below_its_bound_breaches_it() -> None:
    found = breached()
    assert found.accuracy == pytest.approx(0.72)
    assert found.upper is not None
    assert 0.72 < found.upper < 0.8
    assert "72.0% of 400 samples on 4 devices" in found.why


def test_devices_that_differ_make_it_a_suspicion() -> None:
    words = [Word(samples=100, correct=right) for right in (99, 98, 40, 100)]
    assert judge(words, NOTIFY).verdict is Verdict.SUSPECTED


@pytest.mark.parametrize("words", [[], BAD[:2], [Word(samples=10, correct=1)] * 5, [Word(input_drift=0.9)] * 5])
def test_too_few_devices_or_samples_say_nothing(words: list[Word]) -> None:
    assert judge(words, NOTIFY).verdict is Verdict.UNKNOWN


def test_inputs_that_moved_breach_a_bound_without_labels() -> None:
    policy = DriftPolicy(max_input_drift=0.3)
    moved = [Word(input_drift=drift) for drift in (0.1, 0.5, 0.6)]
    assert judge(moved, policy).verdict is Verdict.BREACHED
    assert judge(moved[:2], policy).verdict is Verdict.UNKNOWN
    assert judge([Word(input_drift=0.2)] * 3, policy).verdict is Verdict.FINE


def test_the_worse_of_both_signals_counts() -> None:
    policy = DriftPolicy(min_accuracy=0.6, max_input_drift=0.3)
    moved = [replace(word, input_drift=0.5) for word in BAD]
    assert judge(BAD, policy).verdict is Verdict.FINE  # of the inputs nothing is known
    assert judge(moved, policy).verdict is Verdict.BREACHED


@given(st.lists(st.tuples(st.integers(1, 200), st.floats(0, 1)), min_size=1, max_size=20))
def test_a_breach_is_below_the_bound_and_more_right_answers_never_make_one(parts: list[tuple[int, float]]) -> None:
    words = [Word(samples=samples, correct=int(samples * share)) for samples, share in parts]
    found = judge(words, NOTIFY)
    if found.verdict is Verdict.BREACHED:
        assert found.accuracy is not None
        assert found.upper is not None
        assert found.accuracy <= found.upper < 0.9
    all_right = [replace(word, correct=word.samples) for word in words]
    assert judge(all_right, NOTIFY).verdict in {Verdict.FINE, Verdict.UNKNOWN}


def test_a_breach_is_told_and_not_again_before_its_time() -> None:
    assert decide(breached(), NOTIFY, READY).action is Action.NOTIFY
    lately = replace(READY, since_last_s=3600.0)
    assert decide(breached(), NOTIFY, lately).action is Action.NONE
    assert "again in 23.0 h" in decide(breached(), NOTIFY, lately).why
    assert decide(breached(), NOTIFY, replace(READY, since_last_s=86400.0)).action is Action.NOTIFY


def test_a_breach_is_retrained_where_that_is_asked_for() -> None:
    assert decide(breached(), RETRAIN, READY).action is Action.RETRAIN


@pytest.mark.parametrize(
    ("history", "action", "why"),
    [
        (replace(READY, stopped="new cameras"), Action.NONE, "stopped by a person: new cameras"),
        (replace(READY, busy="rollout 1 is running"), Action.NONE, "waits: rollout 1"),
        (replace(READY, since_last_s=60.0), Action.NONE, "lately"),
        (replace(READY, retrains=2), Action.NOTIFY, "a person must look"),
        (replace(READY, dataset=None), Action.NOTIFY, "no dataset 'line-3'"),
        (replace(READY, used=frozenset({"sha256:new"})), Action.NOTIFY, "upload new samples"),
    ],
)
def test_what_holds_a_retrain_back(history: History, action: Action, why: str) -> None:
    decision = decide(breached(), RETRAIN, history)
    assert decision.action is action
    assert why in decision.why


def test_nothing_is_done_where_nothing_is_proven() -> None:
    suspected = judge([Word(samples=100, correct=right) for right in (99, 98, 40, 100)], RETRAIN)
    assert decide(suspected, RETRAIN, READY).action is Action.NONE


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"min_accuracy": 0.9, "action": "retrain"},
        {"min_accuracy": 0.9, "retrain": {"dataset": "x"}},
        {"min_accuracy": 0.9, "rollout": {"waves": ["1"]}},
        {"min_accuracy": 90},
        {"min_accuracy": 0.9, "minaccuracy": 1},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(said: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        DriftPolicy.model_validate(said)
