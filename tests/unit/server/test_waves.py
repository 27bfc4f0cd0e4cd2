"""Who is in which wave, and what a rollout does next."""

from random import Random
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sprat_server.rollouts.reaches import check_reaches, place_devices, reaches_everyone
from sprat_server.rollouts.waves import DeviceState, GateView, RolloutState, Step, WaveState, WaveView, next_step
from sprat_shared.errors import InvalidInput

D, W, R = DeviceState, WaveState, RolloutState

cohorts = st.sets(st.uuids(), max_size=60)
plans = st.sampled_from([["1", "100%"], ["1", "50%", "100%"], ["10%", "5", "100%"], ["2"], ["1", "3", "30%", "100%"]])


def devices(count: int) -> set[UUID]:
    return {UUID(int=i + 1) for i in range(count)}


def sizes(reaches: list[str], count: int) -> list[int]:
    places = place_devices(reaches, devices(count), b"salt")
    return [list(places.values()).count(i) for i in range(1, len(reaches) + 1)]


def test_one_device_then_half_then_all() -> None:
    assert sizes(["1", "50%", "100%"], 10) == [1, 4, 5]


def test_a_percentage_is_rounded_up() -> None:
    assert sizes(["10%", "100%"], 3) == [1, 2]


def test_a_wave_that_reaches_no_further_than_the_one_before_it_is_empty() -> None:
    assert sizes(["1", "50%", "100%"], 1) == [1, 0, 0]
    assert sizes(["5", "10%", "100%"], 10) == [5, 0, 5]


@given(plans, cohorts, st.binary(max_size=8))
def test_every_device_is_in_one_wave_at_most_and_in_exactly_one_when_the_plan_reaches_everyone(
    reaches: list[str], cohort: set[UUID], salt: bytes
) -> None:
    places = place_devices(reaches, cohort, salt)
    assert set(places) == cohort
    if reaches_everyone(reaches):
        assert None not in places.values()


@given(plans, cohorts, st.binary(max_size=8), st.randoms())
def test_the_order_does_not_depend_on_how_the_cohort_is_listed(
    reaches: list[str], cohort: set[UUID], salt: bytes, random: Random
) -> None:
    shuffled = list(cohort)
    random.shuffle(shuffled)
    assert place_devices(reaches, shuffled, salt) == place_devices(reaches, cohort, salt)


def test_another_salt_gives_another_order() -> None:
    firsts = {
        next(d for d, wave in place_devices(["1", "100%"], devices(40), bytes([salt])).items() if wave == 1)
        for salt in range(20)
    }
    assert len(firsts) > 5


@pytest.mark.parametrize(
    "reaches",
    [[], ["0"], ["0%"], ["101%"], ["-1"], ["1.5"], ["x"], ["1", "1"], ["5", "3"], ["50%", "50%"], ["1"] * 101],
)
def test_what_makes_no_plan_is_refused(reaches: list[str]) -> None:
    with pytest.raises(InvalidInput):
        check_reaches(reaches)


def test_the_next_wave_opens_only_when_every_device_of_this_one_has_committed() -> None:
    waves = [WaveView(W.OPEN, (D.COMMITTED, D.EXPOSED)), WaveView(W.WAITING, (D.WAITING,))]
    assert next_step(R.RUNNING, waves) is Step.HOLD
    waves[0] = WaveView(W.OPEN, (D.COMMITTED, D.COMMITTED))
    assert next_step(R.RUNNING, waves) is Step.CLOSE_WAVE
    waves[0] = WaveView(W.SUCCEEDED, (D.COMMITTED, D.COMMITTED))
    assert next_step(R.RUNNING, waves) is Step.OPEN_WAVE


def test_a_device_that_left_is_not_waited_for() -> None:
    assert next_step(R.RUNNING, [WaveView(W.OPEN, (D.COMMITTED, D.LEFT))]) is Step.CLOSE_WAVE


def test_the_first_failure_halts_though_others_are_still_at_work() -> None:
    waves = [WaveView(W.OPEN, (D.FAILED, D.EXPOSED, D.EXPOSED)), WaveView(W.WAITING, (D.WAITING,))]
    assert next_step(R.RUNNING, waves) is Step.HALT


def test_a_failure_halts_a_paused_rollout_too() -> None:
    assert next_step(R.PAUSED, [WaveView(W.OPEN, (D.FAILED,))]) is Step.HALT


def test_a_paused_rollout_opens_nothing() -> None:
    waves = [WaveView(W.OPEN, (D.COMMITTED,)), WaveView(W.WAITING, (D.WAITING,))]
    assert next_step(R.PAUSED, waves) is Step.HOLD


@pytest.mark.parametrize("state", [R.DRAFT, R.HALTED, R.ABORTED, R.SUCCEEDED])
def test_what_does_not_run_does_nothing(state: RolloutState) -> None:
    assert next_step(state, [WaveView(W.WAITING, (D.WAITING,))]) is Step.HOLD


device_states = st.sampled_from(list(D))


@given(st.lists(st.lists(device_states, max_size=4), min_size=1, max_size=4), st.sampled_from([R.RUNNING, R.PAUSED]))
def test_nothing_opens_after_a_failure_and_success_needs_every_wave(
    contents: list[list[DeviceState]], state: RolloutState
) -> None:
    waves = [WaveView(W.OPEN if i == 0 else W.WAITING, tuple(states)) for i, states in enumerate(contents)]
    step = next_step(state, waves)
    if any(D.FAILED in states for states in contents):
        assert step is Step.HALT
    else:
        assert step in {Step.HOLD, Step.CLOSE_WAVE, Step.EXPOSE}


@given(st.lists(st.integers(0, 3), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_a_simulated_rollout_opens_waves_in_order_and_exposes_nobody_after_a_failure(
    counts: list[int], random: Random
) -> None:
    states = [[D.WAITING] * count for count in counts]
    waves = [W.WAITING] * len(counts)
    opened = []
    for _ in range(100):
        step = next_step(R.RUNNING, [WaveView(w, tuple(s)) for w, s in zip(waves, states, strict=True)])
        if step is Step.OPEN_WAVE:
            first = waves.index(W.WAITING)
            assert all(wave is W.SUCCEEDED for wave in waves[:first])
            opened.append(first)
            waves[first] = W.OPEN
        elif step is Step.EXPOSE:
            at = waves.index(W.OPEN)
            states[at] = [D.EXPOSED] * counts[at]
        elif step is Step.CLOSE_WAVE:
            waves[waves.index(W.OPEN)] = W.SUCCEEDED
        elif step is Step.HOLD:
            at = waves.index(W.OPEN)
            one = random.choice([i for i, state in enumerate(states[at]) if state is D.EXPOSED])
            states[at][one] = random.choice([D.COMMITTED] * 9 + [D.FAILED])
        else:
            break
    assert opened == sorted(opened)
    if step is Step.SUCCEED:
        assert all(state is D.COMMITTED for wave in states for state in wave)
    else:
        assert step is Step.HALT
        assert all(state is D.WAITING for wave in states[opened[-1] + 1 :] for state in wave)


def test_with_a_gate_failures_decide_nothing_and_the_gate_halts_even_what_is_paused() -> None:
    waves = [WaveView(W.OPEN, (D.FAILED, D.EXPOSED)), WaveView(W.WAITING, (D.WAITING,))]
    assert next_step(R.RUNNING, waves, GateView(halts=False, room=0)) is Step.HOLD
    assert next_step(R.PAUSED, waves, GateView(halts=False, room=5)) is Step.HOLD
    assert next_step(R.PAUSED, waves, GateView(halts=True, room=0)) is Step.HALT
    assert next_step(R.HALTED, waves, GateView(halts=True, room=0)) is Step.HOLD


def test_with_a_gate_a_wave_closes_when_all_of_it_is_exposed_and_there_is_room_for_the_next() -> None:
    later = WaveView(W.WAITING, (D.WAITING,))
    for contents, room, step in (
        ((D.EXPOSED, D.WAITING), 0, Step.HOLD),
        ((D.EXPOSED, D.WAITING), 1, Step.EXPOSE),
        ((D.COMMITTED, D.EXPOSED), 0, Step.HOLD),
        ((D.COMMITTED, D.EXPOSED), 1, Step.CLOSE_WAVE),
    ):
        assert next_step(R.RUNNING, [WaveView(W.OPEN, contents), later], GateView(halts=False, room=room)) is step


def test_with_a_gate_the_last_wave_ends_when_nobody_is_awaited_any_more() -> None:
    gate, empty = GateView(halts=False, room=0), WaveView(W.WAITING, ())
    first = WaveView(W.SUCCEEDED, (D.COMMITTED, D.EXPOSED))
    assert next_step(R.RUNNING, [first, WaveView(W.OPEN, (D.COMMITTED,)), empty], gate) is Step.HOLD
    first = WaveView(W.SUCCEEDED, (D.COMMITTED, D.FAILED, D.LEFT))
    assert next_step(R.RUNNING, [first, WaveView(W.OPEN, (D.FAILED,)), empty], gate) is Step.CLOSE_WAVE
    assert next_step(R.RUNNING, [first, WaveView(W.SUCCEEDED, (D.FAILED,)), empty], gate) is Step.OPEN_WAVE
    assert next_step(R.RUNNING, [first], gate) is Step.SUCCEED
