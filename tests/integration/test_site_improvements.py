"""The full plan behind a repair: looked for once, applied by itself exactly where it saves more than its bytes cost."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from fastapi import FastAPI
from fleet_calls import made
from http_calls import Api
from sharing_calls import runner
from site_calls import PLANS, Site
from training_calls import carried_out, finished

from sprat_server.db.blobs import Blobs
from sprat_server.db.projects import DEFAULT_PROJECT
from sprat_server.flows import site_improvements
from sprat_server.jobs import service as jobs
from sprat_server.observe.actors import SYSTEM
from sprat_server.settings import Settings
from sprat_shared.protocol.site_report import PlanState

READY, SERVING = PlanState.READY, PlanState.SERVING
# With desk gone, box has time for one of vision and text: a repair leaves text there, and vision is slow on the camera.
DEVICES = [
    {"name": "camera", "down_mbit": 0.01},
    {"name": "box", "down_mbit": 0.01, "utilisation": 0.22},
    {"name": "desk"},
]
MODULES = {
    "vision": {"seconds": {"desk": 0.01, "box": 0.2, "camera": 0.7}},
    "text": {"seconds": {"box": 0.05, "camera": 0.15}},
    "head": {"seconds": {"camera": 0.001}},
}
ONLY_CAMERA = {"seconds": {"desk": 0.01, "camera": 0.7}}
ASKED: dict[str, Any] = {
    "hosts": None,
    "modules": MODULES,
    "at": {"find": ["camera"]},
    "rates": {"find": 1.0},
    "seconds": 2,
}


@pytest.fixture
def site(app: FastAPI, settings: Settings, blobs: Blobs, admin: Api) -> Site:
    return Site(app, runner(app, settings, blobs), admin, blobs)


def hosts(site: Site, number: int) -> dict[str, list[str]]:
    return {one["model"]: one["hosts"] for one in site.look(number)["modules"]}


def queued(site: Site) -> list[UUID]:
    items = made(site.api.get("/api/v1/jobs"))["items"]
    return [UUID(one["id"]) for one in items if one["state"] == "queued"]


def repaired(site: Site, *, by_hand: bool = False, asked: dict[str, Any] = ASKED, **of_site: Any) -> None:
    """Bring a plan to serve, lose a device of it, and bring the repair, plan 2, to serve."""
    site.create(devices=DEVICES, **of_site)
    number = site.served(**asked)
    assert hosts(site, number) == {"vision": ["desk"], "text": ["box"], "head": ["camera"]}
    gone = site.devices.pop("desk")
    if by_hand:
        done = carried_out(site.worker, site.api, "/sites/line-3/repair", without=["desk"])
        site.apply(done["result"]["plan"])
    else:
        made(site.api.post(f"/api/v1/devices/{gone.id}/revoke", json={"reason": "because"}))
        site.upkeep(datetime.now(UTC))
        (job,) = queued(site)
        assert finished(site.worker, site.api, job)["state"] == "succeeded"
    slow = ["camera"] if asked["rates"] else ["box"]  # nobody keeps box too busy then
    assert hosts(site, 2) == {"vision": slow, "text": ["box"], "head": ["camera"]}
    site.upkeep(datetime.now(UTC))
    assert queued(site) == [], "nothing is looked for before the repair serves"
    site.everyone(2, READY)
    site.everyone(2, SERVING)
    shown = site.look(2)
    assert (shown["state"], shown["cause"], shown["parent"], shown["improvement"]) == ("serving", "repair", 1, None)


def improved(site: Site) -> dict[str, Any]:
    """Let the clock ask for the full plan, and a worker find it; return what stands beside the repair then."""
    site.upkeep(datetime.now(UTC))
    (job,) = queued(site)
    done = finished(site.worker, site.api, job)
    assert done["state"] == "succeeded", done
    found: dict[str, Any] = site.look(2)["improvement"]
    return found


def test_the_full_plan_behind_a_repair_is_applied_by_itself_where_it_pays(site: Site) -> None:
    repaired(site, auto_repair=True)
    found = improved(site)
    assert (found["plan"], found["pays"], found["pays_within_s"]) == (3, True, 86400)
    task = found["tasks"]["find@camera"]
    assert task["before_s"] > task["after_s"] + 0.4
    assert found["saved_s"] == pytest.approx((task["before_s"] - task["after_s"]) * 86400)
    assert found["moved_bytes"] == 4000, "vision to box, text to the camera"
    assert found["cost_s"] == pytest.approx(4000 / 1250)
    better = site.look(3)
    assert (better["state"], better["cause"], better["parent"]) == ("holding", "improvement", 2)
    assert hosts(site, 3) == {"vision": ["box"], "text": ["camera"], "head": ["camera"]}
    assert site.look(2)["state"] == "serving", "the repair serves until all are ready"
    told = site.events()[-1]
    assert (told["type"], told["data"]["plan"], told["data"]["improvement"]) == (
        "site.improvement-adopted",
        2,
        found,
    )
    site.everyone(3, READY)
    site.everyone(3, SERVING)
    site.upkeep(datetime.now(UTC))
    assert queued(site) == [], "what is placed anew is not looked at again"


def test_a_full_plan_that_costs_more_than_it_saves_is_kept_and_not_applied(site: Site) -> None:
    repaired(site, auto_repair=True, pays_within_s=5)
    found = improved(site)
    assert (found["plan"], found["pays"], found["why"]) == (3, False, "it does not pay")
    assert 0 < found["saved_s"] < found["cost_s"] == pytest.approx(3.2)
    site.upkeep(datetime.now(UTC))
    assert site.look(3)["state"] == "planned"
    told = site.events()[-1]
    assert (told["type"], told["data"]["improvement"]) == ("site.improvement-declined", found)
    made(site.api.post(f"{PLANS}/3/apply", json={}))  # whoever wants it all the same can have it


def test_what_bytes_are_worth_counts_against_the_full_plan(site: Site) -> None:
    repaired(site, auto_repair=True, pays_within_s=60, asked=ASKED | {"second_per_mb": 50.0})
    found = improved(site)
    assert (found["pays"], found["cost_s"]) == (True, pytest.approx(3.2 + 0.2))


def test_where_a_repair_left_nothing_better_no_plan_is_made(site: Site) -> None:
    repaired(site, auto_repair=True, asked=ASKED | {"modules": MODULES | {"vision": ONLY_CAMERA}})
    found = improved(site)
    assert found == {"plan": None, "pays": False, "why": "no plan is better"}
    assert [one["number"] for one in made(site.api.get(PLANS))["items"]] == [2, 1]
    assert site.events()[-1]["type"] == "site.improvement-declined"


def test_without_rates_nothing_is_known_to_be_saved(site: Site) -> None:
    repaired(site, auto_repair=True, asked=ASKED | {"rates": {}})
    found = improved(site)
    assert (found["plan"], found["pays"], found["saved_s"]) == (3, False, 0.0)
    assert "nobody said how often the tasks are asked" in found["why"]
    assert found["tasks"]["find@camera"]["after_s"] < found["tasks"]["find@camera"]["before_s"]


def test_a_site_that_does_not_repair_itself_says_what_the_full_plan_would_bring(site: Site) -> None:
    repaired(site, by_hand=True)
    found = improved(site)
    assert (found["plan"], found["pays"]) == (3, True)
    assert "waits for somebody to apply it" in found["why"]
    site.upkeep(datetime.now(UTC))
    assert site.look(3)["state"] == "planned"
    assert site.events()[-1]["type"] == "site.improvement-declined"


def test_a_full_plan_is_looked_for_once_whoever_asks(site: Site) -> None:
    repaired(site, auto_repair=True)
    site.upkeep(datetime.now(UTC))
    site.upkeep(datetime.now(UTC))
    with site.app.state.database.transaction(DEFAULT_PROJECT) as session:  # another replica's, or a worker's that died
        again = jobs.enqueue(
            session, kind=site_improvements.IMPROVE_KIND, args={"site": "line-3", "improves": 2}, by=SYSTEM
        ).id
    first, second = sorted(queued(site), key=lambda one: one == again)
    assert finished(site.worker, site.api, first)["result"] == {"site": "line-3", "plan": 3}
    assert finished(site.worker, site.api, second)["result"] == {"site": "line-3", "plan": 3}
    assert [one["number"] for one in made(site.api.get(PLANS))["items"]] == [3, 2, 1]
    kinds = [one["type"] for one in site.events()]
    assert kinds.count("site.improvement-adopted") == 1


def test_a_worker_that_is_killed_before_its_end_leaves_nothing_and_the_next_one_does_it(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    repaired(site, auto_repair=True)
    site.upkeep(datetime.now(UTC))
    (job,) = queued(site)

    def killed(*_: Any) -> None:
        raise MemoryError("the worker is killed here")

    with monkeypatch.context() as patch:
        patch.setattr(site_improvements, "adopt", killed)
        finished(site.worker, site.api, job)
    assert site.look(2)["improvement"] is None
    assert [one["number"] for one in made(site.api.get(PLANS))["items"]] == [2, 1]
    with site.app.state.database.transaction(DEFAULT_PROJECT) as session:
        again = jobs.enqueue(
            session, kind=site_improvements.IMPROVE_KIND, args={"site": "line-3", "improves": 2}, by=SYSTEM
        ).id
    finished(site.worker, site.api, again)
    assert site.look(3)["state"] == "holding"


def test_what_is_in_the_way_of_a_full_plan_is_noted_and_waited_for(site: Site) -> None:
    repaired(site, auto_repair=True)
    other = site.release("vision")
    body = {"model": "vision", "release": other, "waves": ["100%"], "devices": [str(site.devices["camera"].id)]}
    rollout = made(site.api.post("/api/v1/rollouts", json=body))["id"]
    made(site.api.post(f"/api/v1/rollouts/{rollout}/start", json={"reason": "because"}))
    assert improved(site)["pays"]
    shown = site.look(3)
    assert shown["state"] == "planned"
    assert f"rollout {rollout} of vision is running" in shown["reason"]
    made(site.api.post(f"/api/v1/rollouts/{rollout}/abort", json={"reason": "because"}))
    site.upkeep(datetime.now(UTC))
    assert (site.look(3)["state"], site.look(3)["reason"]) == ("holding", None)


def test_a_repair_that_is_renewed_before_the_full_plan_was_applied_is_looked_behind_again(site: Site) -> None:
    repaired(site, auto_repair=True)
    site.says("box", "10.0.0.9:8478")
    site.upkeep(datetime.now(UTC) + timedelta(hours=1))
    renewed = site.look(3)
    assert (renewed["state"], renewed["cause"], renewed["parent"]) == ("holding", "repair", 1)
