"""A server with two siblings that can share layers, and devices that run both; what tests of sharing share."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI
from fleet_calls import TestDevice, made
from http_calls import Api
from training_calls import carried_out
from tuf.api.metadata import Metadata, Targets

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

import tiny_models

from sprat_server.db.blobs import Blobs
from sprat_server.db.projects import DEFAULT_PROJECT
from sprat_server.jobs.runner import Runner
from sprat_server.publish import repository
from sprat_server.publish.image import open_repository
from sprat_server.settings import Settings
from sprat_server.worker import load_tasks
from sprat_shared.protocol.report import Outcome

Weights = Mapping[str, "np.ndarray[Any, np.dtype[np.float32]]"]
RECIPE = {"factory": "tiny_recipe:build", "config": {}}
PLANS = "/api/v1/sharing/plans"


def sibling(apart: float = 1e-4) -> dict[str, Any]:
    """Another head on nearly the trunk of the truth, so far apart: a model that can use the truth's layers."""
    right = tiny_models.truth()
    rng = np.random.default_rng(21)
    near = right["0.weight"] + apart * rng.normal(size=right["0.weight"].shape)
    head = rng.normal(size=right["2.weight"].shape)
    return {**right, "0.weight": near.astype(np.float32), "2.weight": head.astype(np.float32)}


def runner(app: FastAPI, settings: Settings, blobs: Blobs) -> Runner:
    """Return what a worker process runs jobs with."""
    load_tasks()
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        open_repository(session, settings)
    return Runner(database=app.state.database, blobs=blobs, settings=settings)


class House:
    """A server with two siblings, `face` and `gate`, a dataset, and devices that run both.

    With `recipe` both were registered with the recipe that makes their module, which the server may run if its settings
    name `tiny_recipe`.
    """

    def __init__(
        self,
        app: FastAPI,
        worker: Runner,
        admin: Api,
        blobs: Blobs,
        folder: Path,
        *,
        apart: float = 1e-4,
        recipe: bool = False,
    ) -> None:
        self.app, self.worker, self.admin, self.blobs, self.folder = app, worker, admin, blobs, folder
        self._recipe = recipe
        self.register("face", tiny_models.truth())
        self.register("gate", sibling(apart))
        self.dataset = self.samples(900)

    def blob(self, path: Path) -> str:
        return self.blobs.put_file(path).digest

    def register(self, name: str, weights: Weights) -> None:
        tensors = self.blob(tiny_models.write_weights(self.folder / "weights.safetensors", weights))
        if self._recipe:
            made_by: dict[str, Any] = {"recipe": RECIPE, "example": {"shape": [1, 16], "dtype": "F32"}}
        else:
            made_by = {"graph": self.blob(tiny_models.write_graph(self.folder / "graph.onnx", weights))}
        done = carried_out(self.worker, self.admin, "/models", name=name, weights=tensors, **made_by)
        assert done["state"] == "succeeded", done

    def samples(self, count: int) -> str:
        path = tiny_models.write_samples(self.folder / "samples.npz", count=count, seed=4)
        done = carried_out(self.worker, self.admin, "/datasets", name="line", blob=self.blob(path))
        assert done["state"] == "succeeded", done
        return str(done["result"]["digest"])

    def ask(self, **changed: Any) -> dict[str, Any]:
        body = {"models": ["face", "gate"], "dataset": self.dataset, "budget": 0.05} | changed
        return carried_out(self.worker, self.admin, "/sharing/plans", **body)

    def planned(self, **changed: Any) -> dict[str, Any]:
        done = self.ask(**changed)
        assert done["state"] == "succeeded", done
        return made(self.admin.get(f"{PLANS}/{done['result']['plan']}"))

    def refused(self, **changed: Any) -> tuple[int, str, str]:
        body = {"models": ["face", "gate"], "dataset": self.dataset} | changed
        answer = self.admin.post(PLANS, json=body)
        return answer.status_code, answer.json()["code"], answer.text

    def bring(self, name: str, release: int, device: TestDevice) -> None:
        rollout = made(
            self.admin.post(
                "/api/v1/rollouts",
                json={"model": name, "release": release, "waves": ["100%"], "devices": [str(device.id)]},
            )
        )
        made(self.admin.post(f"/api/v1/rollouts/{rollout['id']}/start", json={"reason": "because"}))
        device.tell(Outcome.COMMITTED, name)

    def applied(self, plan: dict[str, Any], *, start: bool = True, waves: str = "100%") -> dict[str, Any]:
        return made(self.admin.post(f"{PLANS}/{plan['id']}/apply", json={"waves": waves.split(","), "start": start}))

    def shown(self, plan: dict[str, Any]) -> dict[str, Any]:
        return made(self.admin.get(f"{PLANS}/{plan['id']}"))

    def next_release(self, name: str, weights: Weights) -> dict[str, Any]:
        tensors = self.blob(tiny_models.write_weights(self.folder / "next.safetensors", weights))
        done = carried_out(self.worker, self.admin, f"/models/{name}/releases", weights=tensors, lossless=True)
        assert done["state"] == "succeeded", done
        result: dict[str, Any] = done["result"]
        return result

    def signed(self, name: str) -> dict[str, Any]:
        with self.app.state.database.transaction(DEFAULT_PROJECT) as session:
            row = repository.newest(session, f"m.{name}")
            assert row is not None
            return dict(Metadata[Targets].from_bytes(row.body).signed.targets)
