"""A model with a lineage of real releases, and what workers and devices do about it."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
from fastapi import FastAPI
from fleet_calls import TestDevice
from sqlalchemy import select
from tuf.api.metadata import Metadata, Targets

from sprat_server.compress import updates as compress
from sprat_server.db.blobs import Blobs
from sprat_server.db.projects import DEFAULT_PROJECT
from sprat_server.flows import direct
from sprat_server.flows import rollout as rollout_flow
from sprat_server.flows.publishing import publish_release
from sprat_server.jobs.models import QUEUED, Job
from sprat_server.jobs.runner import Runner
from sprat_server.publish import repository
from sprat_server.registry import service as registry
from sprat_server.registry.models import UpdateFile
from sprat_server.registry.service import NewUpdate
from sprat_shared.apply import apply_update
from sprat_shared.encode import encode_full
from sprat_shared.protocol.poll import PollAnswer
from sprat_shared.protocol.report import Outcome
from sprat_shared.trust.targets import UpdateTarget
from sprat_shared.wire.records import Record
from sprat_shared.wire.safetensors import write_safetensors
from sprat_shared.wire.tensors import ArrayTensors, TensorSource, digest_of

sys.path.insert(0, str(Path(__file__).parents[1] / "simulator"))

from simulated_release import MemorySink

VALUES = 3000


def tensors(*nudges: int, by: float = 1e-5) -> ArrayTensors:
    """Return weights, moved a little for each of `nudges`."""
    values = np.random.default_rng(0).standard_normal(VALUES)
    for seed in nudges:
        values += by * np.random.default_rng(seed).standard_normal(VALUES)
    return ArrayTensors({"w": ("F32", values.astype(np.float32))})


class Lineage:
    """The releases of a model, made as the worker makes them: real weights, real update files."""

    def __init__(self, app: FastAPI, folder: Path) -> None:
        self._app, self._folder = app, folder
        self.weights: dict[int, TensorSource] = {}

    def add(self, weights: TensorSource, base: int | None = None) -> None:
        """Publish the next release, with a lossless update from `base`."""
        self._publish(
            weights if base is None else compress.from_weights(self.weights[base], weights, lossless=True), base
        )

    def add_record(self, record: Record, base: int) -> None:
        """Publish as the next release what one record makes of release `base`."""
        self._publish(compress.from_records(self.weights[base], [record]), base)

    def _publish(self, made_of: TensorSource | compress.Updated, base: int | None) -> None:
        blobs: Blobs = self._app.state.blobs
        with self._app.state.database.transaction(DEFAULT_PROJECT) as session:
            update = []
            if isinstance(made_of, compress.Updated):
                weights, blob = made_of.weights, blobs.put_bytes(made_of.data)
                update.append(NewUpdate(base, blob.digest, blob.length))
                model = registry.get_model(session, "mnist")
            else:
                weights, model = made_of, registry.create_model(session, name="mnist", recipe=None, example=None)
            whole = blobs.put_bytes(encode_full(weights))
            path = self._folder / "weights.safetensors"
            write_safetensors(path, weights)
            release = publish_release(
                session,
                blobs,
                self._app.state.settings,
                model=model,
                graph_blob=blobs.put_bytes(b"the graph").digest,
                weights_blob=blobs.put_file(path).digest,
                table=weights.table,
                weights_digest=digest_of(weights),
                updates=[NewUpdate(None, whole.digest, whole.length), *update],
                metrics={},
                origin="registered" if base is None else "created",
                base=base,
            )
            self.weights[release.number] = weights


def bring_to(app: FastAPI, release: int, devices: Sequence[TestDevice], *, commit: bool = True) -> None:
    """Roll a release out to these devices, which take it."""
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        cohort = [device.id for device in devices]
        one = rollout_flow.create(session, model="mnist", release=release, reaches=["100%"], devices=cohort, by="test")
        rollout_flow.start(session, one.id, app.state.settings)
    for device in devices if commit else ():
        device.tell(Outcome.COMMITTED)


def queued(app: FastAPI) -> list[tuple[UUID, int]]:
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        jobs = session.scalars(select(Job).where(Job.kind == direct.JOB_KIND, Job.state == QUEUED))
        return [(job.id, job.queue_id) for job in jobs]


def work(app: FastAPI, worker: Runner) -> dict[str, Any]:
    """Have the worker do the one job that is queued, and return its result."""
    (job,) = queued(app)
    worker.run(*job)
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        done = session.get_one(Job, job[0])
        assert done.state == "succeeded", done.error
        assert done.result is not None
        return done.result


def published(app: FastAPI) -> set[tuple[int | None, int]]:
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        return {(row.base_number, row.number) for row in session.scalars(select(UpdateFile))}


def timestamp(app: FastAPI) -> int:
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        return repository.newest_versions(session)["timestamp"]


def rebuilt(device: TestDevice, lineage: Lineage, base: int) -> tuple[list[str], int]:
    """Do what a device that holds `base` does: fetch the path, apply it, compare; return the path and its bytes."""
    wish = device.wish()
    assert wish is not None
    body = PollAnswer.from_bytes(device.poll(inline=1 << 20).content)
    role = next(part.data for part in body.parts if part.name.endswith("m.mnist.json"))
    signed = Metadata[Targets].from_bytes(role).signed
    weights, received = lineage.weights[base], 0
    for path in wish.path:
        file = signed.targets[path]
        target = UpdateTarget.from_custom(path, file.custom)
        data = next(part.data for part in body.parts if part.name == f"sha256:{file.hashes['sha256']}")
        assert len(data) == file.length
        assert target.base_weights in {None, digest_of(weights)}
        sink = MemorySink(weights)  # type: ignore[arg-type] # any source will do
        apply_update(memoryview(data), weights, sink, expected=target.weights)
        weights, received = ArrayTensors(sink.weights()), received + len(data)
    assert digest_of(weights) == wish.weights
    return list(wish.path), received
