"""The planner: donors stay whole, bounds hold, and no plan beats the best one."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sprat_server.sharing.planner import Candidate, exact, front, greedy, ladder, plan
from sprat_shared.errors import InvalidInput

Problem = tuple[dict[str, int], list[Candidate]]
NAMES = [f"m{i}" for i in range(7)]


def candidate(donor: str, recipient: str, saved: int = 100, bound: float = 0.01, way: str = "w") -> Candidate:
    return Candidate(donor=donor, recipient=recipient, way=way, saved_bytes=saved, bound=bound)


@st.composite
def problems(draw: st.DrawFn) -> tuple[dict[str, int], list[Candidate]]:
    names = NAMES[: draw(st.integers(2, 7))]
    pairs = [(a, b) for a in names for b in names if a != b]
    ways = st.tuples(st.sampled_from(pairs), st.integers(-20, 1000), st.floats(0, 0.2))
    drawn = draw(st.lists(ways, max_size=40))
    return dict.fromkeys(names, 1000), [
        candidate(*pair, saved=saved, bound=bound, way=str(i)) for i, (pair, saved, bound) in enumerate(drawn)
    ]


@settings(max_examples=150, deadline=None)
@given(problems(), st.floats(0, 0.2))
def test_donors_are_never_spliced_and_bounds_hold(problem: Problem, budget: float) -> None:
    sizes, candidates = problem
    for make in (plan, exact, greedy):
        found = make(sizes, candidates, budget=budget)
        assert not found.donors & set(found.chosen)
        assert found.bound <= budget
        assert found.saved_bytes == sum(one.saved_bytes for one in found.chosen.values())
        assert all(one.recipient == name and one.saved_bytes > 0 for name, one in found.chosen.items())


@settings(max_examples=150, deadline=None)
@given(problems())
def test_looking_ahead_never_beats_and_hardly_misses_the_exact_plan(problem: Problem) -> None:
    best, found = exact(*problem, budget=0.1), greedy(*problem, budget=0.1)
    assert 0.8 * best.saved_bytes <= found.saved_bytes <= best.saved_bytes


@settings(max_examples=60, deadline=None)
@given(problems())
def test_the_exact_plan_is_that_of_an_integer_program(problem: Problem) -> None:
    sizes, candidates = problem
    assert exact(sizes, candidates, budget=0.1).saved_bytes == by_integer_program(sizes, candidates, 0.1)


def by_integer_program(sizes: dict[str, int], candidates: list[Candidate], budget: float) -> int:
    """Choose at most one way for each model; who is spliced gives to nobody (scipy's HiGHS)."""
    import numpy as np  # noqa: PLC0415
    from scipy.optimize import Bounds, LinearConstraint, milp  # noqa: PLC0415

    kept = [one for one in candidates if one.bound <= budget and one.saved_bytes > 0]
    if not kept:
        return 0
    names = list(sizes)
    spliced = np.array([[one.recipient == name for one in kept] for name in names], float)
    rows = [
        spliced[names.index(one.donor)] + np.eye(len(kept))[i] for i, one in enumerate(kept)
    ]  # this one, or its donor spliced
    found = milp(
        -np.array([one.saved_bytes for one in kept], float),
        integrality=np.ones(len(kept)),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(np.vstack([spliced, *rows]), ub=1),
        options={"mip_rel_gap": 0},
    )
    return round(-found.fun)


@settings(max_examples=60, deadline=None)
@given(problems(), st.integers(0, 7000))
def test_a_memory_is_met_at_the_smallest_bound(problem: Problem, memory: int) -> None:
    sizes, candidates = problem
    found = plan(sizes, candidates, budget=0.2, memory_bytes=memory)
    left = found.total_bytes - found.saved_bytes
    assert found.fits == (left <= memory)
    if found.fits and found.chosen:
        tighter = [one for one in candidates if one.bound < found.bound]
        assert sum(sizes.values()) - exact(sizes, tighter, budget=0.2).saved_bytes > memory
    if not found.fits:
        assert found.saved_bytes == exact(sizes, candidates, budget=0.2).saved_bytes


@given(problems())
def test_along_the_front_more_is_saved_for_a_larger_bound(problem: Problem) -> None:
    plans = front(*problem)
    assert [one.saved_bytes for one in plans] == sorted({one.saved_bytes for one in plans})
    assert [one.bound for one in plans] == sorted({one.bound for one in plans})


def test_a_good_donor_is_worth_more_than_a_good_splice() -> None:
    ways = [candidate("a", "b", 900), *(candidate("b", other, 800) for other in ("a", "c", "d"))]
    found = plan(dict.fromkeys("abcd", 1000), ways, budget=0.05)
    assert found.donors == {"b"}
    assert set(found.chosen) == set("acd")
    assert found.saved_share == pytest.approx(0.6)


def test_a_model_may_have_a_budget_of_its_own() -> None:
    ways = [candidate("a", "b", bound=0.04), candidate("a", "c", bound=0.04)]
    found = plan(dict.fromkeys("abc", 1000), ways, budget={"a": 0.05, "b": 0.05, "c": 0.01})
    assert set(found.chosen) == {"b"}


def test_for_a_little_slack_the_safest_plan_that_saves_nearly_as_much_is_taken() -> None:
    ways = [candidate("a", "b", 960, 0.04), candidate("a", "b", 900, 0.01), candidate("a", "b", 500, 0.0)]
    sizes = dict.fromkeys("ab", 1000)
    assert plan(sizes, ways, budget=0.05).saved_bytes == 960
    assert plan(sizes, ways, budget=0.05, slack=0.1).saved_bytes == 900


@settings(max_examples=60, deadline=None)
@given(problems(), st.floats(0, 0.5))
def test_slack_gives_up_no_more_than_it_says(problem: Problem, slack: float) -> None:
    most, safer = (plan(*problem, budget=0.2, slack=given) for given in (0.0, slack))
    assert safer.bound <= most.bound
    assert safer.saved_bytes >= (1 - slack) * most.saved_bytes - 1e-6


def test_a_way_that_may_get_no_certificate_counts_for_less() -> None:
    ways = [replace(candidate("a", "b", 900, 0.05), chance=0.5), candidate("a", "b", 600, 0.02)]
    assert plan(dict.fromkeys("ab", 1000), ways, budget=0.05).saved_bytes == 600


def test_a_ladder_goes_down_with_the_same_donor_to_less_and_safer() -> None:
    first = candidate("a", "b", 900, 0.05)
    others = [
        candidate("a", "b", 700, 0.04),
        candidate("a", "b", 800, 0.06),
        candidate("a", "b", 500, 0.01),
        candidate("c", "b", 600, 0.001),
        candidate("a", "b", -5, 0.0),
    ]
    assert [one.saved_bytes for one in ladder(first, [first, *others], levels=5)] == [900, 700, 500]
    assert [one.saved_bytes for one in ladder(first, [first, *others], levels=2)] == [900, 500]
    assert ladder(first, [], levels=1) == [first]


def test_a_model_that_there_is_not_is_refused() -> None:
    with pytest.raises(InvalidInput):
        plan({"a": 1}, [candidate("a", "b")], budget=1.0)
    with pytest.raises(InvalidInput):
        plan({"a": 1}, [candidate("a", "a")], budget=1.0)
    with pytest.raises(InvalidInput):
        exact(dict.fromkeys(map(str, range(21)), 1), [], budget=1.0)


def test_many_models_are_planned_too() -> None:
    names = [f"m{i}" for i in range(24)]
    pairs = [(i, j) for i in range(24) for j in range(24) if i != j]
    ways = [candidate(names[i], names[j], 100 + (7 * i + 3 * j) % 50) for i, j in pairs]
    found = plan(dict.fromkeys(names, 200), ways, budget=0.05)
    assert len(found.chosen) == 23 or found.saved_bytes > 22 * 130
