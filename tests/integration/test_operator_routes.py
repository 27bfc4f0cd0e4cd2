"""The operators' routes for models, datasets and devices: jobs are queued, everything is audited, errors say why."""

from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from fleet_calls import TestDevice, join, made, published
from http_calls import Api
from sqlalchemy import event, select
from sqlalchemy.orm import Session

from sprat_server.db.blobs import Blobs
from sprat_server.db.projects import DEFAULT_PROJECT
from sprat_server.flows.tasks_datasets import validate_dataset
from sprat_server.jobs.models import Job
from sprat_server.jobs.tasks import JobContext
from sprat_server.registry.models import Dataset
from sprat_server.registry.schemas import RetrainRequest
from sprat_shared.ids import sha256_digest

RECIPE = {"factory": "acme.models:build", "config": {"width": 8}}


@pytest.fixture
def weights(blobs: Blobs) -> str:
    """The digest of an uploaded file."""
    return blobs.put_bytes(b"weights").digest


def uploaded_dataset(blobs: Blobs, tmp_path: Path, samples: int = 100) -> str:
    path = tmp_path / "data.npz"
    inputs = np.arange(samples * 9, dtype=np.float32).reshape(samples, 3, 3)
    np.savez(path, inputs=inputs, labels=np.arange(samples) % 4)
    return blobs.put_file(path).digest


def carry_out(app: FastAPI, job_id: str) -> dict[str, Any]:
    """Do a validate-dataset job here, as a worker would."""
    database = app.state.database
    with database.transaction(DEFAULT_PROJECT) as session:
        job = session.get_one(Job, job_id)
        job.state, job.attempt, job.started_at = "running", 1, job.created_at
        args = dict(job.args)
    context = JobContext(
        job_id=job.id,
        project_id=job.project_id,
        attempt=1,
        database=database,
        blobs=app.state.blobs,
        settings=app.state.settings,
        stopping=Event(),
    )
    return validate_dataset(context, args)


def test_registering_a_model_queues_a_job_and_leaves_an_audit_record(releaser: Api, viewer: Api, weights: str) -> None:
    body = {"name": "pcb", "recipe": RECIPE, "weights": weights, "example": {"shape": [1, 3], "dtype": "F32"}}
    answer = releaser.post("/api/v1/models", json=body)
    assert answer.status_code == 202
    job = answer.json()["job"]
    assert (job["kind"], job["state"]) == ("register-model", "queued")
    assert job["args"] == body | {"graph": None}
    newest = made(viewer.get("/api/v1/audit"))["items"][0]
    assert (newest["action"], newest["subject"], newest["after"]["job"]) == ("model.register", "model:pcb", job["id"])


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"name": "Not A Name"}, 422, "name"),
        ({"name": "mnist"}, 409, "exists already"),
        ({"weights": "sha256:" + "00" * 32}, 404, "upload it first"),
        ({"weights": "abc"}, 422, "weights"),
        ({"recipe": None}, 422, "either a recipe"),
        ({"graph": "sha256:" + "00" * 32}, 422, "either a recipe"),
        ({"recipe": {"factory": "os.system"}}, 422, "recipe.factory"),
        ({"example": {"shape": [0]}}, 422, "example.shape"),
        ({"colour": "red"}, 422, "colour"),
    ],
)
def test_a_model_that_cannot_be_registered_is_refused_before_a_job_is_made(  # noqa: PLR0917
    app: FastAPI, releaser: Api, weights: str, change: dict[str, Any], status: int, words: str
) -> None:
    published(app)
    answer = releaser.post("/api/v1/models", json={"name": "pcb", "recipe": RECIPE, "weights": weights} | change)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["detail"]
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        assert session.scalars(select(Job)).all() == []


def test_models_and_releases_are_shown_with_their_updates(app: FastAPI, viewer: Api) -> None:
    published(app)
    second = published(app, base=1)
    published(app, model="pcb")
    models = made(viewer.get("/api/v1/models"))["items"]
    assert [(model["name"], model["latest"]) for model in models] == [("pcb", 1), ("mnist", 2)]
    assert made(viewer.get("/api/v1/models/mnist"))["latest"] == 2
    releases = made(viewer.get("/api/v1/models/mnist/releases"))["items"]
    assert [release["number"] for release in releases] == [2, 1]
    shown = made(viewer.get("/api/v1/models/mnist/releases/2"))
    assert shown == releases[0]
    assert (shown["weights"], shown["model_bytes"], shown["base"]) == (second.weights_digest, 2000, 1)
    assert [(update["base"], update["bytes"], update["target"]) for update in shown["updates"]] == [
        (None, 2000, "mnist/2/full"),
        (1, 100, "mnist/2/from-1"),
    ]


def test_lists_come_in_pages(app: FastAPI, viewer: Api) -> None:
    published(app)
    for base in (1, 2, 3):
        published(app, base=base)
    seen, cursor = [], None
    while True:
        page = made(
            viewer.get("/api/v1/models/mnist/releases", params={"limit": 3} | ({"cursor": cursor} if cursor else {}))
        )
        seen += [release["number"] for release in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert seen == [4, 3, 2, 1]


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/api/v1/models/nope", "model.unknown"),
        ("/api/v1/models/nope/releases", "model.unknown"),
        ("/api/v1/models/mnist/releases/9", "release.unknown"),
        ("/api/v1/datasets/sha256:00", "dataset.unknown"),
        ("/api/v1/rollouts/00000000-0000-7000-8000-000000000000", "rollout.unknown"),
        ("/api/v1/devices/00000000-0000-7000-8000-000000000000", "device.unknown"),
        ("/api/v1/devices/00000000-0000-7000-8000-000000000000/reports", "device.unknown"),
    ],
)
def test_what_does_not_exist_is_a_404_with_a_code(app: FastAPI, viewer: Api, path: str, code: str) -> None:
    published(app)
    answer = viewer.get(path)
    assert (answer.status_code, answer.json()["code"]) == (404, code)


def test_a_release_from_foreign_weights_is_queued_with_its_base(app: FastAPI, releaser: Api, weights: str) -> None:
    published(app)
    job = made(releaser.post("/api/v1/models/mnist/releases", json={"weights": weights}))["job"]
    assert (job["kind"], job["args"]) == (
        "create-release",
        {"model": "mnist", "weights": weights, "base": 1, "lossless": False, "config": None, "graph": None},
    )


def test_a_model_without_a_recipe_is_not_retrained_here(
    app: FastAPI, operator: Api, blobs: Blobs, tmp_path: Path
) -> None:
    published(app)
    digest = uploaded_dataset(blobs, tmp_path)
    answer = operator.post("/api/v1/models/mnist/retrain", json={"dataset": digest})
    assert (answer.status_code, answer.json()["code"]) == (409, "model.not-retrainable")


@pytest.mark.parametrize(
    "change",
    [
        {"keep": 0},
        {"keep": 1.5},
        {"base": 0},
        {"max_epochs": 0},
        {"seed": -1},
        {"dataset": "x"},
        {"budget": 0},
        {"max_drop": 1},
        {"retain": "x"},
    ],
)
def test_a_retrain_with_impossible_numbers_is_refused(app: FastAPI, operator: Api, change: dict[str, Any]) -> None:
    published(app)
    body = {"dataset": "sha256:" + "00" * 32} | change
    answer = operator.post("/api/v1/models/mnist/retrain", json=body)
    assert answer.status_code == 422
    assert next(iter(change)) in answer.json()["detail"]


def test_a_retrain_takes_one_knob_only_and_without_any_keeps_95_percent_of_the_gain() -> None:
    dataset = "sha256:" + "00" * 32
    assert RetrainRequest(dataset=dataset).keep == 0.95
    for knobs in ({"budget": 2000}, {"max_drop": 0.005}):
        asked = RetrainRequest(dataset=dataset, **knobs)
        assert asked.model_dump(include={"keep", "budget", "max_drop"}, exclude_none=True) == knobs


@pytest.mark.parametrize(
    "knobs", [{"keep": 0.9, "budget": 2000}, {"keep": 0.9, "max_drop": 0.01}, {"budget": 2000, "max_drop": 0.01}]
)
def test_two_knobs_of_a_retrain_are_refused_by_name(app: FastAPI, operator: Api, knobs: dict[str, Any]) -> None:
    published(app)
    answer = operator.post("/api/v1/models/mnist/retrain", json={"dataset": "sha256:" + "00" * 32} | knobs)
    assert answer.status_code == 422
    assert f"give one of keep, budget and max_drop, not {' and '.join(knobs)}" in answer.json()["detail"]


def test_a_dataset_is_checked_by_a_worker_and_then_shown(
    app: FastAPI, operator: Api, viewer: Api, blobs: Blobs, tmp_path: Path
) -> None:
    digest = uploaded_dataset(blobs, tmp_path)
    job = made(operator.post("/api/v1/datasets", json={"name": "august", "blob": digest}))["job"]
    assert made(viewer.get("/api/v1/datasets"))["items"] == []
    result = carry_out(app, job["id"])
    assert (result["samples"], result["classes"], result["label_counts"]) == (100, 4, [25] * 4)
    shown = made(viewer.get(f"/api/v1/datasets/{digest}"))
    assert shown["splits"] == {"train": 70, "validation": 15, "test": 15}
    assert (shown["name"], shown["input_shape"], shown["format"]) == ("august", [3, 3], "npz")
    assert made(viewer.get("/api/v1/datasets"))["items"] == [shown]
    assert made(viewer.get(f"/api/v1/jobs/{job['id']}"))["state"] == "succeeded"


def test_the_same_file_is_the_same_dataset(app: FastAPI, operator: Api, blobs: Blobs, tmp_path: Path) -> None:
    digest = uploaded_dataset(blobs, tmp_path)
    for name in ("august", "august"):
        carry_out(app, made(operator.post("/api/v1/datasets", json={"name": name, "blob": digest}))["job"]["id"])
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        assert [dataset.name for dataset in session.scalars(select(Dataset))] == ["august"]


def test_a_dataset_that_was_never_uploaded_is_refused(operator: Api) -> None:
    answer = operator.post("/api/v1/datasets", json={"name": "x", "blob": sha256_digest(b"never")})
    assert (answer.status_code, answer.json()["code"]) == (404, "blob.unknown")


def test_devices_read_blobs_and_metadata_with_their_own_token(app: FastAPI, operator: Api) -> None:
    release = published(app)
    (device,) = join(app, operator, 1)
    assert device.api.get(f"/blobs/sha256/{release.weights_blob[7:]}").status_code == 200
    assert device.api.get("/tuf/image/timestamp.json").status_code == 200
    for path in ("/api/v1/models", "/api/v1/devices", "/api/v1/audit"):
        assert device.api.get(path).status_code == 401


def test_devices_are_listed_newest_first(app: FastAPI, operator: Api, viewer: Api) -> None:
    published(app)
    devices: list[TestDevice] = join(app, operator, 3)
    shown = made(viewer.get("/api/v1/devices", params={"limit": 2}))
    assert [one["name"] for one in shown["items"]] == [devices[2].name, devices[1].name]
    assert shown["next"] is not None


def test_a_commit_that_fails_answers_500_and_changes_nothing(operator: Api, viewer: Api) -> None:
    def fail(_session: object) -> None:
        raise RuntimeError("the disk is full")

    token = {"uses": 1}
    event.listen(Session, "before_commit", fail)
    try:
        answer = operator.post("/api/v1/enrolment-tokens", json=token)
    finally:
        event.remove(Session, "before_commit", fail)
    assert (answer.status_code, answer.json()["code"]) == (500, "server.bug")
    assert "disk" not in answer.text
    assert made(viewer.get("/api/v1/audit"))["items"] == []


def test_two_routes_that_publish_nothing_need_a_viewer_only(viewer: Api) -> None:
    for path in ("models", "datasets", "rollouts", "devices"):
        assert made(viewer.get(f"/api/v1/{path}")) == {"items": [], "next": None}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/v1/enrolment-tokens", b'{"group": "a\\u0000b"}'),
        ("/api/v1/enrolment-tokens", b'{"group": "a\\ud800b"}'),
        ("/api/v1/rollouts", b'{"model": "mnist", "release": 99999999999999999999, "waves": ["1"]}'),
        ("/api/v1/rollouts", b'{"model": "a\\u0000b", "release": 1, "waves": ["1"]}'),
    ],
)
def test_a_value_that_no_database_takes_is_the_callers_mistake(
    app: FastAPI, admin: Api, path: str, body: bytes
) -> None:
    published(app)
    answer = admin.post(path, content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (422, "request.invalid")


@pytest.mark.parametrize("number", ["99999999999999999999", "-1", "x"])
def test_a_release_number_that_cannot_be_is_not_the_servers_mistake(app: FastAPI, viewer: Api, number: str) -> None:
    published(app)
    assert viewer.get(f"/api/v1/models/mnist/releases/{number}").status_code in {404, 422}
