"""The work of each state: what FETCHING, VERIFYING, REBUILDING and VALIDATING do for one update.

Each can be done again from what is on the disk, so a power cut in the middle costs time and nothing else.
"""

import contextlib
import hashlib
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from sprat_client.agent.durable import Disk, make_folder, write_file
from sprat_client.agent.hooks import Hooks
from sprat_client.agent.journal import Journal, Work
from sprat_client.agent.rebuild import Rebuilder, RebuildStep
from sprat_client.agent.releases import Manifest, Shelf
from sprat_client.agent.reports import Outbox
from sprat_client.agent.serve import Servings
from sprat_client.agent.settings import AgentSettings
from sprat_client.agent.store import StoreCorrupted, TensorStore, require_space
from sprat_client.agent.transfer import Blob, Link
from sprat_client.agent.trust import TrustedTarget, TrustStore, VerifiedUpdate
from sprat_client.agent.validate import Validation, ValidationRefused, load_holdout, validate
from sprat_client.runtime.ports import ModelHost, ModelNotLoadable, Runtime
from sprat_shared.errors import DigestMismatch, TryLater, UntrustedUpdate
from sprat_shared.ids import digest_text, parse_digest
from sprat_shared.protocol.poll import Desired
from sprat_shared.trust.targets import UpdateTarget
from sprat_shared.wire.tensors import release_id, weights_digest

_log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Workshop:
    """What all models of one agent work with.

    Attributes:
        settings: of the agent.
        device: its id.
        disk: durable writes go through it.
        journal: durable state.
        outbox: reports.
        trust: signed metadata.
        store: tensors.
        link: the server.
        rebuilder: computes weights, in a process of its own.
        runtime: loads models.
        servings: what serves.
        hooks: the owner's executables.
        blobs: payloads of the last poll, by digest.
        stopping: the agent was asked to end; long work is left for the next start.
    """

    settings: AgentSettings
    device: UUID
    disk: Disk
    journal: Journal
    outbox: Outbox
    trust: TrustStore
    store: TensorStore
    link: Link
    rebuilder: Rebuilder
    runtime: Runtime
    servings: Servings
    hooks: Hooks
    blobs: dict[str, bytes] = field(default_factory=dict)
    stopping: threading.Event = field(default_factory=threading.Event)

    @property
    def downloads(self) -> Path:
        """The folder of payloads, named by the hex of their digests."""
        return self.settings.folder / "downloads"


Signed = Mapping[str, tuple[TrustedTarget, Mapping[str, object] | None]]


def wished_release_id(wish: Desired) -> str:
    """Return the release id that an assignment speaks of: of its graph's path and its weights."""
    return release_id(f"sha256:{wish.graph.rpartition('/')[2]}", wish.weights)


def _usable_base(shelf: Shelf) -> Manifest | None:
    """Return the active release, if its files still have their bytes: what an update can start from."""
    active = shelf.slots().active
    if active is None:
        return None
    try:
        manifest = shelf.manifest(active.release_id)
        shelf.check(manifest)
    except StoreCorrupted as bad:
        _log.error("the active release is damaged; the full update will be fetched", extra=_said(bad))
        return None
    return manifest


def find_targets(shop: Workshop, paths: Sequence[str]) -> Signed:
    """Return what the signed metadata say of `paths`: of what is held, else of the last poll, else of the network.

    Raises:
        UntrustedUpdate: a path is not signed for, or the metadata are refused.
        TryLater: link or server are not ready.
    """
    signed: Signed = {}
    with contextlib.suppress(TryLater, UntrustedUpdate):  # what is held may be incomplete or expired
        signed = shop.trust.find(paths)
    if all(path in signed for path in paths):
        return signed
    signed = shop.trust.find(paths, source=shop.link)
    missing = [path for path in paths if path not in signed]
    if missing:
        raise UntrustedUpdate(f"target {missing[0]} is not signed for by the image repository")
    return signed


def choose_steps(shop: Workshop, shelf: Shelf, wish: Desired) -> tuple[str, ...]:
    """Return the target paths to apply: the server's path where it starts from what is held, else the full update."""
    base = _usable_base(shelf)
    if base is None or not wish.path:
        return (wish.full,)
    weights = base.weights
    try:
        signed = find_targets(shop, wish.path)
        for path in wish.path:
            target = UpdateTarget.from_custom(path, signed[path][1])
            if target.base_weights != weights:
                return (wish.full,)
            weights = target.weights
    except UntrustedUpdate:
        _log.warning("the offered path is not signed for; trying the full update", extra={"model": wish.model})
        return (wish.full,)
    return tuple(wish.path)


def fetch(shop: Workshop, shelf: Shelf, work: Work, received: Callable[[int], None]) -> None:
    """Bring everything that the update's steps need onto the disk.

    Raises:
        NoSpace: there is no room; nothing was fetched.
        UntrustedUpdate: it is not signed for.
        LinkDown: cut; call again later.
    """
    signed = find_targets(shop, [*work.steps, work.wish.graph])
    targets = [signed[path][0] for path in work.steps]
    graph = signed[work.wish.graph][0]
    active = shelf.slots().active
    _require_space(shop, targets, graph, None if active is None else shelf.manifest(active.release_id))
    for target in targets:
        _fetch_one(shop, target, received)
    if not shop.store.holds(graph.sha256, graph.length):
        _fetch_one(shop, graph, received)


def _require_space(
    shop: Workshop, targets: Sequence[TrustedTarget], graph: TrustedTarget, base: Manifest | None
) -> None:
    """Check for room: payloads that are not here yet, and every tensor twice over in the worst case."""
    payloads = sum(target.length for target in targets)
    here = sum(path.stat().st_size for path in shop.downloads.glob("*")) if shop.downloads.is_dir() else 0
    tensors = 4 * payloads if base is None else max(payloads, sum(spec.nbytes for spec in base.table.specs))
    needed = max(0, payloads + graph.length - here) + tensors
    require_space(shop.settings.folder, needed, margin=shop.settings.space_margin_bytes)


def _fetch_one(shop: Workshop, target: TrustedTarget, received: Callable[[int], None]) -> None:
    file = shop.downloads / target.sha256.hex()
    inline = shop.blobs.get(digest_text(target.sha256))
    if inline is not None and hashlib.sha256(inline).digest() == target.sha256:
        make_folder(shop.disk, shop.downloads)
        write_file(shop.disk, file, inline)
        received(len(inline))
        return
    shop.link.download(Blob(target.sha256, target.length, file), shop.disk, received)


def verify(shop: Workshop, shelf: Shelf, work: Work) -> list[VerifiedUpdate]:
    """Check what was fetched against the signed metadata; nothing is parsed before."""
    first = UpdateTarget.from_custom(work.steps[0], find_targets(shop, work.steps[:1])[work.steps[0]][1])
    active = shelf.slots().active
    base = None if first.base_weights is None or active is None else active.weights
    return shop.trust.verify(work.wish, work.steps, base, shop.downloads)


def rebuild(shop: Workshop, shelf: Shelf, work: Work) -> None:
    """Compute the new weights into the store and publish their release folder.

    Raises:
        UpdateRejected: the update is not what was signed, or gives other weights.
        RebuildFailed: the process died.
    """
    if work.release_id is None or work.graph is None:
        raise AssertionError("REBUILDING follows VERIFYING, which sets both")
    if shelf.holds(work.release_id):
        manifest = shelf.manifest(work.release_id)
        try:
            shelf.check(manifest)
        except StoreCorrupted as bad:
            _log.warning("a release folder was damaged and is made again", extra=_said(bad))
            shelf.discard_damaged(manifest)
        else:
            return
    updates = verify(shop, shelf, work)
    active = shelf.slots().active
    needs_base = updates[0].target.base_weights is not None
    base = shelf.manifest(active.release_id) if needs_base and active is not None else None
    steps = [RebuildStep(payload=update.payload, weights=update.target.weights) for update in updates]
    make_folder(shop.disk, shop.settings.folder / "store")
    rebuilt = shop.rebuilder(shop.settings.folder / "store", base, steps)
    weights = weights_digest(rebuilt.table, rebuilt.sha256s)
    if weights != work.wish.weights:
        raise DigestMismatch(
            subject=f"{work.wish.model}@{work.wish.release}", expected=work.wish.weights, actual=weights
        )
    _adopt_graph(shop, parse_digest(work.graph))
    shelf.publish(
        Manifest(
            model=work.wish.model,
            release=work.wish.release,
            release_id=work.release_id,
            graph=work.graph,
            weights=weights,
            table=rebuilt.table,
            sha256s=rebuilt.sha256s,
        )
    )


def _adopt_graph(shop: Workshop, sha256: bytes) -> None:
    fetched = shop.downloads / sha256.hex()
    if fetched.exists():
        shop.store.adopt(sha256, fetched)
    else:
        shop.store.check(sha256, "graph")


def load(shop: Workshop, shelf: Shelf, manifest: Manifest) -> ModelHost:
    """Check every file of a release and load it.

    Raises:
        StoreCorrupted: a file does not have its bytes.
        ModelNotLoadable: the runtime refuses it.
    """
    shelf.check(manifest)
    return shop.runtime.load(shelf.folder_of(manifest.release_id))


def compare(shop: Workshop, shelf: Shelf, work: Work) -> tuple[ModelHost, Validation]:
    """Load the new release and compare it with the one that serves; return it, still loaded.

    Raises:
        ValidationRefused: it is worse, or does not load.
        InvalidInput: the holdout samples cannot be used.
    """
    if work.release_id is None:
        raise AssertionError("VALIDATING follows VERIFYING, which sets the release id")
    try:
        new = load(shop, shelf, shelf.manifest(work.release_id))
    except ModelNotLoadable as bad:
        raise ValidationRefused(str(bad), code=bad.code) from bad
    serving = shop.servings.get(work.wish.model)
    path = shop.settings.holdouts.get(work.wish.model)
    holdout = None if path is None else load_holdout(path)
    return new, validate(new, None if serving is None else serving.host, holdout, shop.settings.validation)


def _said(bad: StoreCorrupted) -> dict[str, str]:
    return {"code": bad.code, "detail": str(bad)}
