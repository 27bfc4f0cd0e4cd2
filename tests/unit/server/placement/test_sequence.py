"""Plans in between: the fewest that there are, each with room for it and the one before; none where there are none."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain, combinations, pairwise, product
from random import Random

import pytest
from small_sites import device, pair_task

from sprat_server.placement.memory import Held, lacking
from sprat_server.placement.plan import NO_WISHES, Wishes, cost_of
from sprat_server.placement.program import Proven
from sprat_server.placement.sequence import MOST_STEPS, Releases, between
from sprat_server.placement.site import Module, Site

NAMES = ("vision", "words", "head")


def made(memory: Mapping[str, int], sizes: Mapping[str, int], release: int = 1, **more: object) -> Releases:
    modules = [
        Module(name=name, memory_bytes=sizes[name], file_bytes=10, seconds={"a": 0.1, "b": 0.2, "c": 0.3})
        for name in NAMES
    ]
    devices = [device(name, room) for name, room in memory.items()]
    site = Site(devices, modules, [pair_task()])
    return Releases(site=site, wishes=replace(NO_WISHES, **more), names={name: f"{name}@{release}" for name in NAMES})


def sizes_of(*releases: Releases) -> dict[str, int]:
    return {one.names[module.name]: module.memory_bytes for one in releases for module in one.site.modules}


def held(release: int = 1, **hosts: str) -> dict[str, frozenset[str]]:
    return {f"{name}@{release}": frozenset(on) for name, on in hosts.items()}


def placements(releases: Releases, memory: Mapping[str, int], copies: int) -> Iterator[dict[str, frozenset[str]]]:
    """Every way to have each module on one device or some."""
    choices = list(chain.from_iterable(combinations(memory, count) for count in range(1, copies + 1)))
    for chosen in product(choices, repeat=len(NAMES)):
        found = {releases.names[name]: frozenset(on) for name, on in zip(NAMES, chosen, strict=True)}
        if not lacking(memory, sizes_of(releases), found, found):
            yield found


def fewest(memory: Mapping[str, int], before: Held, after: Held, old: Releases, new: Releases) -> int | None:
    """The fewest plans in between, breadth first; plans of old releases do not follow new ones."""
    sizes = sizes_of(old, new)
    copies = old.wishes.replicas
    states = [(0, one) for one in placements(old, memory, copies)]
    if old.names != new.names:
        states += [(1, one) for one in placements(new, memory, copies)]
    reached: list[tuple[int, Held]] = [(0, before)]
    seen: list[tuple[int, Held]] = []
    for steps in range(MOST_STEPS + 1):
        if any(not lacking(memory, sizes, state, after) for _, state in reached):
            return steps
        seen += reached
        reached = [
            (age, state)
            for age, state in states
            if (age, state) not in seen
            and any(one <= age and not lacking(memory, sizes, where, state) for one, where in reached)
        ]
    return None


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("updated", [False, True])
def test_as_few_plans_in_between_are_found_as_there_are(copies: int, *, updated: bool) -> None:
    counts: dict[int | None, int] = {}
    for seed in range(60 if copies == 1 else 25):
        random = Random(seed)
        sizes = {name: random.randint(10, 60) for name in NAMES}
        memory = {name: random.randint(50, 110) for name in "abc"}
        old = made(memory, sizes, replicas=copies)
        grown = {name: size + random.randint(0, 10) for name, size in sizes.items()}
        new = made(memory, grown, 2, replicas=copies) if updated else old
        starts, ends = (list(placements(one, memory, 1)) for one in (old, new))
        if not starts or not ends:
            continue
        before, after = random.choice(starts), random.choice(ends)
        wanted = fewest(memory, before, after, old, new)
        found = between(memory, sizes_of(old, new), before, after, old, new, seconds=30.0)
        assert (None if found.steps is None else len(found.steps)) == wanted, seed
        counts[wanted] = counts.get(wanted, 0) + 1
        if found.steps is None:
            assert found.proven is Proven.INFEASIBLE
            continue
        assert found.proven is Proven.OPTIMAL
        way = [before, *(step.of.held(step.plan) for step in found.steps), after]
        assert not any(lacking(memory, sizes_of(old, new), one, other) for one, other in pairwise(way))
        assert all(cost_of(step.of.site, step.of.wishes, step.plan).fits for step in found.steps)
        ages = [step.of is new for step in found.steps]
        assert ages == sorted(ages) or not updated, "no old releases follow new ones"
    assert counts.get(0, 0)
    assert counts.get(1, 0)
    assert counts.get(2, 0) or counts.get(None, 0), counts


def test_two_modules_that_change_places_go_by_a_third_device() -> None:
    """a and b have room for one module; only c has room beside its own."""
    memory = {"a": 50, "b": 50, "c": 60}
    releases = made(memory, {"vision": 50, "words": 50, "head": 10})
    before, after = held(vision="a", words="b", head="c"), held(vision="b", words="a", head="c")
    assert lacking(memory, sizes_of(releases), before, after) == {"a": 50, "b": 50}
    found = between(memory, sizes_of(releases), before, after, releases, releases, seconds=30.0)
    assert found.steps is not None
    assert len(found.steps) == 2
    first, second = (step.plan.hosts for step in found.steps)
    moved = next(name for name in ("vision", "words") if first[name] == {"c"})
    other = "words" if moved == "vision" else "vision"
    assert first[other] == before[f"{other}@1"]
    assert (second[moved], second[other]) == ({"c"}, after[f"{other}@1"])


def test_where_no_device_has_room_there_is_no_way_and_that_is_proven() -> None:
    memory = {"a": 50, "b": 50, "c": 10}
    releases = made(memory, {"vision": 50, "words": 50, "head": 10})
    before, after = held(vision="a", words="b", head="c"), held(vision="b", words="a", head="c")
    found = between(memory, sizes_of(releases), before, after, releases, releases, seconds=30.0)
    assert (found.steps, found.proven) == (None, Proven.INFEASIBLE)


def test_what_is_the_same_release_is_there_once_and_devices_of_which_nothing_is_known_have_room() -> None:
    sizes = {"vision@1": 30, "vision@2": 40, "words@1": 5}
    before = {"vision@1": frozenset("ab"), "words@1": frozenset("a")}
    after = {"vision@2": frozenset("ab"), "words@1": frozenset("a")}
    assert lacking({"a": 70}, sizes, before, after) == {"a": 5}
    assert lacking({}, sizes, before, after) == {}


def test_a_copy_that_is_wished_for_is_no_reason_to_find_no_way() -> None:
    """Of a module on two devices, one copy goes first, so that the new release fits beside the other."""
    memory = {"a": 70, "b": 70, "c": 10}
    old = made(memory, {"vision": 40, "words": 10, "head": 10}, replicas=2)
    new = made(memory, {"vision": 45, "words": 10, "head": 10}, 2, replicas=2)
    before = held(vision="ab", words="a", head="c")
    after = held(2, vision="b", words="a", head="c")
    found = between(memory, sizes_of(old, new), before, after, old, new, seconds=30.0)
    assert found.steps is None or all(step.plan.hosts["vision"] for step in found.steps)
    wanted = fewest(memory, before, after, old, new)
    assert (None if found.steps is None else len(found.steps)) == wanted


def test_wishes_hold_in_between_too() -> None:
    memory = {"a": 50, "b": 50, "c": 60}
    free = made(memory, {"vision": 50, "words": 50, "head": 10})
    pinned = replace(free, wishes=Wishes(pinned={"vision": frozenset("a")}))
    before, after = held(vision="a", words="b", head="c"), held(vision="b", words="a", head="c")
    for releases, count in ((free, 2), (pinned, None)):
        found = between(memory, sizes_of(releases), before, after, releases, releases, seconds=30.0)
        assert (None if found.steps is None else len(found.steps)) == count
