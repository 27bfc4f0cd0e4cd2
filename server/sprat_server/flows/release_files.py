"""What the worker's tasks share: weights and graphs out of the registry, and the files of a release into the blobs."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy.orm import Session

from sprat_server.db.blobs import Blob, Blobs
from sprat_server.jobs.tasks import JobContext
from sprat_server.registry import service as registry
from sprat_server.registry.models import Graph, Model, Release
from sprat_server.registry.service import NewUpdate
from sprat_shared.encode import encode_full
from sprat_shared.trust.targets import LocalStatistics
from sprat_shared.wire.safetensors import SafetensorsFile, write_safetensors
from sprat_shared.wire.tensors import TensorSource, WithoutLocal

MAX_GRAPH_BYTES: Final = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseRelease:
    """What a task needs to know of the release it starts from.

    Attributes:
        model: the name of the model.
        number: of the release.
        recipe: factory of the model and config of the release; None where it came from ONNX alone.
        example: of one input, as registered.
        weights_blob: digest of its safetensors file.
        weights_digest: over its tensors.
        graph: digest of its graph.
        probe: digest of its probe graph, where there is one.
        local: what devices compute themselves; None where all was sent.
    """

    model: str
    number: int
    recipe: dict[str, Any] | None
    example: dict[str, Any] | None
    weights_blob: str
    weights_digest: str
    graph: str
    probe: str | None
    local: LocalStatistics | None = None

    @classmethod
    def of(cls, session: Session, name: str, number: int | None) -> "BaseRelease":
        """Look up `name@number`, or the newest that shares no layers where number is None.

        Raises:
            NotFound: there is no such model or release.
            Conflict: it shares layers, so nothing is made from it.
        """
        model: Model = registry.get_model(session, name)
        release: Release = (
            registry.latest_release(session, model) if number is None else registry.get_release(session, model, number)
        )
        registry.check_trainable(model, release)
        graph, recipe = session.get_one(Graph, release.graph_digest), model.recipe
        if recipe is not None and release.recipe_config is not None:
            recipe = {**recipe, "config": release.recipe_config}
        return cls(
            model=model.name,
            number=release.number,
            recipe=recipe,
            example=model.example,
            weights_blob=release.weights_blob,
            weights_digest=release.weights_digest,
            graph=graph.digest,
            probe=graph.probe_digest,
            local=release.local,
        )


def as_sent(weights: TensorSource, local: LocalStatistics | None) -> TensorSource:
    """Return the tensors of a release as updates see them: without what devices compute themselves."""
    return weights if local is None else WithoutLocal(weights, local.tensors)


@contextmanager
def weights_of(blobs: Blobs, digest: str) -> Iterator[TensorSource]:
    """Give the tensors of a safetensors blob, mapped.

    Raises:
        InvalidInput: the blob is not a safetensors file.
        BlobUnknown: it is not stored.
    """
    with blobs.local(digest) as path, SafetensorsFile(path) as file:
        yield file


@dataclass(frozen=True, slots=True)
class ReleaseFiles:
    """Blobs of a release that is about to be published.

    Attributes:
        weights: digest of the safetensors file of the exact weights.
        updates: the full update, and the one from the base where there is one.
    """

    weights: str
    updates: tuple[NewUpdate, ...]


def keep_files(
    ctx: JobContext,
    weights: TensorSource,
    *,
    base: int | None,
    update: bytes | None,
    local: LocalStatistics | None = None,
) -> ReleaseFiles:
    """Put the files of a release into the blob store: its weights, its full update, its update from `base`."""
    files = [NewUpdate(None, *_blob(ctx.blobs.put_bytes(encode_full(as_sent(weights, local)))))]
    if base is not None and update is not None:
        files.append(NewUpdate(base, *_blob(ctx.blobs.put_bytes(update))))
    with tempfile.TemporaryDirectory(prefix="sprat-weights-") as folder:
        path = Path(folder) / "weights.safetensors"
        write_safetensors(path, weights)
        blob = ctx.blobs.put_file(path)
    return ReleaseFiles(blob.digest, tuple(files))


def _blob(blob: Blob) -> tuple[str, int]:
    return blob.digest, blob.length
