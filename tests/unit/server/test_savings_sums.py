"""What updates took beside full models: sums, prices by link, projections."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sprat_server.fleet.savings import Delivered, Prices, projections, sum_of

PRICES = Prices(currency="EUR", per_mb=(6.5, 0.1), per_update=0.02)
ROW = Delivered(
    model="digits",
    base=1,
    release=2,
    link=1,
    updates=10,
    devices=10,
    bytes=20_000,
    full_bytes=10_000_000,
    model_bytes=20_000_000,
    samples=1000,
    old_correct=900,
    new_correct=930,
)


def test_a_sum_costs_what_its_links_cost() -> None:
    total = sum_of([ROW, replace(ROW, link=0)], PRICES)
    assert total.cost == pytest.approx(20 * 0.02 + 0.02 * 0.1 + 0.02 * 6.5)
    assert total.full_cost == pytest.approx(20 * 0.02 + 10 * 0.1 + 10 * 6.5)
    assert total.saved_share == pytest.approx(0.998)
    assert (total.accuracy_before, total.accuracy_after) == (0.9, 0.93)


def test_nothing_is_nothing_and_no_division() -> None:
    total = sum_of([], PRICES)
    assert (total.updates, total.cost, total.saved_share, total.accuracy_after) == (0, 0, None, None)


def test_what_was_read_for_nothing_costs_and_saves_nothing() -> None:
    failed = replace(ROW, updates=0, full_bytes=0, model_bytes=0, samples=0, old_correct=0, new_correct=0)
    total = sum_of([ROW, failed], PRICES)
    assert total.bytes == 40_000
    assert total.full_cost == sum_of([ROW], PRICES).full_cost


def test_half_a_year_of_ten_days_is_eighteen_and_a_quarter_times_as_much() -> None:
    half, two = projections(sum_of([ROW], PRICES), 10.0)
    assert (half.horizon, two.horizon) == ("6 months", "2 years")
    assert half.bytes == pytest.approx(18.25 * 20_000)
    assert two.updates == pytest.approx(730)


def test_nothing_is_projected_from_less_than_a_day() -> None:
    assert projections(sum_of([ROW], PRICES), 0.99) == []


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 10**9), st.integers(0, 1)), max_size=8))
def test_a_sum_is_the_sum_of_its_parts(parts: list[tuple[int, int, int]]) -> None:
    rows = [replace(ROW, updates=count, bytes=size, link=link) for count, size, link in parts]
    whole, each = sum_of(rows, PRICES), [sum_of([row], PRICES) for row in rows]
    assert whole.bytes == sum(one.bytes for one in each)
    assert whole.cost == pytest.approx(sum(one.cost for one in each))
