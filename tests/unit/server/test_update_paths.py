"""The updates with the fewest bytes from what a device holds to what it should run."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sprat_server.registry.models import UpdateFile
from sprat_server.registry.paths import FILE_BYTES, cheapest_from, cheapest_path, cheapest_route, cost
from sprat_shared.errors import NotFound


def update(base: int | None, number: int, size: int) -> UpdateFile:
    return UpdateFile(base_number=base, number=number, bytes=size)


def way(updates: list[UpdateFile], base: int | None, target: int) -> list[tuple[int | None, int]]:
    return [(step.base_number, step.number) for step in cheapest_path(updates, base, target)]


LINEAGE = [
    update(None, 1, 1000),
    update(None, 2, 1000),
    update(1, 2, 10),
    update(None, 3, 1000),
    update(2, 3, 20),
]


def test_a_device_without_the_model_gets_the_full_update() -> None:
    assert way(LINEAGE, None, 1) == [(None, 1)]


def test_a_device_without_the_model_takes_no_detour_over_an_older_release() -> None:
    lineage = [update(None, 1, 100), update(None, 2, 500), update(1, 2, 10)]
    assert way(lineage, None, 2) == [(None, 2)]
    assert way(lineage, 3, 2) == [(None, 2)]


def test_a_chain_is_taken_where_there_is_no_direct_update() -> None:
    assert way(LINEAGE, 1, 3) == [(1, 2), (2, 3)]


def test_a_direct_update_is_taken_where_it_is_smaller_than_the_chain() -> None:
    assert way([*LINEAGE, update(1, 3, 29)], 1, 3) == [(1, 3)]


def test_a_file_costs_more_than_its_bytes_so_one_is_taken_where_two_have_a_few_bytes_less() -> None:
    assert way([*LINEAGE, update(1, 3, 30 + FILE_BYTES)], 1, 3) == [(1, 3)]
    assert way([*LINEAGE, update(1, 3, 31 + FILE_BYTES)], 1, 3) == [(1, 2), (2, 3)]


def test_a_device_starts_from_the_release_it_could_go_back_to_where_that_is_cheaper() -> None:
    lineage = [update(None, 4, 1000), update(2, 4, 15), update(3, 4, 15), update(1, 4, 14)]
    assert [step.base_number for step in cheapest_from(lineage, [5, 2], 4)] == [2]
    assert [step.base_number for step in cheapest_from(lineage, [3, 2], 4)] == [3], "of equals the active one"
    assert [step.base_number for step in cheapest_from(lineage, [3, 1], 4)] == [1]
    assert cheapest_from(lineage, [], 4) == [lineage[0]]
    assert cheapest_from(lineage, [3, 4], 4) == [], "it is there already"


def test_a_route_undoes_an_update_where_two_releases_came_from_the_same_one() -> None:
    lineage = [update(None, 3, 1000), update(1, 2, 10), update(1, 3, 20)]
    assert way(lineage, 2, 3) == [(None, 3)], "no device can go back over an update"
    hops = cheapest_route(lineage, 2, 3)
    assert hops is not None
    assert [(hop.update.base_number, hop.update.number, hop.undone) for hop in hops] == [(1, 2, True), (1, 3, False)]


def test_there_is_no_route_where_nothing_but_full_updates_leads() -> None:
    assert cheapest_route([update(None, 1, 5), update(None, 2, 5)], 1, 2) is None


def test_the_full_update_is_taken_where_the_chain_costs_more() -> None:
    lineage = [update(None, 2, 50), update(1, 2, 60), update(None, 1, 50)]
    assert way(lineage, 1, 2) == [(None, 2)]


def test_an_older_release_is_reached_by_its_full_update() -> None:
    assert way(LINEAGE, 3, 1) == [(None, 1)]


def test_nothing_is_sent_to_a_device_that_holds_the_release() -> None:
    assert way(LINEAGE, 2, 2) == []


def test_no_way_is_an_error_that_names_the_release() -> None:
    with pytest.raises(NotFound, match="release 7"):
        cheapest_path(LINEAGE, 1, 7)


edges = st.lists(
    st.tuples(st.one_of(st.none(), st.integers(1, 5)), st.integers(1, 5), st.integers(1, 50)).filter(
        lambda edge: edge[0] != edge[1]
    ),
    max_size=7,
)


@given(edges, st.one_of(st.none(), st.integers(1, 5)), st.integers(1, 5))
def test_no_other_way_has_fewer_bytes(
    lineage: list[tuple[int | None, int, int]], base: int | None, target: int
) -> None:
    updates = [update(*edge) for edge in lineage]
    ways = [
        steps
        for length in range(1, 6)
        for steps in itertools.permutations(updates, length)
        if steps[0].base_number == base or (steps[0].base_number is None and length == 1)
        if all(a.number == b.base_number for a, b in itertools.pairwise(steps))
        if steps[-1].number == target and (base is not None or length == 1)
    ]
    costs = [sum(step.bytes + FILE_BYTES for step in steps) for steps in ways] + ([0] if base == target else [])
    if costs:
        assert cost(cheapest_path(updates, base, target)) == min(costs)
    else:
        with pytest.raises(NotFound):
            cheapest_path(updates, base, target)


@given(edges, st.lists(st.integers(1, 5), min_size=1, max_size=2, unique=True), st.integers(1, 5))
def test_the_better_of_both_slots_is_the_start(
    lineage: list[tuple[int | None, int, int]], held: list[int], target: int
) -> None:
    updates = [update(None, target, 99), *(update(*edge) for edge in lineage)]
    found = cheapest_from(updates, held, target)
    assert cost(found) == min(cost(cheapest_path(updates, base, target)) for base in held)
