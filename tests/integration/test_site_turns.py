"""Devices of a site take turns on its link: who fetches when is shown, and nobody is told to before it is its turn."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi import FastAPI
from fleet_calls import made
from http_calls import Api
from sharing_calls import runner
from site_calls import PLANS, Site, refused

from sprat_server.db.blobs import Blobs
from sprat_server.settings import Settings
from sprat_shared.protocol.report import Outcome
from sprat_shared.protocol.site_report import PlanState

THIN = 1e-4  # Mbit/s: a module takes 160 s
READY = PlanState.READY


@pytest.fixture
def site(app: FastAPI, settings: Settings, blobs: Blobs, admin: Api) -> Site:
    return Site(app, runner(app, settings, blobs), admin, blobs)


def preview(site: Site, number: int) -> dict[str, Any]:
    return made(site.api.get(f"{PLANS}/{number}/preview"))


def order(site: Site, number: int) -> list[str]:
    """The devices, in the order of their turns."""
    members = [one for one in preview(site, number)["members"] if one["fetches"]]
    return [one["name"] for one in sorted(members, key=lambda one: float(one["fetches"][0]["starts_s"]))]


def told(site: Site) -> set[str]:
    """The devices that are told to fetch something."""
    models = {"camera": ["head"], "desk": ["vision"], "box": ["vision", "text"]}
    wishes = {name: [site.wish(name, model) for model in models[name]] for name in site.devices}
    assert all(all(mine) or not any(mine) for mine in wishes.values()), "a turn is of all that a device fetches"
    return {name for name, mine in wishes.items() if any(mine)}


def fetching(site: Site, number: int) -> dict[str, str]:
    return {one["name"]: one["fetching"] for one in site.look(number)["members"]}


def test_a_preview_shows_who_fetches_when_and_how_soon_all_could_be_there(site: Site) -> None:
    site.create(uplink_mbit=THIN)
    number = site.planned()
    shown = preview(site, number)
    first, second, last = order(site, number)
    assert last == "box", "the one with two modules comes last, so that the others hold early"
    times = {one["name"]: [(each["starts_s"], each["ends_s"]) for each in one["fetches"]] for one in shown["members"]}
    assert times[first] == [pytest.approx((0, 160))]
    assert times[second] == [pytest.approx((160, 320))]
    assert times[last] == [pytest.approx((320, 480)), pytest.approx((480, 640))]
    assert (shown["fetched_s"], shown["fetched_bound_s"]) == pytest.approx((640, 640))
    assert shown["obstacles"] == []


def test_the_next_device_is_told_to_fetch_when_the_one_before_has_all(site: Site) -> None:
    site.create(uplink_mbit=THIN)
    number = site.planned()
    first, second, last = order(site, number)
    site.apply(number)
    assert told(site) == {first}
    assert [site.signed(name) for name in site.devices] == [{1: "hold"}] * 3, "the plan itself is held by all at once"
    assert fetching(site, number) == {first: "fetching", second: "waits", last: "waits"}
    site.fetch(first, "head" if first == "camera" else "vision")
    assert told(site) == {first, second}
    assert fetching(site, number) == {first: "done", second: "fetching", last: "waits"}
    site.say(second, number, READY)  # it says so of all at once
    assert told(site) == {first, second, last}
    site.fetch("box", "text")
    assert fetching(site, number)["box"] == "fetching", "vision is not there yet"
    site.everyone(number, READY)
    assert site.look(number)["state"] == "switching"


def test_a_device_that_is_slow_holds_up_nobody_beyond_its_time(site: Site) -> None:
    site.create(uplink_mbit=THIN)
    number = site.planned()
    first, second, last = order(site, number)
    site.apply(number)
    begun = datetime.now(UTC)
    turns = {one["name"]: one["turn_at"] for one in site.look(number)["members"]}
    poll_s = site.app.state.settings.poll_interval_s
    assert datetime.fromisoformat(turns[second]) - begun == pytest.approx(
        timedelta(seconds=160 - poll_s), abs=timedelta(seconds=5)
    )
    site.upkeep(begun + timedelta(seconds=160 - poll_s - 10))
    assert told(site) == {first}
    site.upkeep(begun + timedelta(seconds=160 - poll_s + 1))
    assert told(site) == {first, second}
    site.upkeep(begun + timedelta(seconds=320 - poll_s + 1))
    assert told(site) == {first, second, last}


def test_on_a_link_that_is_not_thin_nobody_waits(site: Site) -> None:
    site.create(uplink_mbit=0.01)  # 1.6 s a module: less than a device takes to hear of its turn
    site.apply(site.planned())
    assert told(site) == set(site.devices)


def test_without_a_link_that_is_shared_nobody_waits(site: Site) -> None:
    site.create(devices=[{"name": name, "down_mbit": THIN} for name in site.devices])
    number = site.planned()
    assert preview(site, number)["fetched_s"] == pytest.approx(320)
    site.apply(number)
    assert told(site) == set(site.devices)


def test_an_end_before_its_turn_has_a_device_fetch_nothing(site: Site) -> None:
    site.create(uplink_mbit=THIN)
    number = site.planned()
    first, *_ = order(site, number)
    site.apply(number)
    made(site.api.post(f"{PLANS}/{number}/abort", json={"reason": "because"}))
    assert told(site) == set()
    site.upkeep(datetime.now(UTC) + timedelta(seconds=1000))
    assert told(site) == set()
    again = site.planned()
    site.apply(again)
    assert told(site) == {first}


def test_a_rollout_that_began_before_a_turn_ends_the_plan(site: Site) -> None:
    site.create(uplink_mbit=THIN)
    number = site.planned()
    first, second, _ = order(site, number)
    site.apply(number)
    other = site.release("text")
    body = {"model": "text", "release": other, "waves": ["100%"], "devices": [str(site.devices["box"].id)]}
    rollout = made(site.api.post("/api/v1/rollouts", json=body))["id"]
    made(site.api.post(f"/api/v1/rollouts/{rollout}/start", json={"reason": "because"}))
    for name in (first, second):
        site.fetch(name, "head" if name == "camera" else "vision")
    shown = site.look(number)
    assert shown["state"] == "failed"
    assert shown["reason"] == f"rollout {rollout} of text began before all had fetched text@1"
    assert site.wish("box", "text") == (other, False), "the rollout has its devices"


def test_a_plan_whose_fetching_takes_longer_than_all_must_be_ready_in_is_not_applied(site: Site) -> None:
    site.create(uplink_mbit=THIN, hold_s=600)
    number = site.planned()
    (why,) = preview(site, number)["obstacles"]
    assert why.startswith("fetching takes 640 s by what was said of the links, and all must be ready in 600 s")
    assert refused(site.api.post(f"{PLANS}/{number}/apply", json={})) == (409, "site.not-applicable")


def test_what_a_device_has_or_fetches_anyway_takes_no_turn(site: Site) -> None:
    site.create(uplink_mbit=THIN)
    site.served()
    for name, model in (("box", "vision"), ("desk", "vision"), ("box", "text"), ("camera", "head")):
        site.devices[name].tell(Outcome.COMMITTED, model)
    site.release("vision")
    number = site.planned()
    shown = preview(site, number)
    assert {one["name"]: len(one["fetches"]) for one in shown["members"]} == {"camera": 0, "box": 1, "desk": 1}
    assert shown["fetched_s"] == pytest.approx(2 * 100 / 12.5)
    site.apply(number)
    assert fetching(site, number)["camera"] is None
