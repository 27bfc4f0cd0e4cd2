"""A retrain that leaves norm statistics to devices: what is signed, sent and kept, and the ways on from there."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from http_calls import Api
from training_calls import Rebuilt, carried_out, dataset, registered, source_of, weights_blob

sys.path.insert(0, str(Path(__file__).parents[1] / "simulator"))

import small_recipes

from sprat_server.compress.direct import direct_update
from sprat_server.db.blobs import Blobs
from sprat_server.db.projects import DEFAULT_PROJECT
from sprat_server.flows.poll import _graphs
from sprat_server.jobs.runner import Runner
from sprat_server.publish import repository
from sprat_server.publish.image import open_repository
from sprat_server.registry import service as registry
from sprat_server.settings import Settings
from sprat_server.worker import load_tasks
from sprat_shared.apply import apply_update
from sprat_shared.trust.targets import LocalStatistics, UpdateTarget, graph_path, role_of_model
from sprat_shared.wire.safetensors import SafetensorsFile
from sprat_shared.wire.tensors import ArrayTensors, TensorSource, WithoutLocal, digest_of

LOCAL = ["norm.running_mean", "norm.running_var"]


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return Settings(
        database_url=database_url, data_dir=tmp_path / "data", recipe_packages=("small_recipes",), auto_sign="*"
    )


@pytest.fixture
def worker(app: FastAPI, settings: Settings, blobs: Blobs) -> Runner:
    load_tasks()
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        open_repository(session, settings)
    return Runner(database=app.state.database, blobs=blobs, settings=settings)


def view(api: Api, number: int) -> dict[str, Any]:
    shown: dict[str, Any] = api.get(f"/api/v1/models/quadrants/releases/{number}").json()
    return shown


def tensors(blobs: Blobs, release: dict[str, Any]) -> ArrayTensors:
    with blobs.local(release["weights_blob"]) as path, SafetensorsFile(path) as file:
        return ArrayTensors({spec.name: (spec.dtype, np.array(file.read(i))) for i, spec in enumerate(file.table)})


def indices(source: TensorSource) -> tuple[int, ...]:
    return tuple(source.table.index_of(name) for name in LOCAL)


def test_statistics_are_left_to_devices_release_by_release_until_weights_are_given_whole(
    worker: Runner, admin: Api, blobs: Blobs, tmp_path: Path, app: FastAPI
) -> None:
    registered(worker, admin, blobs, tmp_path)
    how = {"keep": 0.6, "max_candidates": 2, "strategy": "factors", "max_epochs": 6}
    job = carried_out(
        worker, admin, "/models/quadrants/retrain", dataset=dataset(worker, admin, blobs), local_statistics=True, **how
    )
    assert job["state"] == "succeeded", job
    assert job["result"]["local"] == LOCAL
    again = dataset(worker, admin, blobs, seed=5, name="turned", **turned_images())
    job = carried_out(worker, admin, "/models/quadrants/retrain", dataset=again, **how)  # not asked again
    assert job["state"] == "succeeded", job
    given = weights_blob(blobs, source_of(small_recipes.trained(seed=4)), tmp_path)
    job = carried_out(worker, admin, "/models/quadrants/releases", weights=given)
    assert job["state"] == "succeeded", job

    first, second, third, fourth = (view(admin, number) for number in range(1, 5))
    assert [release["local"] for release in (first, second, third, fourth)] == [[], LOCAL, LOCAL, []]
    old, new, next_, last = (tensors(blobs, release) for release in (first, second, third, fourth))
    local = indices(old)
    assert digest_of(WithoutLocal(new, local)) == second["weights"]
    assert digest_of(WithoutLocal(next_, local)) == third["weights"]
    assert digest_of(last) == fourth["weights"]

    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        model = registry.get_model(session, "quadrants")
        role = role_of_model("quadrants")
        every = [(role, version) for version in range(1, repository.newest_versions(session)[role] + 1)]
        bodies = repository.read_metadata(session, every).values()
        signed = {path: one for body in bodies for path, one in json.loads(body)["signed"]["targets"].items()}
        release = registry.get_release(session, model, 2)
        graph = release.statistics_graph
        assert graph is not None
        assert _graphs(release) == [release.graph_digest, graph]
    assert graph_path("quadrants", graph) in signed
    for number, path in ((2, "quadrants/2/from-1"), (3, "quadrants/3/full"), (4, "quadrants/4/from-3")):
        target = UpdateTarget.from_custom(path, signed[path]["custom"])
        assert target.local == (None if number == 4 else LocalStatistics(graph=graph, tensors=local))

    a_device = WithoutLocal(with_own_statistics(next_), local)  # whose statistics nobody else has
    for base, release, result, what in (
        (old, second, new, local),
        (WithoutLocal(with_own_statistics(new), local), third, next_, local),
        (a_device, fourth, last, ()),
        (None, third, next_, local),
    ):
        base_number = None if base is None else release["number"] - 1
        update = next(update for update in release["updates"] if update["base"] == base_number)
        sink, data = Rebuilt(base), blobs.read(update["blob"], max_bytes=1 << 20)
        apply_update(data, base, sink, expected=release["weights"], local=what)
        for index in range(len(old.table)):
            wanted = np.zeros_like(result.read(index)) if index in what else result.read(index)
            assert np.array_equal(sink.tensors[index], wanted)
    direct = direct_update(old, WithoutLocal(next_, local), [], local=local)
    assert direct is not None
    apply_update(direct, old, Rebuilt(old), expected=third["weights"], local=local)


def turned_images() -> dict[str, np.ndarray]:
    inputs, labels = small_recipes.images(900, 5, dim=-1.0, turn=1.0)
    return {"inputs": inputs, "labels": labels}


def with_own_statistics(source: ArrayTensors) -> ArrayTensors:
    draw = np.random.default_rng(8)
    own = {name: draw.uniform(0.5, 2, source.read(source.table.index_of(name)).shape) for name in LOCAL}
    return ArrayTensors(
        {
            spec.name: (spec.dtype, own[spec.name].astype(np.float32) if spec.name in own else source.read(index))
            for index, spec in enumerate(source.table)
        }
    )


def test_a_model_without_norms_is_refused_by_name(worker: Runner, admin: Api, blobs: Blobs, tmp_path: Path) -> None:
    registered(
        worker,
        admin,
        blobs,
        tmp_path,
        recipe={"factory": "small_recipes:build_unused"},
        weights=weights_blob(blobs, source_of(small_recipes.Unused()), tmp_path),
        example={"shape": [1, 4], "dtype": "F32"},
    )
    draw = np.random.default_rng(1)
    arrays = {"inputs": draw.random((200, 4), np.float32), "labels": draw.integers(0, 4, 200)}
    digest = dataset(worker, admin, blobs, **arrays)
    job = carried_out(worker, admin, "/models/quadrants/retrain", dataset=digest, local_statistics=True)
    assert job["error"]["code"] == "model.no-local-statistics"
