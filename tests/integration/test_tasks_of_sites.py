"""Tasks of sites, checked against their modules' graphs, and plans made of them: by hand, or placed."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fastapi import FastAPI
from fleet_calls import made
from http_calls import Api
from onnx import helper, numpy_helper
from safetensors.numpy import save_file
from sharing_calls import runner
from site_calls import FLOAT, GRAPHS, HOSTS, PLANS, TASK, Site, refused
from training_calls import carried_out

from sprat_server.db.blobs import Blobs
from sprat_server.settings import Settings

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

import tiny_models

CLASSIFY: dict[str, Any] = {
    "name": "find",
    "inputs": {"image": "float32[n, 16]"},
    "steps": {
        "see": {"model": "body", "inputs": {"x": "image"}},
        "say": {"model": "last", "inputs": {"x": "see.logits"}},
    },
    "outputs": {"score": "say.y"},
}


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
    at = {"find": ["camera"]}
    asked: dict[str, Any] = {"hosts": None, "modules": modules, "at": at, "seconds": 2}
    shown = site.look(site.planned(**asked))
    assert {one["model"]: one["hosts"] for one in shown["modules"]}["vision"] == ["box"]
    assert shown["placement"]["proven"] == "optimal"
    assert shown["placement"]["total_s"] == pytest.approx(shown["placement"]["tasks"]["find@camera"])
    asked["modules"] = modules | {"vision": {"memory_bytes": 20_000, "seconds": {"camera": 0.5, "box": 0.01}}}
    done = site.plan_job(**asked)
    assert (done["state"], done["error"]["code"]) == ("failed", "site.no-placement")


def test_a_plan_of_unknown_things_is_refused_at_once(site: Site) -> None:
    site.create()
    for changed, says in (
        ({"hosts": HOSTS | {"nose": ["box"]}}, "hosts: the tasks have no nose"),
        ({"hosts": {"vision": ["box"], "text": ["box"]}}, "hosts: say on which devices head is"),
        ({"hosts": HOSTS | {"head": ["cellar"]}}, "cellar is no device of site line-3; it has box, camera, desk"),
        ({"hosts": None}, "at: say at which devices applications ask for find"),
        ({"hosts": None, "at": {"find": ["camera"]}}, "nothing is known of how long a run of head takes on box"),
        ({"hosts": None, "at": {"find": ["camera"]}, "on": ["cellar"]}, "cellar is no device of site line-3"),
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


def register(site: Site, name: str, graph: Path, weights: Path) -> None:
    """Register a module that runs."""
    blobs = {"graph": site.blobs.put_file(graph).digest, "weights": site.blobs.put_file(weights).digest}
    done = carried_out(site.worker, site.api, "/models", name=name, **blobs)
    assert done["state"] == "succeeded", done


def write_last(path: Path) -> Path:
    """Write a module (n, 4) -> (n, 4) that turns the order of classes around."""
    ports = [helper.make_tensor_value_info(name, FLOAT, ["batch", 4]) for name in ("x", "y")]
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32)[::-1].copy(), "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    graph = helper.make_graph(nodes, "last", ports[:1], ports[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    return path


def test_a_plan_under_which_a_task_does_worse_is_refused_with_the_numbers(site: Site, tmp_path: Path) -> None:
    right = tiny_models.truth()
    body = tiny_models.write_graph(tmp_path / "body.onnx", right)
    register(site, "body", body, tiny_models.write_weights(tmp_path / "body.safetensors", right))
    save_file({"w": np.eye(4, dtype=np.float32)[::-1].copy()}, tmp_path / "last.safetensors")
    register(site, "last", write_last(tmp_path / "last.onnx"), tmp_path / "last.safetensors")
    samples = tiny_models.samples(800, seed=4)
    samples["labels"] = 3 - samples["labels"]  # as the last module turns them
    np.savez(tmp_path / "samples.npz", **samples)  # type: ignore[arg-type] # numpy's stub takes allow_pickle for a name
    kept = carried_out(
        site.worker, site.api, "/datasets", name="line", blob=site.blobs.put_file(tmp_path / "samples.npz").digest
    )
    test = {"dataset": kept["result"]["digest"], "input": "image", "output": "score"}

    other = {"inputs": {"image": "float32[n, 16]", "more": "float32[n, 16]"}}
    assert refused(site.api.post("/api/v1/tasks", json=CLASSIFY | other | {"test": test})) == (422, "task.invalid")
    site.create(task=CLASSIFY | {"test": test})
    hosts = {"body": ["box"], "last": ["camera"]}
    first = site.served(hosts=hosts)
    assert site.look(first)["tests"] == [
        {"task": "find", "samples": 120, "new_correct": 120, "old_correct": None, "only_old": 0, "only_new": 0,
         "p_worse": 1.0}
    ]  # fmt: skip

    for weights, state in ((tiny_models.backwards(), "failed"), (tiny_models.truth(), "succeeded")):
        weights["2.bias"] = weights["2.bias"] + np.float32(1e-4)
        blob = site.blobs.put_file(tiny_models.write_weights(tmp_path / "next.safetensors", weights)).digest
        made_one = carried_out(site.worker, site.api, "/models/body/releases", weights=blob, lossless=True)
        assert made_one["state"] == "succeeded", made_one
        done = site.plan_job(hosts=hosts)
        assert done["state"] == state, done
        if state == "failed":
            assert done["error"]["code"] == "site.task-worse"
            assert done["error"]["message"].startswith("task find: it is worse: ")
            assert "0 won of 120 (p = " in done["error"]["message"]
    (tested,) = site.look(done["result"]["plan"])["tests"]
    assert (tested["new_correct"], tested["old_correct"], tested["only_old"]) == (120, 120, 0)
