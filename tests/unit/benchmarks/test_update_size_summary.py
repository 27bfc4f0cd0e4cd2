"""From points to the table of `benchmarks/update_size.py`: what is chosen, and what is said of it."""

import pytest
from sizes.ledger import Point
from sizes.method import Method
from sizes.plot import front
from sizes.summary import best_points, interval, smallest, table
from sizes.together import AUTO, unite


def point(size: int, share: float, *, error: float = 0.0, test: float | None = 0.9, setting: str = "") -> Point:
    return Point(setting=setting or f"{size} B", bytes=size, validation=share, error=error, test=test, seconds=1.0)


def method(key: str, *, ours: bool) -> Method:
    return Method(key=key, title=key.title(), ours=ours, settings=(), sweep=lambda *_: iter(()), code=())


def row(size: int) -> dict[str, object]:
    return {"bytes": size, "interval": [size, size], "test": 0.9, "seeds": 3}


def test_the_smallest_point_that_proves_the_share_is_chosen_whatever_the_order() -> None:
    points = [point(900, 0.99), point(300, 0.93), point(500, 0.95), point(100, 0.80)]
    assert smallest(points, 0.90) == points[1]
    assert smallest(points, 0.95) == points[2]


def test_a_lucky_point_within_its_own_error_proves_nothing() -> None:
    lucky, safe = point(200, 0.905, error=0.02), point(300, 0.922, error=0.02)
    assert smallest([lucky, safe], 0.90) == safe, "a standard error is asked on top"
    assert smallest([point(200, 0.909, error=0.008)], 0.90) is not None


def test_a_coarse_error_asks_for_half_of_what_is_left_at_most() -> None:
    assert smallest([point(200, 0.952, error=5.0)], 0.90) is not None


def test_nothing_is_chosen_where_nothing_proves_the_share() -> None:
    assert smallest([point(200, 0.80)], 0.90) is None
    assert smallest([], 0.90) is None


def test_what_a_method_needs_is_the_median_over_the_seeds_with_what_it_recovers_on_test() -> None:
    by_seed = {
        0: [point(100, 0.93, test=0.88), point(400, 0.97, test=0.96)],
        1: [point(200, 0.93, test=0.91)],
        2: [point(150, 0.93, test=0.95)],
    }
    found = best_points(by_seed)
    assert found["0.90"] == {
        "bytes": 150,
        "interval": [100, 200],
        "test": 0.91,
        "seeds": 3,
        "settings": {0: "100 B", 1: "200 B", 2: "150 B"},
    }
    assert found["0.95"] is None, "one of three seeds gets there"
    assert found["0.99"] is None


def test_a_seed_that_never_gets_there_counts_as_infinitely_many_bytes() -> None:
    by_seed = {0: [point(100, 0.93)], 1: [point(200, 0.93)], 2: [point(150, 0.20)]}
    found = best_points(by_seed)["0.90"]
    assert found is not None
    assert (found["bytes"], found["seeds"]) == (200, 2)
    assert found["interval"] == [100, None]


def test_a_test_split_that_gained_nothing_is_left_out_of_the_median() -> None:
    by_seed = {0: [point(100, 0.93, test=None)], 1: [point(100, 0.93, test=0.9)]}
    found = best_points(by_seed)["0.90"]
    assert found is not None
    assert found["test"] == 0.9


def test_the_interval_is_the_same_each_time_and_holds_the_median() -> None:
    values = [120.0, 90.0, 300.0, 110.0, 95.0]
    assert interval(values) == interval(values)
    low, high = interval(values)
    assert low in values
    assert high in values
    assert low <= 110.0 <= high
    assert interval([7.0]) == (7.0, 7.0)


def test_the_table_has_a_row_for_each_method_that_ran_and_says_how_far_the_best_peer_is() -> None:
    methods = [method("peer", ours=False), method("absent", ours=False), method("own", ours=True)]
    rows = {
        "peer": {"0.90": row(1000), "0.95": row(3000), "0.99": None},
        "own": {"0.90": row(400), "0.95": row(6000), "0.99": row(7000)},
    }
    lines = table(methods, rows, seeds=3)
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["Peer", "**Own**", "best peer / best of sprat"]
    assert "1,000 B (1,000 to 1,000; 90.0 %)" in lines[2]
    assert lines[2].rstrip("| ").endswith("-"), "nothing is said where nothing gets there"
    assert [cell.strip() for cell in lines[-1].split("|")[2:5]] == ["2.5 times", "0.5 times", "-"]


@pytest.mark.parametrize(("seeds", "words"), [(3, "90.0 %)"), (5, "90.0 %; 3 of 5 seeds)")])
def test_a_cell_says_where_fewer_seeds_got_there(seeds: int, words: str) -> None:
    rows = {"own": {"0.90": row(400), "0.95": None, "0.99": None}}
    assert words in table([method("own", ours=True)], rows, seeds)[2]


def test_one_seed_has_no_interval() -> None:
    rows = {"own": {"0.90": row(400) | {"seeds": 1}, "0.95": None, "0.99": None}}
    assert "400 B (90.0 %)" in table([method("own", ours=True)], rows, seeds=1)[2]


def test_where_nobody_names_a_strategy_any_point_of_the_trained_rows_may_be_chosen() -> None:
    factors, subspace = {0: [point(300, 0.93), point(500, 0.96)], 1: [point(300, 0.93)]}, {0: [point(200, 0.92)]}
    of_case = {"factors": factors, "subspace": subspace, AUTO.key: {0: []}}
    unite(of_case)
    assert list(of_case[AUTO.key]) == [0], "a seed without one of the rows says nothing"
    chosen = smallest(of_case[AUTO.key][0], 0.90)
    assert chosen is not None
    assert (chosen.bytes, chosen.setting) == (200, "subspace: 200 B")


def test_without_the_trained_rows_there_is_no_such_row() -> None:
    of_case = {"zstd": {0: [point(900, 1.0)]}, AUTO.key: {0: []}}
    unite(of_case)
    assert list(of_case) == ["zstd"]


def test_the_plot_draws_the_settings_that_are_worth_their_bytes() -> None:
    seeds = [[point(100, 0.7, test=0.6), point(200, 0.6, test=0.9), point(300, 0.9, test=0.8)] for _ in range(3)]
    assert front(dict(enumerate(seeds))) == [(100.0, 0.6), (300.0, 0.8)]
    assert front({0: [point(100, 0.7, test=None)]}) == []
