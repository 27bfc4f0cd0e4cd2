"""The exact plan is the best of all there are, whatever is wished; searches come close; repair moves little."""

import math
import time
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
from small_sites import all_plans, device, pair_task, random_site, wide_site

from sprat_server.placement import solve as solving
from sprat_server.placement.explain import uses
from sprat_server.placement.neighbourhoods import better
from sprat_server.placement.plan import NO_WISHES, Plan, Wishes, cost_of, latency_of
from sprat_server.placement.program import Answer, Proven, solve
from sprat_server.placement.search import greedy, improve
from sprat_server.placement.site import Device, Edge, Module, Node, Site, Task
from sprat_server.placement.solve import Placement, place, repair
from sprat_server.placement.standby import with_standby
from sprat_shared.errors import InvalidInput

EVERYWHERE = {"a": 0.1, "b": 0.2, "c": 0.4}
MODULES = [
    Module(name=name, memory_bytes=40, file_bytes=40, seconds=EVERYWHERE) for name in ("vision", "words", "head")
]
ON_A = {"see": "a", "read": "a", "judge": "a"}


def small(**more: Any) -> Site:
    devices = [device("a", **more), device("b"), device("c")]
    return Site(devices, MODULES, [pair_task()])


# what a plan costs ------------------------------------------------------------------------------------------------


def test_uses_beside_each_other_on_one_device_take_turns_and_what_stays_there_takes_no_time() -> None:
    site = small()
    assert latency_of(site, site.tasks[0], ON_A) == pytest.approx(0.1 + 0.1 + 0.1)


def test_a_request_takes_as_long_as_its_longest_branch_with_the_way_to_the_hub_and_down() -> None:
    site = small(delay_s=0.05)
    route = {"see": "b", "read": "a", "judge": "a"}
    to_b, back = 100 / 1000 + 0.05 + 100 / 1000, 20 / 1000 + 20 / 1000 + 0.05
    assert latency_of(site, site.tasks[0], route) == pytest.approx(to_b + 0.2 + back + 0.1)


def test_a_plan_says_what_it_takes_of_each_device_and_what_is_too_much() -> None:
    site = Site([device("a", utilisation=0.5), device("b"), device("c")], MODULES, [pair_task(rate=2.0)])
    cost = cost_of(site, NO_WISHES, Plan(hosts={name: frozenset("a") for name in site.module}, routes={"pair": ON_A}))
    assert (cost.memory["a"], cost.over) == (120, {"a": 20})
    assert cost.overloaded == {"a": pytest.approx(2.0 * 0.3 - 0.5)}
    assert cost.moved == 120
    assert not cost.fits


# the best of all --------------------------------------------------------------------------------------------------

WISHES = {
    "plain": NO_WISHES,
    "busy": NO_WISHES,
    "energy and moves": Wishes(
        second_per_joule=0.02, second_per_byte=0.001, held={"vision": frozenset("b"), "head": frozenset("ac")}
    ),
    "copies": Wishes(replicas=2, second_per_byte=1e-5),
    "survives the loss of one": Wishes(survives_one=True),
    "survives, busy": Wishes(survives_one=True),
    "pinned": Wishes(pinned={"head": frozenset("a")}),
}
RATES = {"busy": 1.5, "survives, busy": 0.8}


@pytest.mark.parametrize("wished", list(WISHES))
def test_the_exact_plan_is_the_best_of_all_plans_there_are(wished: str) -> None:
    feasible = 0
    for seed in range(8 if "copies" in wished or "survives" in wished else 25):
        site = random_site(seed, rate=RATES.get(wished, 0.0))
        wishes = WISHES[wished]
        costs = [cost_of(site, wishes, plan) for plan in all_plans(site, wishes)]
        totals = [cost.total for cost in costs if cost.fits]
        answer = solve(site, wishes, seconds=20.0)
        if not totals:
            assert answer.proven is Proven.INFEASIBLE, seed
            continue
        feasible += 1
        assert answer.plan is not None
        assert answer.proven is Proven.OPTIMAL
        assert cost_of(site, wishes, answer.plan).fits
        assert answer.total == pytest.approx(min(totals), rel=2e-6), seed
        assert answer.bound <= answer.total
        assert answer.gap <= 2e-6
    assert feasible >= 3, "the sites say something"


@pytest.mark.parametrize("wished", list(WISHES))
def test_a_search_finds_plans_that_fit_and_is_never_better_than_the_best(wished: str) -> None:
    wishes, best = WISHES[wished], 0
    for seed in range(8):
        site = random_site(seed, rate=RATES.get(wished, 0.0))
        exact, steps = solve(site, wishes, seconds=20.0), count()
        found = improve(site, wishes, goes_on=lambda steps=steps: next(steps) < 3000, seed=seed)  # type: ignore[misc]
        if exact.plan is None or found is None:
            continue
        cost = cost_of(site, wishes, found)
        assert cost.fits, seed
        assert cost.total >= exact.total * (1 - 2e-6)
        best += cost.total <= exact.total * (1 + 2e-6)
        first = greedy(site, wishes)
        assert first is not None
        assert not cost_of(site, wishes, first).fits or cost.total <= cost_of(site, wishes, first).total + 1e-9
    assert best >= 2


@pytest.mark.parametrize("wished", ["plain", "pinned", "survives the loss of one"])
def test_a_plan_of_a_large_site_is_bettered_part_by_part_and_meets_what_is_wished(wished: str) -> None:
    site, ticks = wide_site(24), count()
    wishes = {**WISHES, "pinned": Wishes(pinned={"module-03": frozenset("b")})}[wished]
    first = greedy(site, wishes)
    assert first is not None
    before = cost_of(site, wishes, first)
    found = better(site, wishes, first, seconds=40.0, clock=lambda: float(next(ticks)))
    after = cost_of(site, wishes, found)
    assert before.fits
    assert after.fits
    assert after.total < 0.98 * before.total
    assert all(hosts <= found.hosts[name] for name, hosts in wishes.pinned.items())
    assert not wishes.survives_one or all(len(hosts) == 2 for hosts in found.hosts.values())


def test_a_small_site_is_not_solved_in_parts() -> None:
    first = greedy(small(), NO_WISHES)
    assert first is not None
    assert better(small(), NO_WISHES, first, seconds=1.0, clock=lambda: 0.0) is first, "else it would never end"


def test_where_time_is_up_the_first_plan_stands_with_a_bound() -> None:
    site = small()
    first = improve(site, NO_WISHES, goes_on=lambda: False)
    assert first is not None
    answer = solve(site, NO_WISHES, seconds=0.0, start=first)
    assert answer.plan is not None
    assert answer.bound <= answer.total <= cost_of(site, NO_WISHES, first).total


def test_a_module_that_can_run_nowhere_has_no_plan() -> None:
    site = Site([device("a")], [Module(name="vision", memory_bytes=1, seconds={})], [])
    assert improve(site, NO_WISHES, goes_on=lambda: True) is None
    assert solve(site, NO_WISHES, seconds=1.0).proven is Proven.INFEASIBLE


def test_two_copies_are_held_where_the_loss_of_one_device_must_be_survived() -> None:
    placed = place(small(), Wishes(survives_one=True), seconds=5.0, clock=time.monotonic)
    assert placed.answer.plan is not None
    assert {len(hosts) for hosts in placed.answer.plan.hosts.values()} == {2}
    for gone in "bc":
        fixed = after_loss(small(), placed.answer.plan, gone)
        assert fixed.answer.plan is not None
        assert all(gone not in hosts for hosts in fixed.answer.plan.hosts.values())


def test_a_plan_that_survives_a_loss_leaves_the_others_time_for_what_the_lost_one_did() -> None:
    """Only b is quick; a and c have time for a part of what it does, and only together."""
    devices = [*(device(name, utilisation=0.5) for name in "abc"), device("camera")]
    vision = Module(name="vision", memory_bytes=10, seconds={"a": 0.1, "b": 0.01, "c": 0.1})
    tasks = [
        Task(
            f"look-{number}",
            [Node(name="image", at="camera"), Node(name="see", module="vision"), Node(name="said", at="camera")],
            [Edge(source="image", target="see", nbytes=1.0), Edge(source="see", target="said", nbytes=1.0)],
            rate=2.0,
        )
        for number in range(4)
    ]
    site = Site(devices, [vision], tasks)
    two = place(site, Wishes(survives_one=True), seconds=5.0, clock=time.monotonic).answer
    assert two.proven is Proven.INFEASIBLE, "8 requests of 0.1 s a second are more than half of one device"
    wishes = Wishes(survives_one=True, replicas=3)
    three = place(site, wishes, seconds=5.0, clock=time.monotonic)
    plan = three.answer.plan
    assert plan is not None
    assert three.cost is not None
    assert (three.answer.proven, three.cost.fits) == (Proven.OPTIMAL, True)
    assert {host for way in plan.routes.values() for host in way.values()} == {"b"}
    assert sorted(way["see"] for way in plan.standby.values()) == ["a", "a", "c", "c"]
    assert three.cost.busy_after["b"] == pytest.approx({"a": 0.4, "c": 0.4, "camera": 0.0})
    [found] = [use for use in uses(site, three.cost) if use.device == "a"]
    assert (found.busy, found.busy_after, found.lost, found.binds) == (0.0, pytest.approx(0.8), "b", False)
    crowded = replace(plan, standby={name: {"see": "a"} for name in plan.standby})
    assert cost_of(site, wishes, crowded).overloaded_after == {"b": {"a": pytest.approx(0.3)}}
    assert cost_of(site, wishes, with_standby(site, crowded, crowded.standby)).fits, "bettered"
    assert plan.route_after("look-0", "b") == plan.standby["look-0"]
    assert plan.route_after("look-0", "a") == plan.routes["look-0"]


# after a loss -----------------------------------------------------------------------------------------------------


def test_repair_leaves_what_runs_where_it_is_and_places_what_was_lost() -> None:
    before = Plan(
        hosts={"vision": frozenset("b"), "words": frozenset("c"), "head": frozenset("b")},
        routes={"pair": {"see": "b", "read": "c", "judge": "b"}},
    )
    fixed = after_loss(small(), before, "b")
    assert fixed.wishes.pinned == {"words": frozenset("c")}
    assert fixed.answer.plan is not None
    assert fixed.answer.plan.hosts == {"vision": frozenset("a"), "words": frozenset("c"), "head": frozenset("a")}


@pytest.mark.parametrize(("room", "words"), [(130, "a"), (110, "c")], ids=["stays", "moves"])
def test_what_runs_moves_only_where_what_was_lost_has_no_room_else(room: int, words: str) -> None:
    devices = [device("a", 80), device("b", 90), device("c", room)]
    modules = [
        Module(name=name, memory_bytes=size, seconds=EVERYWHERE)
        for name, size in (("vision", 80), ("words", 50), ("head", 40))
    ]
    before = Plan(
        hosts={"vision": frozenset("b"), "words": frozenset("a"), "head": frozenset("c")},
        routes={"pair": {"see": "b", "read": "a", "judge": "c"}},
    )
    fixed = after_loss(Site(devices, modules, [pair_task()]), before, "b")
    assert fixed.answer.plan is not None
    assert fixed.cost is not None
    assert fixed.cost.fits
    assert fixed.answer.plan.hosts["words"] == frozenset(words)
    assert bool(fixed.wishes.pinned) == (words == "a")


@pytest.mark.parametrize("soon", [True, False])
def test_where_modules_must_move_the_first_plan_is_taken_and_time_given_only_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch, *, soon: bool
) -> None:
    site, given = Site([device("a", 80), device("c", 110)], [], []), list[float]()
    nothing = Answer(plan=None, total=math.inf, bound=0.0, proven=Proven.NOTHING)
    found = replace(nothing, plan=Plan(hosts={}, routes={}), proven=Proven.WITHIN)

    def placing(site: Site, wishes: Wishes, *, seconds: float, clock: Any) -> Placement:  # noqa: ARG001
        given.append(seconds)
        return Placement(site=site, wishes=wishes, answer=found if soon or len(given) > 1 else nothing, cost=None)

    monkeypatch.setattr(solving, "solve", lambda *_words, **_more: nothing)
    monkeypatch.setattr(solving, "place", placing)
    assert repair(site, NO_WISHES, {}, seconds=30.0, clock=time.monotonic).answer is found
    assert given == ([0.1] if soon else [0.1, 30.0])


@pytest.mark.parametrize("room", [150, 30])
def test_a_repair_survives_one_more_loss_only_where_what_is_left_can(room: int) -> None:
    site = Site([device("a", 240), device("b", 240), device("c", room)], MODULES, [pair_task()])
    before = Plan(hosts=dict.fromkeys(site.module, frozenset("ab")), routes={"pair": ON_A})
    fixed = after_loss(site, before, "b", Wishes(survives_one=True))
    assert fixed.answer.plan is not None
    assert fixed.wishes.survives_one == (room == 150)


def after_loss(site: Site, plan: Plan, lost: str, wishes: Wishes = NO_WISHES) -> Placement:
    """Return the repair of a plan when a device of its site is gone."""
    left = site.without(lost)
    staying = {name: hosts - {lost} for name, hosts in plan.hosts.items() if hosts - {lost}}
    return repair(left, wishes, staying, seconds=5.0, clock=time.monotonic)


def test_a_task_whose_data_were_at_a_lost_device_goes_with_it() -> None:
    left = random_site(0).without(["c"])
    assert [task.name for task in left.tasks] == ["pair"]
    assert all("c" not in module.seconds for module in left.modules)


# what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"devices": []}, "a site needs a device"),
        ({"devices": [device("a"), device("a")]}, "device a is there twice"),
        ({"devices": [device("a", up=0.0)]}, "device a: memory and delay"),
        ({"devices": [device("a", utilisation=1.5)]}, "utilisation within 0 and 1"),
        ({"devices": [Device(name="a", memory_bytes=-1, up=1.0, down=1.0)]}, "device a: memory and delay"),
        ({"modules": [*MODULES, MODULES[0]]}, "module vision is there twice"),
        ({"modules": [replace(MODULES[0], seconds={"z": 1.0})]}, "module vision was measured on z"),
        ({"modules": [replace(MODULES[0], seconds={"a": float("nan")})]}, "vision on a: nan is no time"),
        ({"modules": [replace(MODULES[0], memory_bytes=-1)]}, "module vision: its bytes are negative"),
        ({"modules": MODULES[:2]}, "task pair: node judge: no module head"),
        ({"tasks": [Task("t", [Node(name="n")], [])]}, "node n names a module to run or a device"),
        ({"tasks": [Task("t", [Node(name="n", at="z")], [])]}, "task t: node n: no device z"),
        ({"tasks": [Task("t", [Node(name="n", at="a"), Node(name="n", at="a")], [])]}, "task t: node n is there twice"),
        (
            {"tasks": [Task("t", [Node(name="n", at="a")], [Edge(source="n", target="m", nbytes=1)])]},
            "task t: edge n -> m: no node m",
        ),
        (
            {"tasks": [Task("t", [Node(name="n", at="a")], [Edge(source="n", target="n", nbytes=-1)])]},
            "task t: edge n -> n: -1 bytes",
        ),
        (
            {"tasks": [Task("t", [Node(name="n", at="a")], [Edge(source="n", target="n", nbytes=1)])]},
            "n -> n is a circle",
        ),
        ({"tasks": [Task("t", [], [], rate=-1.0)]}, "task t: rate and weight"),
    ],
)
def test_a_site_that_is_none_is_refused_with_what_is_wrong(changes: dict[str, Any], says: str) -> None:
    parts: dict[str, Any] = {"devices": [device(name) for name in "abc"], "modules": MODULES, "tasks": [pair_task()]}
    with pytest.raises(InvalidInput, match=says) as bad:
        Site(**{**parts, **changes})
    assert bad.value.code == "placement.invalid"


def test_a_module_cannot_be_pinned_where_it_cannot_run() -> None:
    modules = [replace(MODULES[0], seconds={"a": 0.1}), *MODULES[1:]]
    site = Site([device(name) for name in "abc"], modules, [pair_task()])
    with pytest.raises(InvalidInput, match="pinned: module vision was not measured on b"):
        place(site, Wishes(pinned={"vision": frozenset("b")}), seconds=1.0, clock=time.monotonic)


def test_a_wish_for_what_there_is_not_is_refused() -> None:
    for wishes in (Wishes(pinned={"nose": frozenset("a")}), Wishes(held={"head": frozenset("z")})):
        with pytest.raises(InvalidInput, match="the site has no such module or device"):
            solve(small(), wishes, seconds=1.0)
