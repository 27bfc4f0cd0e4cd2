"""Tasks that are made by taking torch modules apart: models, releases and the task, all of them or nothing."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi import FastAPI
from fleet_calls import made
from http_calls import Api
from sharing_calls import runner
from site_calls import refused
from training_calls import carried_out, source_of, weights_blob

sys.path.insert(0, str(Path(__file__).parents[1] / "simulator"))

from split_recipes import EXAMPLE, Alone, Caption, Find

from sprat_server.db.blobs import Blobs
from sprat_server.flows import tasks_split
from sprat_server.flows.site_trials import run_task
from sprat_server.jobs.runner import Runner
from sprat_server.jobs.tasks import JobContext
from sprat_server.settings import Settings
from sprat_server.training.split import Piece
from sprat_shared.errors import Conflict
from sprat_shared.wire.tensors import Array

IMAGE = {"inputs": EXAMPLE["inputs"][:1]}


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    """Settings of a server that may run the tests' recipes."""
    return Settings(
        database_url=database_url, data_dir=tmp_path / "data", recipe_packages=("split_recipes",), auto_sign="*"
    )


@pytest.fixture
def worker(app: FastAPI, settings: Settings, blobs: Blobs) -> Runner:
    return runner(app, settings, blobs)


def asked(blobs: Blobs, folder: Path, module: torch.nn.Module, recipe: str, **changed: Any) -> dict[str, Any]:
    """Return what asks for a module to be taken apart."""
    return {
        "name": recipe,
        "recipe": {"factory": f"split_recipes:{recipe}", "config": {}},
        "weights": weights_blob(blobs, source_of(module), folder),
        "rest": f"{recipe}-head",
        **changed,
    }


def models(api: Api) -> Mapping[str, int]:
    return {one["name"]: one["latest"] for one in api.get("/api/v1/models").json()["items"]}


def test_two_tasks_have_the_encoder_once_that_both_modules_hold(
    worker: Runner, admin: Api, blobs: Blobs, tmp_path: Path
) -> None:
    find, caption = Find(), Caption()
    caption.eyes.load_state_dict(find.image_encoder.state_dict())
    first = asked(blobs, tmp_path, find, "find", example=EXAMPLE, parts={"vision": "image_encoder"}, deadline_s=0.5)
    done = carried_out(worker, admin, "/tasks/split", **first)
    assert done["state"] == "succeeded", done
    new = {"release": 1, "reused": False, "state": "published"}
    assert done["result"]["models"] == {"find-head": new, "vision": new}
    assert 0 <= done["result"]["difference"] < 1e-4
    assert done["result"]["unused"] == ["spare.weight", "spare.bias"]
    assert models(admin) == {"vision": 1, "find-head": 1}
    shown = made(admin.get("/api/v1/tasks/find"))
    assert shown["steps"]["find-head"] == {
        "model": "find-head",
        "inputs": {"words": "words", "vision": "vision.output"},
    }
    assert (shown["outputs"], shown["deadline_s"]) == ({"score": "find-head.score", "tokens": "find-head.tokens"}, 0.5)
    assert refused(admin.post("/api/v1/tasks/split", json=first)) == (409, "task.exists")

    second = asked(blobs, tmp_path, caption, "caption", example=IMAGE, parts={"vision": "eyes"})
    done = carried_out(worker, admin, "/tasks/split", **second)
    assert done["state"] == "succeeded", done
    assert done["result"]["models"] == {"caption-head": new, "vision": new | {"reused": True}}
    assert models(admin) == {"vision": 1, "find-head": 1, "caption-head": 1}

    other = asked(blobs, tmp_path, Caption(), "caption", name="other", example=IMAGE, parts={"vision": "eyes"})
    done = carried_out(worker, admin, "/tasks/split", **(other | {"rest": "other-head"}))
    assert (done["state"], done["error"]["code"]) == ("failed", "split.model-differs")
    assert "vision@1 has other weights than the part" in done["error"]["message"]
    assert "other-head" not in models(admin)


def test_where_a_last_step_fails_no_model_is_left(
    worker: Runner, admin: Api, blobs: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = asked(blobs, tmp_path, Alone(), "alone", example=IMAGE, parts={"vision": "eyes"})
    proven, made_of = {}, tasks_split._made

    def once(ctx: JobContext, name: str, piece: Piece) -> Any:
        proven[name] = proven[name] if name in proven else made_of(ctx, name, piece)
        return proven[name]

    def late(*_given: Any) -> None:
        raise Conflict("made meanwhile", code="task.exists")

    def off(*given: Any) -> dict[str, list[Array]]:
        return {name: [one * np.float32(1.001) for one in batches] for name, batches in run_task(*given).items()}

    monkeypatch.setattr(tasks_split, "_made", once)  # what is exported and proven is the same each time
    for replaced, code in (({"keep_task": late}, "task.exists"), ({"run_task": off}, "split.differs")):
        with monkeypatch.context() as patch:
            for name, function in replaced.items():
                patch.setattr(tasks_split, name, function)
            done = carried_out(worker, admin, "/tasks/split", **body)
        assert (done["state"], done["error"]["code"]) == ("failed", code), done
        assert models(admin) == {}
        assert refused(admin.get("/api/v1/tasks/alone")) == (404, "task.unknown")
    assert "output of the task is 0.001 of its largest value away" in done["error"]["message"]
    assert carried_out(worker, admin, "/tasks/split", **body)["state"] == "succeeded"
    assert models(admin) == {"vision": 1}

    wrong = asked(blobs, tmp_path, Caption(), "alone", name="wrong", example=IMAGE, parts={"vision": "eyes"})
    done = carried_out(worker, admin, "/tasks/split", **wrong)
    assert (done["state"], done["error"]["code"]) == ("failed", "weights.mismatch")
