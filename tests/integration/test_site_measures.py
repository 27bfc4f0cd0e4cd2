"""What devices measured: kept by device and release, shown, and what plans are placed by where people say nothing."""

from typing import Any
from uuid import uuid4

import pytest
from fastapi import FastAPI
from fleet_calls import made
from http_calls import Api
from sharing_calls import runner
from site_calls import PLANS, Site, refused
from training_calls import carried_out

from sprat_server.db.blobs import Blobs
from sprat_server.settings import Settings
from sprat_shared.protocol.enrol import PLAYED
from sprat_shared.protocol.facts_report import FactsReport
from sprat_shared.protocol.measures_report import LinkFigures, ModuleFigures, Spread

AT = {"find": ["camera"]}
PLACED: dict[str, Any] = {"hosts": None, "at": AT, "seconds": 2}
MEASURES = "/api/v1/sites/line-3/measures"


@pytest.fixture
def site(app: FastAPI, settings: Settings, blobs: Blobs, admin: Api) -> Site:
    return Site(app, runner(app, settings, blobs), admin, blobs)


def around(median: float, count: int = 40) -> Spread:
    return Spread(count=count, p10=0.9 * median, median=median, p90=1.2 * median)


def module(model: str, seconds: float, memory_bytes: int | None = None, release: int = 1) -> ModuleFigures:
    return ModuleFigures(model=model, release=release, memory_bytes=memory_bytes, runs=around(seconds))


def all_measured(site: Site) -> None:
    """Vision is quick on the box alone, the head on the camera."""
    for name, factor in (("camera", 10.0), ("box", 1.0), ("desk", 4.0)):
        figures = [module("vision", 0.05 * factor, 5_000), module("text", 0.02 * factor), module("head", 0.001)]
        assert site.measure(name, figures).status_code == 204


def shown(site: Site) -> dict[tuple[str, str], dict[str, Any]]:
    return {(one["model"], one["device"]): one for one in made(site.api.get(MEASURES))["modules"]}


def test_a_plan_is_placed_by_what_its_devices_measured_and_says_so(site: Site) -> None:
    site.create()
    all_measured(site)
    number = site.planned(**PLACED)
    plan = site.look(number)
    assert {one["model"]: one["hosts"] for one in plan["modules"]} == {
        "vision": ["box"],
        "text": ["box"],
        "head": ["camera"],
    }
    assert {one["model"]: one["memory_bytes"] for one in plan["modules"]} == {
        "vision": 5_000,
        "text": 2_000,
        "head": 2_000,
    }
    figures = made(site.api.get(f"{PLANS}/{number}/preview"))["figures"]
    assert figures == plan["placement"]["figures"]
    vision = figures["modules"]["vision"]
    assert vision["seconds"]["box"] == {
        "value": 0.05,
        "origin": "measured",
        "detail": "in service",
        "count": 40,
        "p10": pytest.approx(0.045),
        "p90": pytest.approx(0.06),
    }
    assert (vision["memory_bytes"]["origin"], vision["memory_bytes"]["value"]) == ("measured", 5_000)
    assert figures["modules"]["text"]["memory_bytes"]["origin"] == "weights", "nobody measured it"
    assert figures["links"]["box"]["up_mbit"]["origin"] == "assumed"


def test_what_people_say_counts_before_what_was_measured(site: Site) -> None:
    site.create()
    all_measured(site)
    said = {"vision": {"memory_bytes": 7_000, "seconds": {"desk": 0.01}}, "text": {"memory_bytes": 900}}
    plan = site.look(site.planned(**PLACED, modules=said))
    assert {one["model"]: one["hosts"] for one in plan["modules"]}["vision"] == ["desk"], "it runs where it is said to"
    figures = plan["placement"]["figures"]["modules"]
    assert figures["vision"]["seconds"] == {
        "desk": {"value": 0.01, "origin": "said", "detail": "", "count": None, "p10": None, "p90": None}
    }
    assert (figures["vision"]["memory_bytes"]["value"], figures["text"]["memory_bytes"]["value"]) == (7_000, 900)
    assert {one["origin"] for one in figures["text"]["seconds"].values()} == {"measured"}
    on = site.look(site.planned(**PLACED, on=["desk", "camera"]))
    assert {host for one in on["modules"] for host in one["hosts"]} <= {"desk", "camera"}


def test_another_release_of_the_same_graph_and_devices_of_the_class_stand_in_and_speeds_are_compared(
    site: Site,
) -> None:
    token = made(site.api.post("/api/v1/enrolment-tokens", json={"uses": 3}))["token"]
    for at, name in enumerate(("pi-a", "pi-b", "pi-c"), start=7):
        site.devices[name] = site.join(token, name, f"10.0.0.{at}:8478", "pi-4")
    site.create(devices=[{"name": name} for name in ("box", "desk", "pi-a")])
    all_measured(site)
    release = site.release("vision")
    assert site.measure("pi-b", [module("vision", 0.4, 6_000), module("text", 0.2)]).status_code == 204
    assert site.measure("pi-c", [module("vision", 0.6, 8_000, release)]).status_code == 204
    assert site.measure("desk", [module("head", 0.003)]).status_code == 204
    found = shown(site)
    assert {key for key in found if key[0] == "vision"} == {("vision", name) for name in ("box", "desk", "pi-a")}
    box, pi = found["vision", "box"], found["vision", "pi-a"]
    assert (box["release"], box["seconds"]["origin"], box["seconds"]["value"]) == (release, "other-release", 0.05)
    assert box["seconds"]["detail"] == "vision@1, in service"
    assert (pi["profile"], pi["seconds"]["origin"], pi["seconds"]["detail"]) == ("pi-4", "class", "2 of pi-4")
    assert pi["seconds"]["value"] == pytest.approx(0.5)
    assert (pi["seconds"]["p10"], pi["seconds"]["p90"]) == (pytest.approx(0.36), pytest.approx(0.72))
    assert pi["memory_bytes"]["value"] == 7_000
    head = found["head", "pi-a"]["seconds"]
    assert (head["origin"], head["detail"]) == ("estimated", "from box, by 2 modules of both")
    assert head["value"] == pytest.approx(0.001 * 10), "a pi takes ten times as long for both"
    number = site.planned(hosts=None, at={"find": ["pi-a"]}, seconds=2)
    figures = site.look(number)["placement"]["figures"]["modules"]
    assert figures["head"]["seconds"]["pi-a"]["origin"] == "estimated"
    changed = site.release("vision", ([("x", 1, ["n", 9])], ("out", 1, ["n", 3])))
    assert shown(site)["vision", "box"]["release"] == changed
    assert shown(site)["vision", "box"]["seconds"] is None, "another graph is another module"


def test_where_nothing_is_known_of_a_module_on_a_device_the_error_names_both_and_a_device_is_left_out_by_on(
    site: Site,
) -> None:
    site.create()
    for name in ("camera", "box"):
        site.measure(name, [module("vision", 0.1), module("text", 0.1), module("head", 0.1)])
    answer = site.api.post(PLANS, json={"tasks": ["find"], **PLACED})
    assert refused(answer) == (422, "site.bad-plan")
    assert "how long a run of head takes on desk" in answer.text
    assert "--file" in answer.text
    assert "--hosts" in answer.text
    site.planned(**PLACED, on=["camera", "box"])


def test_a_repaired_site_leaves_out_devices_of_which_nothing_is_known(
    app: FastAPI, settings: Settings, blobs: Blobs, admin: Api
) -> None:
    site = Site(app, runner(app, settings, blobs), admin, blobs, names=("camera", "box"))
    site.create()
    for name, factor in (("camera", 10.0), ("box", 1.0)):
        site.measure(name, [module(model, 0.1 * factor) for model in ("vision", "text", "head")])
    first = site.served(**PLACED)
    assert {host for one in site.look(first)["modules"] for host in one["hosts"]} == {"box"}
    token = made(site.api.post("/api/v1/enrolment-tokens", json={"uses": 1}))["token"]
    site.devices["desk"] = site.join(token, "desk", "10.0.0.9:8478")
    every = {"devices": [{"name": name} for name in site.devices]}
    made(site.api.request("PUT", "/api/v1/sites/line-3", json=every))
    done = carried_out(site.worker, site.api, "/sites/line-3/repair", without=["box"])
    assert done["state"] == "succeeded", done
    repaired = site.look(done["result"]["plan"])
    assert {host for one in repaired["modules"] for host in one["hosts"]} == {"camera"}
    assert set(repaired["placement"]["figures"]["modules"]["vision"]["seconds"]) == {"camera"}


def test_links_that_nobody_said_are_solved_from_ways_between_devices(site: Site) -> None:
    site.create(devices=[{"name": "camera", "up_mbit": 20, "delay_ms": 2}, {"name": "box"}, {"name": "desk"}])
    box, desk = site.devices["box"].id, site.devices["desk"].id
    per_mbit = 8e-6  # seconds per byte at 1 Mbit/s
    site.measure(
        "camera",
        links=[
            LinkFigures(device=box, round_trip=around(0.006), sent=around(per_mbit / 20 + per_mbit / 80)),
            LinkFigures(device=desk, round_trip=around(0.010), sent=around(per_mbit / 20 + per_mbit / 10)),
        ],
    )
    site.measure("box", links=[LinkFigures(device=desk, round_trip=around(0.008))])
    found = made(site.api.get(MEASURES))
    link = {one["device"]: one for one in found["links"]}
    assert (link["camera"]["up_mbit"]["origin"], link["camera"]["up_mbit"]["value"]) == ("said", 20)
    assert link["box"]["delay_ms"]["value"] == pytest.approx(1, rel=0.01)
    assert link["desk"]["delay_ms"]["value"] == pytest.approx(3, rel=0.01)
    assert link["box"]["down_mbit"]["value"] == pytest.approx(80, rel=0.01)
    assert link["desk"]["down_mbit"]["value"] == pytest.approx(10, rel=0.01)
    assert link["box"]["down_mbit"]["origin"] == "measured"
    assert link["box"]["up_mbit"]["origin"] == link["camera"]["down_mbit"]["origin"] == "assumed"
    way = next(one for one in found["ways"] if (one["device"], one["to"]) == ("camera", "box"))
    assert (way["round_trip"]["median"], way["received"]) == (0.006, None)
    all_measured(site)
    plan = site.look(site.planned(**PLACED))
    assert plan["placement"]["figures"]["links"]["desk"]["delay_ms"]["value"] == pytest.approx(3, rel=0.01)


def test_newer_figures_take_the_place_of_older_ones_and_what_is_not_said_again_stays(site: Site) -> None:
    site.create()
    site.measure("box", [module("vision", 0.1, 5_000)])
    tried = ModuleFigures(model="vision", release=1, tried_s=0.3)
    assert site.measure("box", [tried]).status_code == 204
    cell = shown(site)["vision", "box"]
    assert (cell["memory_bytes"]["value"], cell["seconds"]["value"]) == (5_000, 0.1)
    site.measure("box", [module("vision", 0.2)])
    assert shown(site)["vision", "box"]["seconds"]["value"] == 0.2
    assert shown(site)["vision", "camera"]["seconds"] is None, "it is of no class, and has nothing in common"


def test_what_a_device_measured_is_among_its_reports(site: Site) -> None:
    site.create()
    site.measure("box", [module("vision", 0.1)], [LinkFigures(device=site.devices["desk"].id, round_trip=around(0.01))])
    (said, *_) = made(site.api.get(f"/api/v1/devices/{site.devices['box'].id}/reports"))["items"]
    assert said["kind"] == "measures"
    assert (said["modules"][0]["model"], said["links"][0]["round_trip"]["median"]) == ("vision", 0.01)
    assert made(site.api.get(f"/api/v1/devices/{site.devices['box'].id}"))["name"] == "box"


def test_figures_of_unknown_things_and_impossible_ones_are_refused_by_name_and_nothing_is_kept(site: Site) -> None:
    site.create()
    known = module("vision", 0.1)
    assert refused(site.measure("box", [known, module("nose", 0.1)])) == (422, "report.unknown-release")
    assert refused(site.measure("box", [known, module("text", 0.1, release=9)])) == (422, "report.unknown-release")
    stranger = LinkFigures(device=uuid4(), round_trip=around(0.1))
    assert refused(site.measure("box", [known], [stranger])) == (422, "report.unknown-device")
    assert refused(site.measure("box", [known, known])) == (422, "input.invalid")
    assert refused(site.measure("box", [module("vision", -0.1)])) == (422, "input.invalid")
    many = [module("vision", 0.1, release=at) for at in range(1, 202)]
    assert refused(site.measure("box", many)) == (422, "input.invalid")
    assert made(site.api.get(MEASURES))["modules"] == []


def test_what_a_device_says_that_is_only_played_is_no_evidence(site: Site) -> None:
    site.create()
    site.measure("box", [module("vision", 0.1)])
    assert shown(site)["vision", "box"]["seconds"] is not None
    box = site.devices["box"]
    box.sequence += 1
    attributes = PLAYED | {"site-address": "10.0.0.2:8478"}
    assert (
        box.send(FactsReport(device=box.id, sequence=box.sequence, attributes=attributes, agent="1")).status_code == 204
    )
    assert shown(site)["vision", "box"]["seconds"] is None
