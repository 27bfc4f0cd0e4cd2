"""A release certified as a near copy of another, without labels: over HTTP, by the worker."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from http_calls import Api
from sharing_calls import House, runner, tiny_models
from training_calls import carried_out

from sprat_server.db.blobs import Blobs
from sprat_server.settings import Settings
from sprat_shared.evidence.certificate import certify


@pytest.fixture
def house(app: FastAPI, settings: Settings, admin: Api, blobs: Blobs, tmp_path: Path) -> House:
    """`face@2` is next to `face@1`, `face@3` another model."""
    house = House(app, runner(app, settings, blobs), admin, blobs, tmp_path)
    right = tiny_models.truth()
    noise = np.random.default_rng(5).normal(size=right["2.weight"].shape).astype(np.float32)
    house.next_release("face", {**right, "2.weight": right["2.weight"] * np.float32(1.0001)})
    house.next_release("face", {**right, "2.weight": noise})
    return house


def asked(house: House, release: int, **changed: Any) -> dict[str, Any]:
    body = {"against": 1, "dataset": house.dataset} | changed
    return carried_out(house.worker, house.admin, f"/models/face/releases/{release}/certify", **body)


def test_a_near_copy_is_within_its_budget_and_another_model_is_not(house: House) -> None:
    near = asked(house, 2, budget=0.01)["result"]
    assert (near["compared"], near["disagreed"], near["within"]) == (900, 0, True)
    assert near["bound"] == certify(0, 900).bound
    assert (near["needed"], near["confidence"]) == (299, 0.95)
    assert sum(one["compared"] for one in near["classes"].values()) == 900

    far = asked(house, 3, budget=0.01)["result"]
    assert (far["within"], far["needed"]) == (False, None)
    assert far["bound"] > far["disagreed"] / 900 > 0.2
    assert asked(house, 3)["result"]["within"] is None


def test_outputs_that_are_no_classes_have_a_tolerance(house: House) -> None:
    assert asked(house, 2, tolerance=0.01)["result"]["disagreed"] == 0
    assert asked(house, 2, tolerance=0.0)["result"]["disagreed"] > 0
    assert asked(house, 3, tolerance=0.01)["result"]["classes"] == {}


@pytest.mark.parametrize(
    ("release", "changes", "status", "code"),
    [
        (9, {}, 404, "release.unknown"),
        (2, {"against": 9}, 404, "release.unknown"),
        (2, {"dataset": "sha256:" + "0" * 64}, 404, "dataset.unknown"),
        (2, {"budget": 0}, 422, "request.invalid"),
        (2, {"tolerance": -1}, 422, "request.invalid"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    house: House, release: int, changes: dict[str, Any], status: int, code: str
) -> None:
    body = {"against": 1, "dataset": house.dataset} | changes
    answer = house.admin.post(f"/api/v1/models/face/releases/{release}/certify", json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_inputs_of_another_shape_fail_the_job_with_a_reason(house: House) -> None:
    path = house.folder / "long.npz"
    np.savez(path, inputs=np.zeros((200, 7), np.float32), labels=np.arange(200) % 2)
    made = carried_out(house.worker, house.admin, "/datasets", name="long", blob=house.blob(path))
    failed = asked(house, 2, dataset=made["result"]["digest"])
    assert (failed["state"], failed["error"]["code"]) == ("failed", "sharing.impossible")
    assert "those of the dataset are [7]" in failed["error"]["message"]
