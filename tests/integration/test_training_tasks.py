"""Register, retrain, release: asked for over HTTP, carried out by the worker's runner, on a real PostgreSQL."""

import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
import torch
from fastapi import FastAPI
from http_calls import Api
from training_calls import Rebuilt, carried_out, dataset, finished, registered, source_of, weights_blob

sys.path.insert(0, str(Path(__file__).parents[1] / "simulator"))

import small_recipes

from sprat_server.db.blobs import Blobs
from sprat_server.db.projects import DEFAULT_PROJECT
from sprat_server.flows import tasks_retrain
from sprat_server.jobs.runner import Runner
from sprat_server.publish.image import open_repository
from sprat_server.registry.samples import LabelledSamples, Split, seeded_split
from sprat_server.settings import Settings
from sprat_server.training import search
from sprat_server.training.graphs import stored
from sprat_server.training.states import to_source
from sprat_server.worker import load_tasks
from sprat_shared.apply import apply_update
from sprat_shared.wire.safetensors import SafetensorsFile
from sprat_shared.wire.tensors import digest_of
from sprat_shared.wire.update import Flag, read_header


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    """Settings of a server that may run the tests' recipes."""
    return Settings(
        database_url=database_url, data_dir=tmp_path / "data", recipe_packages=("small_recipes",), auto_sign="*"
    )


@pytest.fixture
def worker(app: FastAPI, settings: Settings, blobs: Blobs) -> Runner:
    """What a worker process runs jobs with."""
    load_tasks()
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        open_repository(session, settings)
    return Runner(database=app.state.database, blobs=blobs, settings=settings)


def test_a_retrained_release_is_what_a_device_rebuilds_from_its_update(
    worker: Runner, admin: Api, blobs: Blobs, tmp_path: Path
) -> None:
    assert registered(worker, admin, blobs, tmp_path)["state"] == "succeeded"
    job = carried_out(
        worker, admin, "/models/quadrants/retrain", dataset=dataset(worker, admin, blobs), keep=0.8, seed=3
    )
    assert job["state"] == "succeeded", job
    told = job["result"]
    assert told["accuracy_retrained"] > told["accuracy_base"]
    assert told["recovered_gain"] > 0.6
    assert len(told["test_indices"]) == 135

    first, second = (admin.get(f"/api/v1/models/quadrants/releases/{n}").json() for n in (1, 2))
    assert second["origin"] == "retrained"
    assert second["graph"] == first["graph"]
    small = next(update for update in second["updates"] if update["base"] == 1)
    assert small["bytes"] == told["update_bytes"] < second["model_bytes"] / 10
    full = next(update for update in second["updates"] if update["base"] is None)
    with (
        blobs.local(first["weights_blob"]) as old_path,
        blobs.local(second["weights_blob"]) as new_path,
        SafetensorsFile(old_path) as old,
        SafetensorsFile(new_path) as new,
    ):
        assert digest_of(new) == second["weights"]
        for base, update in ((old, small), (None, full)):
            sink = Rebuilt(base)
            apply_update(blobs.read(update["blob"], max_bytes=1 << 20), base, sink, expected=second["weights"])
            assert all(np.array_equal(sink.tensors[i], new.read(i)) for i in range(len(new.table)))
    assert not list((worker._settings.data_dir / "work").iterdir())


def test_an_old_domain_is_kept_and_its_test_split_is_opened_by_the_report_alone(
    worker: Runner, admin: Api, blobs: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered(worker, admin, blobs, tmp_path)
    old_inputs, old_labels = small_recipes.images(600, 7)
    new = dataset(worker, admin, blobs)
    old = dataset(worker, admin, blobs, name="bright", inputs=old_inputs, labels=old_labels)
    events: list[str] = []
    indices, train, measure = LabelledSamples.indices, tasks_retrain.retrain, tasks_retrain.report

    def seen_indices(self: LabelledSamples, name: Split) -> Any:
        events.append(name)
        return indices(self, name)

    def seen(what: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            events.append(f"{what} begins")
            given = function(*args, **kwargs)
            events.append(f"{what} ends")
            return given

        return call

    monkeypatch.setattr(LabelledSamples, "indices", seen_indices)
    monkeypatch.setattr(tasks_retrain, "retrain", seen("training", train))
    monkeypatch.setattr(tasks_retrain, "report", seen("report", measure))
    job = carried_out(worker, admin, "/models/quadrants/retrain", dataset=new, retain=old, keep=0.8, max_epochs=12)
    assert job["state"] == "succeeded", job
    assert events == [
        *("train", "validation") * 2,
        *("training begins", "training ends"),
        *("report begins", "test", "test", "report ends"),
    ]
    told = job["result"]
    assert told["retain"] == old
    assert told["accuracy_old_base"] > 0.95
    assert told["accuracy_old_released"] > told["accuracy_old_base"] - 0.05
    assert told["accuracy_released"] > told["accuracy_base"] + 0.3
    assert (len(told["test_indices"]), len(told["test_indices_old"])) == (135, 90)
    metrics = admin.get("/api/v1/models/quadrants/releases/2").json()["metrics"]
    assert metrics["accuracy_old_released"] == told["accuracy_old_released"]
    assert (metrics["dataset"], metrics["retain"], metrics["test_samples_old"]) == (new, old, 90)
    assert all(point["accuracy_old"] is not None for point in metrics["curve"])
    assert not any(name.startswith("test_indices") for name in metrics)


def test_an_old_dataset_that_does_not_fit_the_model_fails_the_job_by_name(
    worker: Runner, admin: Api, blobs: Blobs, tmp_path: Path
) -> None:
    registered(worker, admin, blobs, tmp_path)
    other = dataset(worker, admin, blobs, name="wide", inputs=np.zeros((900, 1, 9, 9), np.float32))
    new = dataset(worker, admin, blobs)
    job = carried_out(worker, admin, "/models/quadrants/retrain", dataset=new, retain=other)
    assert job["error"]["code"] == "dataset.mismatch"


def test_an_old_dataset_that_nobody_knows_or_that_is_the_new_one_is_refused_at_once(
    worker: Runner, admin: Api, blobs: Blobs, tmp_path: Path
) -> None:
    registered(worker, admin, blobs, tmp_path)
    new = dataset(worker, admin, blobs)
    unknown = admin.post("/api/v1/models/quadrants/retrain", json={"dataset": new, "retain": "sha256:" + "00" * 32})
    assert (unknown.status_code, unknown.json()["code"]) == (404, "dataset.unknown")
    same = admin.post("/api/v1/models/quadrants/retrain", json={"dataset": new, "retain": new})
    assert same.status_code == 422
    assert "retain is the dataset itself" in same.json()["detail"]


def test_a_retrain_by_budget_releases_an_update_that_fits_and_says_what_was_asked_for(
    worker: Runner, admin: Api, blobs: Blobs, tmp_path: Path
) -> None:
    registered(worker, admin, blobs, tmp_path)
    asked = {"dataset": dataset(worker, admin, blobs), "max_candidates": 2, "max_epochs": 8}
    job = carried_out(worker, admin, "/models/quadrants/retrain", budget=400, **asked)
    assert job["state"] == "succeeded", job
    assert job["result"]["update_bytes"] == job["result"]["chosen"]["update_bytes"] <= 400
    release = admin.get("/api/v1/models/quadrants/releases/2").json()
    assert [update["bytes"] <= 400 for update in release["updates"] if update["base"] == 1] == [True]
    assert [release["metrics"][knob] for knob in ("keep", "budget", "max_drop")] == [None, 400, None]
    refused = carried_out(worker, admin, "/models/quadrants/retrain", budget=40, base=1, **asked)
    assert refused["error"]["code"] == "retrain.budget"
    assert "the smallest found has" in refused["error"]["message"]


def test_the_strategy_decides_how_updates_are_made_and_samples_without_a_label_are_taken(
    worker: Runner, admin: Api, blobs: Blobs, tmp_path: Path
) -> None:
    registered(worker, admin, blobs, tmp_path)
    inputs, labels = small_recipes.images(900, 5, dim=1.0, turn=0.55)
    some = np.where((seeded_split(900) == 0) & (np.arange(900) % 3 == 0), -1, labels)
    asked = {"dataset": dataset(worker, admin, blobs, inputs=inputs, labels=some, split=seeded_split(900))}
    asked |= {"keep": 0.8, "max_epochs": 8, "max_candidates": 4}
    for strategy, methods in (("full", {"post-hoc"}), ("subspace", {"subspace"})):
        job = carried_out(worker, admin, "/models/quadrants/retrain", base=1, strategy=strategy, **asked)
        assert job["state"] == "succeeded", job
        told = job["result"]
        assert (told["strategy"], told["note"]) == (strategy, None)
        assert {point["method"] for point in told["curve"]} == methods == {told["method"]}
        release = admin.get(f"/api/v1/models/quadrants/releases/{told['release']}").json()
        assert (release["metrics"]["strategy"], release["metrics"]["curve"]) == (strategy, told["curve"])
    unknown = admin.post("/api/v1/models/quadrants/retrain", json=asked | {"strategy": "magic"})
    assert unknown.status_code == 422
    assert "'auto', 'full', 'factors' or 'subspace'" in unknown.json()["detail"]


def test_a_head_grows_with_the_recipe_s_config_and_later_retrains_go_on_from_there(
    worker: Runner, admin: Api, blobs: Blobs, tmp_path: Path
) -> None:
    registered(worker, admin, blobs, tmp_path)
    inputs, labels = small_recipes.images(900, 3, classes=6)
    asked = {"dataset": dataset(worker, admin, blobs, inputs=inputs, labels=labels), "max_epochs": 12}
    asked |= {"budget": 900, "max_candidates": 1}
    small = carried_out(worker, admin, "/models/quadrants/retrain", **asked)
    assert small["error"]["code"] == "dataset.mismatch"
    assert "--config '{\"classes\": 6}'" in small["error"]["message"]

    job = carried_out(worker, admin, "/models/quadrants/retrain", **asked, config={"classes": 6})
    assert job["state"] == "succeeded", job
    told = job["result"]
    assert told["accuracy_base"] < 0.7 < told["accuracy_released"], "a label beyond the base's outputs is wrong there"
    first, second = (admin.get(f"/api/v1/models/quadrants/releases/{n}").json() for n in (1, 2))
    assert (first["recipe_config"], second["recipe_config"]) == (None, {"classes": 6})
    assert second["graph"] != first["graph"]
    update = blobs.read(next(u["blob"] for u in second["updates"] if u["base"] == 1), max_bytes=1 << 20)
    assert Flag.PATCH in read_header(memoryview(update)).flags
    assert len(update) <= 900
    with (
        blobs.local(first["weights_blob"]) as old_path,
        blobs.local(second["weights_blob"]) as new_path,
        SafetensorsFile(old_path) as old,
        SafetensorsFile(new_path) as new,
    ):
        sink = Rebuilt(old)
        apply_update(update, old, sink, expected=second["weights"])
        assert all(np.array_equal(sink.tensors[i], new.read(i)) for i in range(len(new.table)))
        assert new.table[new.table.index_of("tell.weight")].shape == (6, 24)

    again = {"inputs": inputs - 1, "labels": labels}
    asked["dataset"] = dataset(worker, admin, blobs, name="dimmer", **again)
    job = carried_out(worker, admin, "/models/quadrants/retrain", **asked)
    assert job["state"] == "succeeded", job
    third = admin.get("/api/v1/models/quadrants/releases/3").json()
    assert (third["recipe_config"], third["graph"]) == ({"classes": 6}, second["graph"])


def test_a_config_that_changes_what_no_training_sends_is_refused_by_name(
    worker: Runner, admin: Api, blobs: Blobs, tmp_path: Path
) -> None:
    registered(worker, admin, blobs, tmp_path)
    asked = {"dataset": dataset(worker, admin, blobs), "max_candidates": 1, "max_epochs": 1}
    job = carried_out(worker, admin, "/models/quadrants/retrain", **asked, config={"width": 9})
    assert job["error"]["code"] == "weights.mismatch"
    assert "norm.running_var would be new or larger" in job["error"]["message"]
    job = carried_out(worker, admin, "/models/quadrants/retrain", **asked, config={"colour": True})
    assert job["error"]["code"] == "recipe.broken"


def test_registration_keeps_a_graph_without_weights_and_a_probe_graph(
    worker: Runner, admin: Api, blobs: Blobs, tmp_path: Path
) -> None:
    result = registered(worker, admin, blobs, tmp_path)["result"]
    assert result["release"] == 1
    graph = stored(blobs.read(result["graph"], max_bytes=1 << 20))
    assert len(graph.bound) == 9
    assert len(graph.data) < 8000
    assert admin.get("/api/v1/models/quadrants").json()["latest"] == 1


def test_a_model_from_onnx_alone_takes_weights_from_elsewhere_but_is_not_retrained(
    worker: Runner, admin: Api, blobs: Blobs, tmp_path: Path
) -> None:
    graph = registered(worker, admin, blobs, tmp_path)["result"]["graph"]
    job = registered(worker, admin, blobs, tmp_path, name="bare", recipe=None, graph=graph, example=None)
    assert job["state"] == "succeeded", job
    better = weights_blob(blobs, source_of(small_recipes.trained(seed=4)), tmp_path)
    exact = carried_out(worker, admin, "/models/bare/releases", weights=better, lossless=True)
    assert exact["state"] == "succeeded", exact
    assert exact["result"]["weights"] == digest_of(source_of(small_recipes.trained(seed=4)))
    again = carried_out(worker, admin, "/models/bare/releases", weights=better, lossless=True, base=1)
    assert again["error"]["code"] == "release.exists"
    close = carried_out(worker, admin, "/models/bare/releases", weights=better, base=1)
    assert close["result"]["update_bytes"] < exact["result"]["update_bytes"]
    asked = admin.post("/api/v1/models/bare/retrain", json={"dataset": dataset(worker, admin, blobs)})
    assert asked.json()["code"] == "model.not-retrainable"


def test_a_model_of_several_inputs_is_registered_and_updated_and_says_why_it_is_not_retrained(
    worker: Runner, admin: Api, blobs: Blobs, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    modules = [small_recipes.Match(), small_recipes.Match()]
    first, second = (weights_blob(blobs, source_of(module), tmp_path) for module in modules)
    recipe = {"factory": "small_recipes:build_match", "config": {}}
    job = registered(
        worker, admin, blobs, tmp_path, name="match", recipe=recipe, weights=first, example=small_recipes.MATCH
    )
    assert job["state"] == "succeeded", job
    graph = job["result"]["graph"]
    asked = {"recipe": None, "weights": first, "graph": graph}
    bare = registered(worker, admin, blobs, tmp_path, name="bare", **asked, example=None)
    assert bare["state"] == "succeeded", bare
    one = {"inputs": [{"name": "image", "shape": [1, 6], "dtype": "F32"}]}
    wrong = registered(worker, admin, blobs, tmp_path, name="wrong", **asked, example=one)
    assert wrong["error"]["message"] == "the graph takes image, ids; the example is of image"
    for name in ("match", "bare"):
        better = carried_out(worker, admin, f"/models/{name}/releases", weights=second, lossless=True)
        assert better["state"] == "succeeded", better
    refused = carried_out(worker, admin, "/models/match/retrain", dataset=dataset(worker, admin, blobs))
    assert refused["error"]["code"] == "model.several-inputs"


def test_weights_of_a_larger_head_take_another_config_or_another_graph(
    worker: Runner, admin: Api, blobs: Blobs, tmp_path: Path
) -> None:
    graph = registered(worker, admin, blobs, tmp_path)["result"]["graph"]
    registered(worker, admin, blobs, tmp_path, name="bare", recipe=None, graph=graph, example=None)
    six = source_of(small_recipes.Small(classes=6))
    weights = weights_blob(blobs, six, tmp_path)
    for name, way in (("quadrants", "--config"), ("bare", "--graph")):
        refused = carried_out(worker, admin, f"/models/{name}/releases", weights=weights)
        assert "tensor 'tell.bias' is [4] in" in refused["error"]["message"]
        assert way in refused["error"]["message"]
        wrong = {"graph": graph} if name == "quadrants" else {"config": {"classes": 6}}
        assert carried_out(worker, admin, f"/models/{name}/releases", weights=weights, **wrong)["state"] == "failed"

    job = carried_out(worker, admin, "/models/quadrants/releases", weights=weights, config={"classes": 6})
    assert job["state"] == "succeeded", job
    grown = admin.get("/api/v1/models/quadrants/releases/2").json()
    assert grown["recipe_config"] == {"classes": 6}
    assert grown["graph"] != graph
    job = carried_out(worker, admin, "/models/bare/releases", weights=weights, graph=grown["graph"], lossless=True)
    assert job["state"] == "succeeded", job
    assert job["result"]["weights"] == digest_of(six)


def test_weights_that_are_not_the_modules_are_refused_and_named(
    worker: Runner, admin: Api, blobs: Blobs, tmp_path: Path
) -> None:
    wide = weights_blob(blobs, source_of(small_recipes.Small(hidden=25)), tmp_path)
    job = registered(worker, admin, blobs, tmp_path, weights=wide)
    assert job["state"] == "failed"
    assert job["error"]["code"] == "weights.mismatch"
    assert "tell.weight is F32[4, 25] where the module has F32[4, 24]" in job["error"]["message"]
    broken = small_recipes.Small()
    with torch.no_grad():
        broken.tell.bias[1] = float("nan")
    job = registered(worker, admin, blobs, tmp_path, weights=weights_blob(blobs, source_of(broken), tmp_path))
    assert job["error"] == {
        "code": "weights.not-finite",
        "message": "NaN or Inf in tell.bias; the weights are refused",
    }
    assert admin.get("/api/v1/models").json()["items"] == []


def test_a_recipe_from_a_package_that_is_not_allowed_fails_the_job(
    worker: Runner, admin: Api, blobs: Blobs, tmp_path: Path
) -> None:
    job = registered(worker, admin, blobs, tmp_path, recipe={"factory": "os:getcwd", "config": {}})
    assert job["error"]["code"] == "recipe.not-allowed"
    job = registered(worker, admin, blobs, tmp_path, recipe={"factory": "small_recipes:build_error", "config": {}})
    assert job["error"]["code"] == "recipe.broken"
    job = registered(worker, admin, blobs, tmp_path, example=None)
    assert "give its shape with the batch axis" in job["error"]["message"]


def test_labels_beyond_the_outputs_and_data_that_teach_nothing_fail_by_name(
    worker: Runner, admin: Api, blobs: Blobs, tmp_path: Path
) -> None:
    registered(worker, admin, blobs, tmp_path)
    _, labels = small_recipes.images(900, 1)
    beyond = dataset(worker, admin, blobs, labels=labels + 1)
    job = carried_out(worker, admin, "/models/quadrants/retrain", dataset=beyond)
    assert job["error"]["code"] == "dataset.mismatch"
    assert "label 4 is beyond the model's 4 outputs" in job["error"]["message"]
    inputs, _ = small_recipes.images(900, 5)
    answers = small_recipes.trained()(torch.from_numpy(inputs)).argmax(1).numpy()
    perfect = dataset(worker, admin, blobs, inputs=inputs, labels=answers)
    job = carried_out(worker, admin, "/models/quadrants/retrain", dataset=perfect, max_epochs=1)
    assert job["error"]["code"] == "retrain.no-gain"
    assert not list((worker._settings.data_dir / "work").iterdir())


def test_a_retrain_stops_soon_after_it_is_cancelled_and_leaves_nothing(
    worker: Runner, admin: Api, blobs: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered(worker, admin, blobs, tmp_path)
    asked = {"dataset": dataset(worker, admin, blobs), "max_epochs": 2}
    answer = admin.post("/api/v1/models/quadrants/retrain", json=asked)
    job = UUID(answer.json()["job"]["id"])
    walk, begun = search._Search._walk, []

    def cancelled_while_it_walks(self: Any, *args: Any, **kept: Any) -> bool:
        begun.append(admin.post(f"/api/v1/jobs/{job}/cancel").status_code)
        return walk(self, *args, **kept)

    monkeypatch.setattr(search._Search, "_walk", cancelled_while_it_walks)
    ended = finished(worker, admin, job)
    assert begun == [200]
    assert ended["state"] == "cancelled"
    assert 0.2 < ended["progress"]["fraction"] < 0.5
    assert admin.get("/api/v1/models/quadrants").json()["latest"] == 1
    assert not list((worker._settings.data_dir / "work").iterdir())


def test_tied_weights_stay_tied_through_registration_and_release(
    worker: Runner, admin: Api, blobs: Blobs, tmp_path: Path
) -> None:
    module = small_recipes.Tied()
    both = to_source({"embed.weight": module.embed.weight, "out.weight": module.out.weight.clone()})
    job = registered(
        worker,
        admin,
        blobs,
        tmp_path,
        recipe={"factory": "small_recipes:build_tied", "config": {}},
        weights=weights_blob(blobs, both, tmp_path),
        example={"shape": [1, 4], "dtype": "I64"},
    )
    assert job["state"] == "succeeded", job
    assert job["result"]["model_bytes"] == 6 * 8 * 4
    other = to_source({"out.weight": module.out.weight + 0.5})
    job = carried_out(
        worker, admin, "/models/quadrants/releases", weights=weights_blob(blobs, other, tmp_path), lossless=True
    )
    assert job["state"] == "succeeded", job


def test_bytes_that_are_a_dataset_already_keep_its_name_and_another_one_is_refused(
    worker: Runner, admin: Api, blobs: Blobs
) -> None:
    digest = dataset(worker, admin, blobs)
    assert dataset(worker, admin, blobs) == digest
    again = carried_out(worker, admin, "/datasets", name="dusk", blob=digest)
    assert (again["state"], again["error"]["code"]) == ("failed", "state.conflict")
    assert "'dim' already" in again["error"]["message"]
