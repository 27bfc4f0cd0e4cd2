"""Publish a release: registry rows, signed metadata and the word to devices, in one transaction."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.orm import Session
from tuf.api.metadata import TargetFile

from sprat_server.db.blobs import Blobs
from sprat_server.flows import direct
from sprat_server.publish.repository import open_repository
from sprat_server.publish.targets import SignedFile, graph_file_target, update_file_target
from sprat_server.registry import service as registry
from sprat_server.registry.models import Model, Release
from sprat_server.registry.service import NewUpdate, Origin
from sprat_server.settings import Settings
from sprat_shared.trust.targets import LocalStatistics, UpdateTarget
from sprat_shared.wire.tensors import TensorTable


def publish_release(
    session: Session,
    blobs: Blobs,
    settings: Settings,
    *,
    model: Model,
    graph_blob: str,
    weights_blob: str,
    table: TensorTable,
    weights_digest: str,
    updates: Sequence[NewUpdate],
    metrics: Mapping[str, Any],
    origin: Origin,
    base: int | None,
    probe_blob: str | None = None,
    recipe_config: Mapping[str, Any] | None = None,
    local: LocalStatistics | None = None,
) -> Release:
    """Add the next release of `model`, sign it, and let devices know when the transaction commits.

    Args:
        session: the caller's transaction; nothing is visible before it commits.
        blobs: where every blob named here is already.
        settings: of the server.
        model: from `registry.service.create_model` (first release) or `get_model`.
        graph_blob: digest of the graph's bytes.
        weights_blob: digest of the safetensors file of the exact weights.
        table: the tensors.
        weights_digest: over them.
        updates: `NewUpdate(base, blob, length)`; exactly one with base None (full), and one for each base.
        metrics: what is known about its quality; JSON.
        origin: "registered" (the first), "retrained" or "created".
        base: number of the release it came from; None for the first.
        probe_blob: digest of the probe graph, where there is one.
        recipe_config: of the recipe in this release; None: as in the base.
        local: what each device computes itself; None: all is sent. Its graph is a stored blob.

    Raises:
        Conflict: the model has exactly this release already.
        InvalidInput: there is not exactly one full update.
        NotFound: a base or a blob does not exist.
    """
    graph = registry.ensure_graph(session, digest=graph_blob, length=blobs.length(graph_blob), probe=probe_blob)
    graphs = [graph]
    if local is not None:
        length = blobs.length(local.graph)
        graphs.append(registry.ensure_graph(session, digest=local.graph, length=length, probe=None))
    for blob in (weights_blob, *(update.blob for update in updates)):
        blobs.length(blob)
    release = registry.add_release(
        session,
        model=model,
        graph=graph,
        weights_blob=weights_blob,
        table=table,
        weights_digest=weights_digest,
        updates=updates,
        metrics=metrics,
        origin=origin,
        base=base,
        recipe_config=recipe_config,
        local=local,
    )
    open_repository(session, settings).add_targets(
        model.name,
        [
            *(graph_file_target(model.name, SignedFile(one.digest, one.bytes)) for one in graphs),
            *(_target(session, model, release, update) for update in updates),
        ],
    )
    direct.enqueue(session, model)
    return release


def publish_updates(
    session: Session, settings: Settings, *, model: Model, updates: Sequence[tuple[int, NewUpdate]]
) -> None:
    """Add further updates of releases that are published, and sign them, in the caller's transaction.

    Args:
        session: the caller's transaction, which has locked the model.
        settings: of the server.
        model: of the releases.
        updates: the number of the release that each leads to, and the update.

    Raises:
        NotFound: there is no such release.
    """
    targets = []
    for number, update in updates:
        release = registry.get_release(session, model, number)
        registry.add_update(session, release, update)
        targets.append(_target(session, model, release, update))
    if targets:
        open_repository(session, settings).add_targets(model.name, targets)


def _target(session: Session, model: Model, release: Release, update: NewUpdate) -> TargetFile:
    return update_file_target(
        UpdateTarget(
            model=model.name,
            release=release.number,
            weights=release.weights_digest,
            graph=release.graph_digest,
            base_release=update.base,
            base_weights=_weights_of(session, model, update.base),
            local=release.local,
        ),
        SignedFile(update.blob, update.length),
    )


def _weights_of(session: Session, model: Model, number: int | None) -> str | None:
    return None if number is None else registry.get_release(session, model, number).weights_digest
