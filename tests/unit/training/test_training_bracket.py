"""Where a search looks next on a ladder of sizes."""

from hypothesis import given
from hypothesis import strategies as st

from sprat_server.training.bracket import Bracket


def looked_at(rungs: int, start: int, target: float) -> tuple[list[float], Bracket]:
    """Walk to a target that every position below it has too few bytes for."""
    bracket, seen = Bracket(rungs, start), []
    while not bracket.done:
        seen.append(bracket.position)
        bracket.move(wants_more_bytes=bracket.position < target)
    return seen, bracket


def test_steps_away_from_the_start_double_and_then_the_rungs_between_are_halved_down_to_a_quarter() -> None:
    assert looked_at(14, 7, 10.6)[0] == [7, 9, 13, 11, 10, 10.5, 10.75]
    assert looked_at(14, 7, 0.3)[0] == [7, 5, 1, 0, 0.5, 0.25]


def test_a_target_beyond_either_end_ends_the_walk_there() -> None:
    seen, bracket = looked_at(5, 2, 9)
    assert (seen, bracket.used_up) == ([2, 4], True)
    seen, bracket = looked_at(5, 2, -1)
    assert (seen, bracket.used_up) == ([2, 0], False)
    assert looked_at(1, 0, 9)[1].used_up


@given(st.integers(1, 40), st.data())
def test_the_target_ends_up_within_a_quarter_of_a_rung_after_few_looks(rungs: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, rungs - 1))
    target = data.draw(st.floats(0, rungs - 1))
    seen, bracket = looked_at(rungs, start, target)
    assert all(0 <= position <= rungs - 1 for position in seen)
    assert len(set(seen)) == len(seen) <= 14
    enough = min((position for position in seen if position >= target), default=None)
    assert enough is None or enough - target <= 0.25 or enough == 0
    assert bracket.used_up == (rungs - 1 < target)
