"""Where a device has no room for two plans at once, plans in between lead there, each of which answers."""

from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest
from fastapi import FastAPI
from fleet_calls import made
from http_calls import Api
from sharing_calls import runner
from site_calls import PLANS, Site, refused

from sprat_server.db.blobs import Blobs
from sprat_server.settings import Settings
from sprat_shared.protocol.site_report import PlanState

READY, SERVING, REFUSED = PlanState.READY, PlanState.SERVING, PlanState.REFUSED
MODULE = 2000  # bytes of memory, each
BOTH = {"vision": ["box", "desk"], "text": ["camera"], "head": ["camera"]}


@pytest.fixture
def site(app: FastAPI, settings: Settings, blobs: Blobs, admin: Api) -> Site:
    return Site(app, runner(app, settings, blobs), admin, blobs)


def devices(**memory: int) -> list[dict[str, Any]]:
    return [{"name": name, "memory_bytes": nbytes} for name, nbytes in memory.items()]


def preview(site: Site, number: int) -> dict[str, Any]:
    return made(site.api.get(f"{PLANS}/{number}/preview"))


def hosts(site: Site, number: int) -> dict[str, tuple[int, list[str]]]:
    return {one["model"]: (one["release"], one["hosts"]) for one in site.look(number)["modules"]}


def loaded(site: Site, *numbers: int) -> dict[str, int]:
    """The bytes that each device has loaded by some plans at once, each release once."""
    held = {
        (name, one["model"], one["release"])
        for number in numbers
        for one in site.look(number)["modules"]
        for name in one["hosts"]
    }
    return {name: sum(MODULE for device, *_ in held if device == name) for name in site.devices}


def updated(site: Site) -> int:
    """Serve vision on two devices with room for one and a half, and plan its next release; return that plan."""
    site.create(devices=devices(camera=4 * MODULE, box=3000, desk=3000))
    site.served(hosts=BOTH)
    site.release("vision")
    return site.planned(hosts=BOTH)


def test_an_update_of_a_module_that_does_not_fit_twice_goes_device_by_device(site: Site) -> None:
    goal = updated(site)
    shown = site.look(goal)
    assert (goal, shown["steps"]) == (4, [2, 3])
    assert preview(site, goal)["steps"] == [2, 3]
    assert preview(site, goal)["obstacles"] == []
    for one, other in pairwise([1, 2, 3, goal]):
        assert all(nbytes <= {"camera": 8000}.get(name, 3000) for name, nbytes in loaded(site, one, other).items())
        assert {*hosts(site, other)} == {"vision", "text", "head"}, "every task can be answered"
    assert {site.look(one)["cause"] for one in (2, 3)} == {"step"}
    assert {site.look(one)["parent"] for one in (2, 3)} == {goal}

    applied = site.apply(goal)
    assert applied["state"] == "planned"
    assert applied["wished_by"] is not None
    for at, number in enumerate((2, 3, goal)):
        site.upkeep(datetime.now(UTC))
        assert site.look(number)["state"] == "holding", number
        site.upkeep(datetime.now(UTC))
        assert [site.look(later)["state"] for later in (2, 3, goal)[at + 1 :]] == ["planned"] * (2 - at)
        site.everyone(number, READY)
        site.everyone(number, SERVING)
        wishes = {site.wish(name, "vision") for name in ("box", "desk")}
        assert (2, False) not in wishes or number == goal, "by a step a device runs nothing, which would stay loaded"
    assert wishes == {(2, False)}
    shown = site.look(goal)
    assert (shown["state"], shown["wished_by"]) == ("serving", None)
    assert hosts(site, goal)["vision"] == (2, ["box", "desk"])
    assert [site.look(one)["state"] for one in (1, 2, 3)] == ["retired"] * 3
    site.upkeep(datetime.now(UTC))
    assert len(made(site.api.get(PLANS))["items"]) == 4


def test_a_step_that_fails_stops_at_a_plan_that_answers(site: Site) -> None:
    goal = updated(site)
    site.apply(goal)
    site.everyone(2, READY)
    site.everyone(2, SERVING)
    site.upkeep(datetime.now(UTC))
    site.say("box", 3, REFUSED, error_code="memory.short", error_detail="90 MB are missing")
    site.upkeep(datetime.now(UTC))
    site.upkeep(datetime.now(UTC))
    shown = site.look(goal)
    assert (shown["state"], shown["wished_by"]) == ("planned", None)
    assert shown["reason"] == "plan 3, a step to it, is failed: box: memory.short: 90 MB are missing"
    assert (site.look(2)["state"], site.look(3)["state"]) == ("serving", "failed")
    assert [site.signed(name) for name in site.devices] == [{2: "serve"}] * 3
    halted = [one for one in site.events() if one["type"] == "site.halted"]
    assert [(one["data"]["plan"], one["data"]["reason"]) for one in halted] == [(goal, shown["reason"])]
    answer = site.api.post(f"{PLANS}/{goal}/apply", json={})
    assert refused(answer)[0] == 409, "its way began at another plan"


def test_the_way_to_a_plan_can_be_aborted(site: Site) -> None:
    goal = updated(site)
    site.apply(goal)
    aborted = made(site.api.post(f"{PLANS}/{goal}/abort", json={"reason": "not now"}))
    assert (aborted["state"], aborted["wished_by"], aborted["reason"]) == ("planned", None, "not now")
    assert (site.look(1)["state"], site.look(2)["state"]) == ("serving", "aborted")
    site.upkeep(datetime.now(UTC))
    assert site.look(3)["state"] == "planned"


def test_where_no_plans_in_between_lead_there_it_is_said_which_device_lacks_how_much(site: Site) -> None:
    site.create(devices=devices(camera=MODULE, box=MODULE, desk=MODULE))
    site.served(hosts={"vision": ["box"], "text": ["desk"], "head": ["camera"]})
    number = site.planned(hosts={"vision": ["desk"], "text": ["box"], "head": ["camera"]})
    assert site.look(number)["steps"] == []
    found = preview(site, number)["obstacles"]
    assert [one.split(" for the modules")[0] for one in found] == ["box lacks 2000 bytes", "desk lacks 2000 bytes"]
    assert all("no plans in between help" in one and one.endswith("(site.no-room)") for one in found)
    answer = site.api.post(f"{PLANS}/{number}/apply", json={})
    assert refused(answer) == (409, "site.no-room")
    assert "box lacks 2000 bytes for the modules of plans 1 and 2 at once" in answer.text
    memory = devices(camera=MODULE, box=2 * MODULE, desk=2 * MODULE)
    made(site.api.request("PUT", "/api/v1/sites/line-3", json={"devices": memory}))
    assert site.apply(number)["state"] == "holding", "room was made"


def test_a_plan_that_was_made_before_another_one_served_is_to_be_made_anew_where_it_does_not_fit(site: Site) -> None:
    site.create(devices=devices(camera=4 * MODULE, box=3000, desk=3000))
    one = site.planned(hosts=BOTH)
    site.release("vision")
    other = site.planned(hosts=BOTH)
    site.apply(one)
    site.everyone(one, READY)
    site.everyone(one, SERVING)
    answer = site.api.post(f"{PLANS}/{other}/apply", json={})
    assert refused(answer) == (409, "site.no-room")
    assert "box lacks 1000 bytes" in answer.text
    assert "plan anew" in answer.text
    assert site.look(site.planned(hosts=BOTH))["steps"] == [3, 4]


def test_placed_modules_that_change_places_go_by_a_third_device_and_keep_their_routes(site: Site) -> None:
    site.create(devices=devices(camera=2 * MODULE, box=MODULE, desk=MODULE))
    fast, slow, spare = 0.01, 0.2, 0.5

    def asked(vision: str, text: str) -> dict[str, Any]:
        return {
            "hosts": None,
            "modules": {
                "vision": {"seconds": {"box": slow, "desk": slow, "camera": spare} | {vision: fast}},
                "text": {"seconds": {"box": slow, "desk": slow, "camera": spare} | {text: fast}},
                "head": {"seconds": {"camera": 0.001}},
            },
            "at": {"find": ["camera"]},
            "seconds": 5,
        }

    site.served(**asked("box", "desk"))
    goal = site.planned(**asked("desk", "box"))
    steps = site.look(goal)["steps"]
    assert len(steps) == 2
    assert hosts(site, goal)["vision"] == (1, ["desk"])
    site.apply(goal)
    for number in (*steps, goal):
        site.upkeep(datetime.now(UTC))
        routes = site.file(number).tasks["find"].routes[site.devices["camera"].id]
        named = {str(device.id): name for name, device in site.devices.items()}
        first = {step: named[str(way[0])] for step, way in routes.items()}
        placed = {model: on for model, (_, on) in hosts(site, number).items()}
        assert first == {"see": placed["vision"][0], "read": placed["text"][0], "judge": "camera"}
        site.everyone(number, READY)
        site.everyone(number, SERVING)
    assert site.look(goal)["state"] == "serving"
    moved = [hosts(site, number) for number in steps]
    assert any(["camera"] in (one["vision"][1], one["text"][1]) for one in moved)
