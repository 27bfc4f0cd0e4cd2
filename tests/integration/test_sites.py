"""Plans of a site, from their tasks to the devices that serve by them, played by reports."""

import re
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from fastapi import FastAPI
from fleet_calls import made
from http_calls import Api
from sharing_calls import runner
from site_calls import HOSTS, PLANS, Site, refused
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from training_calls import carried_out, finished

from sprat_server.db.blobs import Blobs
from sprat_server.db.projects import ACROSS, DEFAULT_PROJECT
from sprat_server.flows import live
from sprat_server.registry import service as registry
from sprat_server.settings import Settings
from sprat_shared.protocol.report import Outcome
from sprat_shared.protocol.site_report import PlanState, SiteReport

READY, SERVING, REFUSED = PlanState.READY, PlanState.SERVING, PlanState.REFUSED
REASON = {"reason": "because"}


@pytest.fixture
def site(app: FastAPI, settings: Settings, blobs: Blobs, admin: Api) -> Site:
    return Site(app, runner(app, settings, blobs), admin, blobs)


def test_a_plan_is_held_by_all_then_served_by_all(site: Site) -> None:
    site.create()
    number = site.planned()
    assert number == 1
    assert site.signed("camera") == {}, "nothing is sent before it is applied"
    held = site.apply(number)
    assert (held["state"], {one["state"] for one in held["members"]}) == ("holding", {"asked"})
    assert [site.signed(name) for name in site.devices] == [{1: "hold"}] * 3
    assert site.wish("box", "vision") == site.wish("desk", "vision") == site.wish("camera", "head") == (1, True)
    assert site.wish("camera", "vision") is None

    site.fetch("box", "vision")
    site.say("box", number, READY)
    site.say("desk", number, READY)
    assert site.look(number)["state"] == "holding"
    site.say("camera", number, READY)
    assert site.look(number)["state"] == "switching"
    assert [site.signed(name) for name in site.devices] == [{1: "serve"}] * 3
    assert site.wish("box", "vision") == (1, True), "a device runs the release only once the plan serves"

    site.everyone(number, SERVING)
    assert site.look(number)["state"] == "serving"
    assert site.wish("box", "vision") == site.wish("desk", "vision") == site.wish("camera", "head") == (1, False)
    shown = made(site.api.get("/api/v1/sites/line-3"))
    assert (shown["serving"], shown["under_way"]) == (1, None)
    assert [one["type"] for one in site.events()] == ["site.held", "site.switching", "site.serving"]


def test_the_next_plan_takes_the_place_of_the_one_that_serves(site: Site) -> None:
    site.create()
    first = site.served()
    for name, model in (("box", "vision"), ("desk", "vision"), ("box", "text"), ("camera", "head")):
        site.devices[name].tell(Outcome.COMMITTED, model)
    site.release("vision")
    second = site.planned()
    preview = made(site.api.get(f"{PLANS}/{second}/preview"))
    assert preview["obstacles"] == []
    fetches = {one["name"]: one["fetches"] for one in preview["members"]}
    vision = {"model": "vision", "release": 2, "bytes": 100, "starts_s": 0.0, "ends_s": pytest.approx(8e-7)}
    assert fetches == {"camera": [], "box": [vision], "desk": [vision]}
    box = next(one for one in preview["members"] if one["name"] == "box")
    assert (box["holds_bytes"], box["while_replacing_bytes"]) == (4000, 6000), "text is the same release in both"

    site.apply(second)
    assert site.signed("box") == {1: "serve", 2: "hold"}
    assert site.wish("box", "text") == (1, False), "what is there already is not fetched"
    site.everyone(second, READY)
    assert site.signed("box") == {1: "drain", 2: "serve"}
    assert site.look(first)["state"] == "draining"
    site.say("camera", second, SERVING)
    site.say("box", second, SERVING)
    assert site.look(first)["state"] == "draining"
    site.say("desk", second, SERVING)
    assert (site.look(first)["state"], site.look(second)["state"]) == ("retired", "serving")
    assert site.signed("box") == {2: "serve"}
    assert site.wish("box", "vision") == (2, False)
    history = made(site.api.get(PLANS))["items"]
    assert [(one["number"], one["state"]) for one in history] == [(2, "serving"), (1, "retired")]


def test_a_member_that_refuses_ends_the_plan_and_the_old_one_serves_on(site: Site) -> None:
    site.create()
    first = site.served()
    site.release("vision")
    second = site.planned()
    site.apply(second)
    site.say("box", second, READY)
    site.say("desk", second, REFUSED, error_code="site.memory", error_detail="90 MB are missing")
    shown = site.look(second)
    assert (shown["state"], shown["reason"]) == ("failed", "desk: site.memory: 90 MB are missing")
    assert site.look(first)["state"] == "serving"
    assert [site.signed(name) for name in site.devices] == [{1: "serve"}] * 3
    assert site.wish("box", "vision") == (1, False), "what was to be fetched is not wished any more"
    assert site.events()[-1]["type"] == "site.failed"
    site.say("box", second, SERVING)  # too late: it changes nothing
    assert site.look(second)["state"] == "failed"


def test_a_module_that_cannot_be_fetched_ends_the_plan(site: Site) -> None:
    site.create()
    number = site.planned()
    site.apply(number)
    site.fetch("box", "text", Outcome.FAILED)
    shown = site.look(number)
    assert shown["state"] == "failed"
    assert "box could not fetch text@1: validation.worse" in shown["reason"]
    assert site.wish("box", "vision") is None


def test_a_plan_that_is_held_can_be_aborted_and_no_other(site: Site) -> None:
    site.create()
    number = site.planned()
    url = f"{PLANS}/{number}/abort"
    assert refused(site.api.post(url, json=REASON)) == (409, "site.wrong-state")
    site.apply(number)
    assert made(site.api.post(url, json=REASON))["state"] == "aborted"
    assert site.signed("camera") == {}
    assert refused(site.api.post(url, json=REASON)) == (409, "site.wrong-state")
    actions = [one["action"] for one in made(site.api.get("/api/v1/audit"))["items"][:2]]
    assert actions == ["site.abort", "site.apply"]
    other = site.served()
    assert other == number + 1
    assert refused(site.api.post(f"{PLANS}/{other}/abort", json=REASON)) == (409, "site.wrong-state")


def test_who_is_not_ready_in_time_ends_the_plan(site: Site) -> None:
    site.create(hold_s=600)
    number = site.planned()
    site.apply(number)
    site.say("box", number, READY)
    begun = datetime.now(UTC)
    site.upkeep(begun + timedelta(seconds=590))
    assert site.look(number)["state"] == "holding"
    site.upkeep(begun + timedelta(seconds=601))
    shown = site.look(number)
    assert (shown["state"], shown["reason"]) == ("failed", "camera, desk was not ready in time")


def test_a_member_that_is_lost_while_it_switches_holds_up_nobody(site: Site, server_viewer: Api) -> None:
    site.create(switch_s=60)
    first = site.served()
    second = site.planned()
    site.apply(second)
    site.everyone(second, READY)
    site.say("camera", second, SERVING)
    site.say("box", second, REFUSED, error_code="site.memory")
    assert site.look(second)["state"] == "switching"
    site.upkeep(datetime.now(UTC) + timedelta(seconds=61))
    shown = site.look(second)
    assert (shown["state"], site.look(first)["state"]) == ("serving", "retired")
    assert shown["reason"] == "desk did not say so in time"
    assert shown["warnings"] == ["box refused: site.memory", "desk has not said that it serves"]
    told = site.events()[-1]
    ids = {name: str(device.id) for name, device in site.devices.items()}
    assert (told["type"], told["data"]["silent"], told["data"]["lost"]) == (
        "site.serving",
        [ids["desk"]],
        [ids["box"]],
    )
    counts = re.findall(r"sprat_site_members\{(.*)\} (.*)", server_viewer.get("/metrics").text)
    of_plan = 'plan="serving",project="default",site="line-3"'
    assert counts == [(f'{of_plan},state="{one}"', "1.0") for one in ("ready", "refused", "serving")]
    site.say("desk", second, SERVING)
    assert "desk has not said that it serves" not in site.look(second)["warnings"]


def test_a_site_has_one_plan_under_way_and_an_older_one_is_not_applied(site: Site) -> None:
    site.create()
    one, two, three = site.planned(), site.planned(), site.planned()
    site.apply(two)
    answer = site.api.post(f"{PLANS}/{three}/apply", json={})
    assert refused(answer) == (409, "site.not-applicable")
    assert "plan 2 is holding; abort it, or let it end" in answer.text
    site.everyone(two, READY)
    site.everyone(two, SERVING)
    answer = site.api.post(f"{PLANS}/{one}/apply", json={})
    assert refused(answer) == (409, "site.not-applicable")
    assert "plan 2 was applied since" in answer.text
    site.apply(three)
    with (
        pytest.raises(IntegrityError, match="uq_site_plan_under_way"),
        site.app.state.database.transaction(DEFAULT_PROJECT) as session,
    ):
        session.execute(
            text("UPDATE site_plan SET state = 'holding', deadline_at = now() WHERE number = 2"),
            execution_options=ACROSS,
        )


def test_numbers_go_on_under_the_name_of_a_site_that_was_deleted(site: Site) -> None:
    site.create()
    number = site.planned()
    site.apply(number)
    assert refused(site.api.delete("/api/v1/sites/line-3")) == (409, "site.busy")
    site.everyone(number, READY)
    site.everyone(number, SERVING)
    assert refused(site.api.delete("/api/v1/tasks/find")) == (409, "task.in-use")
    made(site.api.delete("/api/v1/sites/line-3"))
    assert site.signed("camera") == {}
    assert site.wish("box", "vision") == (1, False), "what a device runs stays"
    assert refused(site.api.get("/api/v1/sites/line-3")) == (404, "site.unknown")
    made(site.api.post("/api/v1/sites", json={"name": "line-3", "devices": [{"name": name} for name in site.devices]}))
    assert site.planned() == number + 1
    made(site.api.delete("/api/v1/tasks/find"))


def test_a_device_that_leaves_ends_what_is_held_and_not_what_serves(site: Site) -> None:
    site.create()
    first = site.served()
    second = site.planned()
    site.apply(second)
    made(site.api.post(f"/api/v1/devices/{site.devices['desk'].id}/revoke", json=REASON))
    assert (site.look(second)["state"], site.look(second)["reason"]) == ("failed", "desk left")
    shown = site.look(first)
    assert (shown["state"], shown["warnings"]) == ("serving", ["desk left"])
    assert {one["name"]: one["phase"] for one in shown["members"]} == {"box": "serve", "camera": "serve", "desk": None}
    assert any(one["type"] == "site.lost" and one["data"]["why"] == "desk left" for one in site.events())


def test_what_serves_is_planned_anew_without_a_device_that_was_lost(site: Site) -> None:
    site.create()
    number = site.served()
    url = "/api/v1/sites/line-3/repair"
    assert refused(site.api.post(url, json={})) == (409, "site.nothing-to-repair")
    site.release("text")
    done = carried_out(site.worker, site.api, "/sites/line-3/repair", without=["desk"])
    assert done["state"] == "succeeded", done
    site.apply(done["result"]["plan"])
    del site.devices["desk"]
    site.everyone(2, READY)
    site.everyone(2, SERVING)
    shown = site.look(2)
    assert {one["model"]: (one["release"], one["hosts"]) for one in shown["modules"]} == {
        "head": (1, ["camera"]),
        "text": (1, ["box"]),  # a repair brings no other release
        "vision": (1, ["box"]),
    }
    assert (shown["state"], site.look(number)["state"]) == ("serving", "retired")
    done = carried_out(site.worker, site.api, "/sites/line-3/repair", without=["camera"])
    assert done["error"]["code"] == "site.irreparable"
    assert "head was put on camera by hand, and on no other device" in done["error"]["message"]


def test_a_site_that_repairs_itself_places_what_was_lost_elsewhere(site: Site) -> None:
    site.create(auto_repair=True)
    modules = {
        "vision": {"seconds": {"box": 0.2, "desk": 0.01}},
        "text": {"seconds": {"box": 0.01, "desk": 0.2}},
        "head": {"seconds": {"camera": 0.001, "box": 0.1}},
    }
    number = site.served(hosts=None, modules=modules, at={"find": ["camera"]}, seconds=1)
    hosts = {one["model"]: one["hosts"] for one in site.look(number)["modules"]}
    assert hosts == {"vision": ["desk"], "text": ["box"], "head": ["camera"]}
    site.upkeep(datetime.now(UTC))
    assert made(site.api.get("/api/v1/jobs"))["items"][0]["state"] == "succeeded", "there is nothing to repair"

    made(site.api.post(f"/api/v1/devices/{site.devices.pop('desk').id}/revoke", json=REASON))
    assert site.look(number)["warnings"] == ["desk left"]
    site.upkeep(datetime.now(UTC))
    site.upkeep(datetime.now(UTC))  # asked for once
    queued = [one["id"] for one in made(site.api.get("/api/v1/jobs"))["items"] if one["state"] == "queued"]
    assert len(queued) == 1
    assert finished(site.worker, site.api, UUID(queued[0]))["state"] == "succeeded"
    shown = site.look(2)
    assert (shown["state"], {one["name"] for one in shown["members"]}) == ("holding", {"box", "camera"})
    assert {one["model"]: one["hosts"] for one in shown["modules"]} == hosts | {"vision": ["box"]}


def test_a_plan_is_renewed_without_a_device_that_only_asked_and_left(site: Site) -> None:
    site.create()
    modules = {
        "vision": {"seconds": {"box": 0.2}},
        "text": {"seconds": {"box": 0.01}},
        "head": {"seconds": {"camera": 0.001}},
    }
    number = site.served(hosts=None, modules=modules, at={"find": ["camera", "desk"]}, seconds=1)
    gone = site.devices.pop("desk").id
    way = {"see": ["box"], "read": ["box"], "judge": ["camera"]}
    assert site.look(number)["tasks"]["find"]["routes"] == {"camera": way, "desk": way}
    made(site.api.post(f"/api/v1/devices/{gone}/revoke", json=REASON))
    site.upkeep(datetime.now(UTC) + timedelta(days=21))
    shown = site.look(2)
    assert (shown["state"], {one["name"] for one in shown["members"]}) == ("holding", {"box", "camera"})


def test_a_plan_is_renewed_before_it_ends(site: Site) -> None:
    site.create()
    number = site.served()
    now = datetime.now(UTC)
    site.upkeep(now + timedelta(days=19))
    assert [one["number"] for one in made(site.api.get(PLANS))["items"]] == [1]
    site.upkeep(now + timedelta(days=21))
    renewed = site.look(2)
    assert (renewed["state"], renewed["made_by"]) == ("holding", "system:sprat")
    assert renewed["modules"] == site.look(number)["modules"]
    assert site.file(2).authority != site.file(1).authority
    assert {site.wish("box", model) for model in ("vision", "text")} == {(1, False)}, "nothing is fetched again"
    site.upkeep(now + timedelta(days=21, minutes=1))
    site.everyone(2, READY)
    site.everyone(2, SERVING)
    assert (site.look(1)["state"], site.look(2)["state"]) == ("retired", "serving")


def test_what_a_device_said_of_a_plan_is_among_its_reports(site: Site) -> None:
    site.create()
    number = site.served()
    reports = made(site.api.get(f"/api/v1/devices/{site.devices['box'].id}/reports"))["items"]
    said = [(one["kind"], one["site"], one["plan"], one["state"]) for one in reports]
    assert said[:2] == [("site", "line-3", number, "serving"), ("site", "line-3", number, "ready")]


def test_a_device_that_is_reached_elsewhere_gets_the_others_a_plan_that_says_so(site: Site) -> None:
    site.create()
    site.served()
    now = datetime.now(UTC)
    site.says("camera", "10.0.0.99:8478")
    now += timedelta(minutes=6)
    site.upkeep(now)
    renewed = site.look(2)
    assert (renewed["state"], renewed["made_by"]) == ("holding", "system:sprat")
    assert site.file(2).member[site.devices["camera"].id].address == "10.0.0.99:8478"
    assert site.file(1).modules == site.file(2).modules
    site.upkeep(now)
    site.everyone(2, READY)
    site.everyone(2, SERVING)
    for minutes in (0, 20):
        site.upkeep(now + timedelta(minutes=minutes))
    assert [one["number"] for one in made(site.api.get(PLANS))["items"]] == [2, 1], "it is where the plan says"
    site.says("camera", "10.0.0.5:8478")
    site.upkeep(now + timedelta(minutes=1))
    assert len(made(site.api.get(PLANS))["items"]) == 2, "not again and again"
    site.upkeep(now + timedelta(minutes=6))
    assert site.look(3)["state"] == "holding"


def test_a_device_with_another_key_is_no_member_any_more(site: Site) -> None:
    site.create()
    number = site.served()
    desk = site.devices["desk"]
    token = made(site.api.post(f"/api/v1/devices/{desk.id}/replace", json={}))["token"]
    site.join(token, "desk", "10.0.0.3:8478")
    site.upkeep(datetime.now(UTC))
    assert {one["name"]: one["state"] for one in site.look(number)["members"]}["desk"] == "left"
    assert site.signed("camera") == {1: "serve"}


def test_who_said_no_address_may_ask_and_holds_no_module(site: Site) -> None:
    token = made(site.api.post("/api/v1/enrolment-tokens", json={"uses": 1}))["token"]
    site.devices["mute"] = site.join(token, "mute", None)
    site.create()
    number = site.planned(hosts=HOSTS | {"head": ["camera", "mute"]})
    answer = site.api.post(f"{PLANS}/{number}/apply", json={})
    assert refused(answer) == (409, "site.not-applicable")
    assert "mute holds a module, and said no site-address" in answer.text
    number = site.served()
    assert {one.name: one.address for one in site.file(number).members}["mute"] is None
    assert site.look(number)["warnings"] == []


def test_what_a_plan_names_stays_signed_when_rollouts_went_on(site: Site) -> None:
    site.create()
    site.served()
    for _ in range(3):
        site.release("head")
    rollout = made(site.api.post("/api/v1/rollouts", json={"model": "head", "release": 4, "waves": ["100%"]}))
    made(site.api.post(f"/api/v1/rollouts/{rollout['id']}/start", json=REASON))
    for name in site.devices:
        site.devices[name].tell(Outcome.COMMITTED, "head")
    with site.app.state.database.transaction(DEFAULT_PROJECT) as session:
        needed = live.needed(session, registry.get_model(session, "head"))
    assert needed.releases == {1, 4}, "the plan still has devices hold release 1"


def test_a_rollout_that_runs_is_left_its_devices(site: Site) -> None:
    site.create()
    site.release("vision")
    devices = [str(site.devices["box"].id)]
    body = {"model": "vision", "release": 2, "waves": ["100%"], "devices": devices}
    rollout = made(site.api.post("/api/v1/rollouts", json=body))["id"]
    made(site.api.post(f"/api/v1/rollouts/{rollout}/start", json=REASON))
    number = site.planned()
    answer = site.api.post(f"{PLANS}/{number}/apply", json={})
    assert refused(answer) == (409, "site.not-applicable")
    assert f"rollout {rollout} of vision is running" in answer.text


def test_a_rollout_that_takes_a_device_from_a_plan_that_is_held_ends_it(site: Site) -> None:
    site.create()
    number = site.planned()
    site.apply(number)
    site.release("vision")
    devices = [str(site.devices["box"].id)]
    body = {"model": "vision", "release": 2, "waves": ["100%"], "devices": devices}
    rollout = made(site.api.post("/api/v1/rollouts", json=body))["id"]
    made(site.api.post(f"/api/v1/rollouts/{rollout}/start", json=REASON))
    site.upkeep(datetime.now(UTC))
    shown = site.look(number)
    assert shown["state"] == "failed"
    assert "something else was assigned to box than vision@1" in shown["reason"]
    assert site.wish("box", "vision") == (2, False)


def test_modules_are_kept_once_the_rollout_that_forbade_it_is_over(site: Site) -> None:
    site.create()
    number = site.planned()
    site.apply(number)
    site.everyone(number, READY)
    site.release("vision")
    body = {"model": "vision", "release": 2, "waves": ["100%"], "devices": [str(site.devices["camera"].id)]}
    rollout = made(site.api.post("/api/v1/rollouts", json=body))["id"]
    made(site.api.post(f"/api/v1/rollouts/{rollout}/start", json=REASON))
    site.everyone(number, SERVING)
    assert site.look(number)["state"] == "serving"
    assert (site.wish("box", "vision"), site.wish("box", "text")) == ((1, True), (1, False))
    made(site.api.post(f"/api/v1/rollouts/{rollout}/abort", json=REASON))
    site.upkeep(datetime.now(UTC))
    assert site.wish("box", "vision") == (1, False)


def test_a_device_is_of_one_site_and_a_report_of_no_plan_is_refused(site: Site) -> None:
    site.create()
    answer = site.api.post("/api/v1/sites", json={"name": "other", "devices": [{"name": "box"}]})
    assert refused(answer) == (409, "site.device-taken")
    edited = {"devices": [{"name": "box", "memory_bytes": 7}, {"name": "desk"}], "hold_s": 9}
    shown = made(site.api.request("PUT", "/api/v1/sites/line-3", json=edited))
    assert [(one["name"], one["memory_bytes"]) for one in shown["devices"]] == [("box", 7), ("desk", None)]
    assert (shown["hold_s"], shown["switch_s"]) == (9, 600)
    made(site.api.post("/api/v1/sites", json={"name": "third", "devices": [{"name": "camera"}]}))
    answer = site.api.post("/api/v1/sites", json={"name": "other", "devices": [{"name": "cellar"}]})
    assert refused(answer) == (404, "device.unknown")
    device = site.devices["box"]
    report = SiteReport(device=device.id, sequence=1, site="line-3", plan=7, state=READY, agent="0.1.0")
    assert refused(device.send(report)) == (422, "report.unknown-plan")
