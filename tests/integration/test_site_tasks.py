"""Tasks of sites, checked against their modules' graphs, and plans made of them: by hand, or placed."""

from typing import Any

import pytest
from fastapi import FastAPI
from fleet_calls import made
from http_calls import Api
from sharing_calls import runner
from site_calls import FLOAT, GRAPHS, HOSTS, PLANS, TASK, Site, refused

from sprat_server.db.blobs import Blobs
from sprat_server.settings import Settings


@pytest.fixture
def site(app: FastAPI, settings: Settings, blobs: Blobs, admin: Api) -> Site:
    return Site(app, runner(app, settings, blobs), admin, blobs)


def test_a_plan_places_its_modules_where_that_is_asked_for(site: Site) -> None:
    site.create(
        devices=[
            {"name": "camera", "memory_bytes": 2500, "up_mbit": 1, "down_mbit": 1, "delay_ms": 5},
            {"name": "box", "memory_bytes": 10_000},
            {"name": "desk", "memory_bytes": 10_000},
        ]
    )
    modules = {
        "vision": {"seconds": {"camera": 0.5, "box": 0.01, "desk": 0.2}},
        "text": {"seconds": {"box": 0.01, "desk": 0.2}},
        "head": {"memory_bytes": 100, "seconds": {"camera": 0.001, "box": 0.001}},
    }
    at = {"image": "camera", "words": "box"}
    asked: dict[str, Any] = {"hosts": None, "modules": modules, "at": at, "seconds": 2}
    shown = site.look(site.planned(**asked))
    assert {one["model"]: one["hosts"] for one in shown["modules"]}["vision"] == ["box"]
    assert shown["placement"]["proven"] == "optimal"
    assert shown["placement"]["total_s"] == pytest.approx(shown["placement"]["tasks"]["find"])
    asked["modules"] = modules | {"vision": {"memory_bytes": 20_000, "seconds": {"camera": 0.5, "box": 0.01}}}
    done = site.plan_job(**asked)
    assert (done["state"], done["error"]["code"]) == ("failed", "site.no-placement")


def test_a_plan_of_unknown_things_is_refused_at_once(site: Site) -> None:
    site.create()
    for changed, says in (
        ({"hosts": HOSTS | {"nose": ["box"]}}, "hosts: the tasks have no nose"),
        ({"hosts": {"vision": ["box"], "text": ["box"]}}, "hosts: say on which devices head is"),
        ({"hosts": HOSTS | {"head": ["cellar"]}}, "cellar is no device of site line-3; it has box, camera, desk"),
        ({"hosts": None}, "say how long a run of head takes"),
        ({"releases": {"nose": 1}}, "releases: the tasks have no nose"),
    ):
        body: dict[str, Any] = {"tasks": ["find"], "hosts": HOSTS} | changed
        answer = site.api.post(PLANS, json=body)
        assert refused(answer) == (422, "site.bad-plan")
        assert says in answer.text


def test_a_release_of_another_signature_is_refused_for_plans_by_name(site: Site) -> None:
    site.create()
    site.release("vision", ([("x", FLOAT, ["n", 9])], GRAPHS["vision"][1]))
    done = site.plan_job()
    assert (done["state"], done["error"]["code"]) == ("failed", "task.invalid")
    assert done["error"]["message"] == (
        "task find: edge image -> see.x: float32[n, 8] comes, and vision takes float32[n, 9]"
        " (of head@1, text@1, vision@2)"
    )
    assert site.planned(releases={"vision": 1}) == 1


def test_a_task_whose_edges_do_not_fit_is_refused_by_the_edge(site: Site) -> None:
    judge = TASK["steps"]["judge"]
    for wrong, says in (
        (
            {"a": "read.out", "b": "see.out"},
            "edge read.out -> judge.a: float32[n, 2] comes, and head takes float32[m, 3]",
        ),
        ({"a": "see.nose", "b": "read.out"}, "edge see.nose -> judge.a: see gives see.out"),
        ({"a": "see.out", "c": "read.out"}, "step judge: input b of head is not connected; it takes a float32[m, 3]"),
    ):
        done = site.task(steps=TASK["steps"] | {"judge": judge | {"inputs": wrong}})
        assert (done["state"], done["error"]["code"]) == ("failed", "task.invalid"), done
        assert says in done["error"]["message"]
    assert refused(site.api.get("/api/v1/tasks/find")) == (404, "task.unknown")


def test_a_task_that_is_no_graph_is_refused_at_once(site: Site) -> None:
    answer = site.api.post("/api/v1/tasks", json=TASK | {"outputs": {"score": "nobody.out"}})
    assert refused(answer) == (422, "task.invalid")
    answer = site.api.post(
        "/api/v1/tasks", json=TASK | {"steps": TASK["steps"] | {"see": {"model": "nose", "inputs": {"x": "image"}}}}
    )
    assert refused(answer) == (404, "model.unknown")


def test_a_task_is_replaced_only_where_that_is_said_and_plans_keep_what_it_was(site: Site) -> None:
    site.create()
    number = site.served()
    assert refused(site.api.post("/api/v1/tasks", json=TASK)) == (409, "task.exists")
    done = site.task(replace=True, deadline_s=2.0)
    assert done["state"] == "succeeded"
    shown = made(site.api.get("/api/v1/tasks/find"))
    assert (shown["deadline_s"], shown["plans"], shown["steps"]) == (2.0, ["line-3/1"], TASK["steps"])
    assert site.look(number)["tasks"]["find"]["deadline_s"] == 0.5


def test_a_fallback_gives_what_the_task_gives(site: Site) -> None:
    site.release("small", ([("x", FLOAT, ["n", 8])], ("out", FLOAT, ["n", 1])))
    alone = {"steps": {"alone": {"model": "small", "inputs": {"x": "image"}}}, "outputs": {"score": "alone.out"}}
    done = site.task(fallback=alone)
    assert done["state"] == "succeeded", done
    assert made(site.api.get("/api/v1/tasks/find"))["fallback"] == alone
    other = {"steps": {"alone": {"model": "vision", "inputs": {"x": "image"}}}, "outputs": {"score": "alone.out"}}
    done = site.task(fallback=other, replace=True)
    assert "task find: fallback: edge alone.out -> score: float32[n, 3], not float32[n, 1]" in done["error"]["message"]
