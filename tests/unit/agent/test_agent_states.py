"""The table of states and events."""

import itertools

import pytest

from sprat_client.agent.states import (
    AFTER_POWER_CUT,
    NEXT,
    RULES,
    TRIAL_CUTS_ALLOWED,
    Event,
    ImpossibleEvent,
    Late,
    State,
    is_late,
    resume,
    step,
)


def test_every_state_can_be_reached_and_left() -> None:
    reached = {State.IDLE}
    while more := {after for (before, _), after in NEXT.items() if before in reached} - reached:
        reached |= more
    assert reached == set(State)
    assert {before for before, _ in NEXT} == set(State)


def test_from_every_state_there_is_a_way_back_to_idle() -> None:
    home = {State.IDLE}
    while more := {before for (before, _), after in NEXT.items() if after in home} - home:
        home |= more
    assert home == set(State)


def test_nothing_is_served_before_it_was_verified_rebuilt_and_validated() -> None:
    order = [State.FETCHING, State.VERIFYING, State.REBUILDING, State.READY, State.VALIDATING]
    for before, after in itertools.pairwise(order):
        assert [source for (source, _), target in NEXT.items() if target is after] == [before]
    before_serving = {source for (source, _), target in NEXT.items() if target in {State.SHADOW, State.TRIAL}}
    assert before_serving == {State.VALIDATING, State.SHADOW}


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_an_event_that_is_not_in_the_table_is_a_bug(state: State, event: Event) -> None:
    if (state, event) in NEXT:
        assert step(state, event) is NEXT[state, event]
    else:
        with pytest.raises(ImpossibleEvent, match=f"{event} cannot happen in {state}"):
            step(state, event)


def test_every_state_before_idle_can_be_superseded_or_finishes_by_itself() -> None:
    busy = set(State) - {State.IDLE, State.ROLLING_BACK}
    assert {state for state in State if (state, Event.SUPERSEDED) in NEXT} == busy


def test_a_power_cut_has_an_answer_in_every_state() -> None:
    assert set(AFTER_POWER_CUT) == set(State)


def test_the_third_cut_during_one_trial_counts_as_unhealthy() -> None:
    events = [resume(State.TRIAL, cuts) for cuts in range(1, TRIAL_CUTS_ALLOWED + 2)]
    assert events == [None, None, Event.UNHEALTHY]


def test_cuts_in_other_states_only_resume() -> None:
    assert {resume(state, 99) for state in set(State) - {State.TRIAL}} == {None}


def test_every_state_has_a_rule_and_only_what_changes_what_serves_is_never_given_up() -> None:
    assert set(RULES) == set(State)
    endless = {state for state, rule in RULES.items() if rule.deadline_s is None or rule.late is Late.SAY}
    assert endless == {State.IDLE, State.TRIAL, State.ROLLING_BACK}
    for state, rule in RULES.items():
        assert rule.late is Late.SAY or (state, Event.REJECTED) in NEXT


def test_restarts_count_where_the_agent_itself_may_be_what_crashes() -> None:
    counted = {state for state, rule in RULES.items() if rule.restarts is not None}
    assert counted >= {State.FETCHING, State.VERIFYING, State.REBUILDING, State.VALIDATING}
    assert State.READY not in counted, "a device may be switched off each night while it waits for its window"
    for state in counted:
        allowed = RULES[state].restarts
        assert allowed is not None
        assert [resume(state, 0, restarts) for restarts in (allowed, allowed + 1)] == [None, Event.REJECTED]


def test_a_state_is_late_after_its_deadline_and_a_policy_may_wait_for_months() -> None:
    for state, rule in RULES.items():
        if rule.deadline_s is None:
            assert not is_late(state, 1e12)
        else:
            assert [is_late(state, rule.deadline_s), is_late(state, rule.deadline_s + 1)] == [False, True]
    assert not is_late(State.READY, 90 * 86400.0)
