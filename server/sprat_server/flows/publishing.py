"""Publish a release: registry rows, signed metadata and the word to devices, in one transaction."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.orm import Session

from sprat_server.db.blobs import Blobs
from sprat_server.flows import direct, live
from sprat_server.publish.image import open_repository
from sprat_server.registry import service as registry
from sprat_server.registry.models import Model, Release
from sprat_server.registry.service import NewUpdate, Origin
from sprat_server.settings import Settings
from sprat_server.sharing import records
from sprat_shared.trust.targets import LocalStatistics, Shares
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
    shares: Shares | None = None,
) -> Release:
    """Add the next release of `model` and have it signed; devices know of it when the transaction commits.

    Where the server may not sign for the model by itself, the release waits for signatures (`flows.signing`).

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
        origin: "registered" (the first), "retrained", "created" or "shared".
        base: number of the release it came from; None for the first.
        probe_blob: digest of the probe graph, where there is one.
        recipe_config: of the recipe in this release; None: as in the base.
        local: what each device computes itself; None: all is sent. Its graph is a stored blob.
        shares: of which release this one is a near copy that uses a donor's layers; None: of none.

    Raises:
        Conflict: the model has exactly this release already.
        InvalidInput: there is not exactly one full update.
        NotFound: a base or a blob does not exist.
    """
    graph = registry.ensure_graph(session, digest=graph_blob, length=blobs.length(graph_blob), probe=probe_blob)
    if local is not None:
        registry.ensure_graph(session, digest=local.graph, length=blobs.length(local.graph), probe=None)
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
        shares=shares,
    )
    live.sign(
        session, open_repository(session, settings), model, reason=f"release {release.number}", release=release.number
    )
    direct.enqueue(session, model)
    if shares is None:
        records.mark_stale(session, model.name, release.number)
    return release


def publish_updates(
    session: Session, settings: Settings, *, model: Model, updates: Sequence[tuple[int, NewUpdate]]
) -> None:
    """Add further updates of releases that are published, and have them signed, in the caller's transaction.

    Where the server may not sign for the model by itself, they are signed with its next release.

    Args:
        session: the caller's transaction, which has locked the model.
        settings: of the server.
        model: of the releases.
        updates: the number of the release that each leads to, and the update.

    Raises:
        NotFound: there is no such release.
    """
    for number, update in updates:
        registry.add_update(session, registry.get_release(session, model, number), update)
    image = open_repository(session, settings)
    if updates and image.signs_alone(model.name):
        live.sign(session, image, model, reason="direct updates")
