"""Training tasks in tests: asked for over HTTP, carried out by the worker's runner; and what a device would have."""

import io
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import torch
from http_calls import Api

sys.path.insert(0, str(Path(__file__).parents[1] / "simulator"))

import small_recipes

from sprat_server.db.blobs import Blobs
from sprat_server.db.projects import DEFAULT_PROJECT
from sprat_server.jobs.models import Job
from sprat_server.jobs.runner import Runner
from sprat_server.training.states import module_tensors, to_source
from sprat_shared.apply import TensorSink
from sprat_shared.wire.safetensors import write_safetensors
from sprat_shared.wire.tensors import Array, TensorSource, TensorTable

EXAMPLE = {"shape": [1, 1, 8, 8], "dtype": "F32"}


def carried_out(worker: Runner, api: Api, path: str, **body: Any) -> dict[str, Any]:
    """Ask for a job, have the worker do it, and return how it ended."""
    answer = api.post(f"/api/v1{path}", json=body)
    assert answer.status_code == 202, answer.text
    return finished(worker, api, UUID(answer.json()["job"]["id"]))


def finished(worker: Runner, api: Api, job: UUID) -> dict[str, Any]:
    with worker._database.transaction(DEFAULT_PROJECT) as session:
        queue_id = session.get_one(Job, job).queue_id
    worker.run(job, queue_id)
    ended: dict[str, Any] = api.get(f"/api/v1/jobs/{job}").json()
    return ended


def weights_blob(blobs: Blobs, source: TensorSource, folder: Path) -> str:
    path = folder / "given.safetensors"
    write_safetensors(path, source)
    return blobs.put_file(path).digest


def source_of(module: torch.nn.Module) -> TensorSource:
    return to_source(module_tensors(module))


def dataset(worker: Runner, api: Api, blobs: Blobs, *, seed: int = 1, name: str = "dim", **arrays: Any) -> str:
    inputs, labels = small_recipes.images(900, seed, dim=1.0, turn=0.55)
    packed = io.BytesIO()
    np.savez(packed, **({"inputs": inputs, "labels": labels} | arrays))
    ended = carried_out(worker, api, "/datasets", name=name, blob=blobs.put_bytes(packed.getvalue()).digest)
    assert ended["state"] == "succeeded", ended
    digest: str = ended["result"]["digest"]
    return digest


def registered(worker: Runner, api: Api, blobs: Blobs, folder: Path, **changed: Any) -> dict[str, Any]:
    body = {
        "name": "quadrants",
        "recipe": {"factory": "small_recipes:build", "config": {}},
        "weights": weights_blob(blobs, source_of(small_recipes.trained()), folder),
        "example": EXAMPLE,
    }
    return carried_out(worker, api, "/models", **(body | changed))


class Rebuilt(TensorSink):
    """What a device would have."""

    def __init__(self, base: TensorSource | None) -> None:
        self.base, self.tensors = base, dict[int, Array]()

    def begin(self, table: TensorTable) -> None:
        self.table = table

    def keep(self, index: int, sha256: bytes) -> None:  # noqa: ARG002 - the port's signature
        assert self.base is not None
        self.tensors[index] = self.base.read(self.base.table.index_of(self.table[index].name))

    def put(self, index: int, array: Array, sha256: bytes) -> None:  # noqa: ARG002 - the port's signature
        self.tensors[index] = array.copy()
