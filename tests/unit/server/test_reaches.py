"""Plans of waves: numbers, shares, growth, labels, controls. Nobody is twice in a rollout, and nobody is lost."""

import math
from itertools import pairwise
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sprat_server.rollouts.reaches import Growth, check_reaches, filter_of, held_back, in_order, place_devices
from sprat_shared.errors import InvalidInput

cohorts = st.sets(st.uuids(), max_size=60)
salts = st.binary(max_size=8)
amounts = st.one_of(st.integers(1, 80).map(str), st.integers(1, 100).map("{}%".format))
labels = st.sampled_from(["ring=canary", "ring=early", "where: site = 1"])


@st.composite
def plans(draw: st.DrawFn) -> list[str]:
    """Any plan that is one: numbers and shares grow, labels stand once, in any order."""
    numbers = sorted(draw(st.sets(st.integers(1, 80), max_size=3)))
    shares = sorted(draw(st.sets(st.integers(1, 100), max_size=3)))
    named = draw(st.lists(labels, unique=True, max_size=3))
    left = [[str(one) for one in numbers], [f"{one}%" for one in shares], named]
    plan: list[str] = []
    while any(left):
        plan.append(draw(st.sampled_from([one for one in left if one])).pop(0))
    return plan or ["100%"]


def devices(count: int) -> list[UUID]:
    return [UUID(int=i + 1) for i in range(count)]


@given(plans(), cohorts, salts, st.data())
def test_every_device_is_placed_once_and_waves_only_reach_further(
    plan: list[str], cohort: set[UUID], salt: bytes, data: st.DataObject
) -> None:
    check_reaches(plan)
    beyond = UUID(int=7)
    some = st.sets(st.sampled_from(sorted(cohort)) if cohort else st.nothing())
    matching = {one: data.draw(some) | {beyond} for one in plan if "=" in one}
    places = place_devices(plan, cohort, salt, matching)
    assert set(places) == cohort
    sizes = [sum(place == i for place in places.values()) for i in range(1, len(plan) + 1)]
    reached = 0
    for reach, size in zip(plan, sizes, strict=True):
        reached += size
        if "=" not in reach:
            amount = math.ceil(len(cohort) * int(reach[:-1]) / 100) if reach.endswith("%") else int(reach)
            assert reached >= min(amount, len(cohort)), reach
            assert size == 0 or reached == min(amount, len(cohort)), reach
    for reach, named in matching.items():
        assert all((places[one] or math.inf) <= plan.index(reach) + 1 for one in named & cohort)
    if "100%" in plan:
        assert None not in places.values()


@given(cohorts, salts, st.data())
def test_without_labels_nobody_comes_before_a_device_that_is_earlier_in_the_order(
    cohort: set[UUID], salt: bytes, data: st.DataObject
) -> None:
    plan = data.draw(plans().filter(lambda plan: not any("=" in one for one in plan)))
    places = place_devices(plan, cohort, salt)
    waves = [place or len(plan) + 1 for place in (places[one] for one in in_order(cohort, salt))]
    assert waves == sorted(waves)


@given(st.integers(1, 30), st.floats(1.25, 10), st.integers(0, 5000))
def test_growth_makes_a_plan_that_ends_with_everyone(first: int, factor: float, count: int) -> None:
    plan = check_reaches(Growth(first, factor).reaches(count))
    assert plan[-1] == "100%"
    steps = [int(one) for one in plan[:-1]]
    assert steps[:1] in ([], [first])
    assert all(before < after <= math.ceil(before * factor) for before, after in pairwise(steps))
    assert all(one < count for one in steps)


def test_the_default_doubles_from_ten_and_from_a_tenth_in_small_fleets() -> None:
    assert Growth().reaches(1000) == ["10", "20", "40", "80", "160", "320", "640", "100%"]
    assert Growth().reaches(3) == ["1", "2", "100%"]
    assert Growth().reaches(45) == ["5", "10", "20", "40", "100%"]
    assert Growth().reaches(0) == Growth().reaches(1) == ["100%"]


@pytest.mark.parametrize(("first", "factor"), [(0, 2), (-3, 2), (10, 1), (10, 1.2), (10, 101), (10, math.nan)])
def test_what_does_not_grow_is_refused(first: int, factor: float) -> None:
    if first == 0:
        assert Growth(None, factor).first is None
        first = 10**10
    with pytest.raises(InvalidInput):
        Growth(first, factor)


@given(cohorts, salts, st.integers(0, 99), st.data())
def test_a_control_share_is_held_back_from_the_end_and_spares_who_a_wave_names(
    cohort: set[UUID], salt: bytes, percent: int, data: st.DataObject
) -> None:
    wanted = data.draw(st.sets(st.sampled_from(sorted(cohort)))) if cohort else set()
    held = held_back(cohort, salt, f"{percent}%", wanted=wanted)
    assert held <= cohort - wanted
    count = math.ceil(len(cohort) * percent / 100)
    assert len(held) == max(min(count, len(cohort) - 1, len(cohort - wanted)), 0)
    free = [one for one in in_order(cohort, salt) if one not in wanted]
    assert set(free[len(free) - len(held) :]) == held
    assert len(held) < max(len(cohort), 1)


@pytest.mark.parametrize("share", ["5", "100%", "-1%", "5.%", "x%", "", "0.0001%"])
def test_a_share_that_is_none_is_refused(share: str) -> None:
    with pytest.raises(InvalidInput, match="control"):
        held_back(devices(3), b"", share)


@pytest.mark.parametrize("plan", [["ring="], ["=canary"], ["where:"], ["a b=c"], ["ring=canary", "ring=canary"]])
def test_a_label_that_names_nobody_is_refused(plan: list[str]) -> None:
    with pytest.raises(InvalidInput):
        check_reaches(plan)


def test_a_label_is_a_filter() -> None:
    assert filter_of("ring=canary") == 'labels.ring = "canary"'
    assert filter_of('ring=a"b\\c') == 'labels.ring = "a\\"b\\\\c"'
    assert filter_of('where: labels.site = "lab" and profile = "x"') == 'labels.site = "lab" and profile = "x"'
