"""The work of each state: what FETCHING, VERIFYING, REBUILDING and VALIDATING do for one update.

Each can be done again from what is on the disk, so a power cut in the middle costs time and nothing else.
"""

import contextlib
import hashlib
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from uuid import UUID

from sprat_client.agent.bundle_file import BundleFile
from sprat_client.agent.desired import Desired
from sprat_client.agent.durable import Disk, finish_appends, make_folder, remove, write_file
from sprat_client.agent.estimate import EstimateJob, Estimator
from sprat_client.agent.hooks import Hooks
from sprat_client.agent.journal import Journal, Work
from sprat_client.agent.permits import Permits
from sprat_client.agent.rebuild import Rebuilder, RebuildStep
from sprat_client.agent.releases import Manifest, Shelf, Slot
from sprat_client.agent.reports import Outbox
from sprat_client.agent.samples import load_holdout
from sprat_client.agent.serve import Servings
from sprat_client.agent.settings import AgentSettings
from sprat_client.agent.store import StoreCorrupted, TensorStore, require_space
from sprat_client.agent.transfer import Blob, Link
from sprat_client.agent.trust.clock import Clock
from sprat_client.agent.trust.repository import TrustedTarget
from sprat_client.agent.trust.store import Signed, TrustStore, VerifiedUpdate
from sprat_client.agent.validate import Validation, ValidationRefused, validate
from sprat_client.agent.ways import FILE_BYTES, Step, cheapest_way
from sprat_client.runtime.ports import ModelHost, ModelNotLoadable, Runtime
from sprat_shared.errors import DigestMismatch, TryLater, UntrustedUpdate
from sprat_shared.ids import digest_text, parse_digest
from sprat_shared.trust.targets import LocalStatistics, UpdateTarget, graph_path
from sprat_shared.wire.tensors import release_id

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
        clock: the time against which they expire.
        store: tensors.
        link: the server.
        rebuilder: computes weights, in a process of its own.
        estimator: computes local statistics, likewise.
        runtime: loads models.
        servings: what serves.
        hooks: the owner's executables.
        permits: whether an update may be worked on now.
        blobs: payloads of the last poll, by digest.
        stopping: the agent was asked to end; long work is left for the next start.
    """

    settings: AgentSettings
    device: UUID
    disk: Disk
    journal: Journal
    outbox: Outbox
    trust: TrustStore
    clock: Clock
    store: TensorStore
    link: Link
    rebuilder: Rebuilder
    estimator: Estimator
    runtime: Runtime
    servings: Servings
    hooks: Hooks
    permits: Permits
    blobs: dict[str, bytes] = field(default_factory=dict)
    stopping: threading.Event = field(default_factory=threading.Event)

    @property
    def downloads(self) -> Path:
        """The folder of payloads, named by the hex of their digests."""
        return self.settings.folder / "downloads"

    def flush_reports(self) -> None:
        """Sign what the journal decided to report, into the outbox."""
        if self.journal.unsent:
            for body in self.journal.unsent:
                self.outbox.put(body)
            self.journal.forget_unsent()


def wished_release_id(wish: Desired) -> str:
    """Return the release id that an assignment speaks of: of its graph's path and its weights."""
    return release_id(f"sha256:{wish.graph.rpartition('/')[2]}", wish.weights)


def _slot_with(shelf: Shelf, weights: str | None) -> Slot | None:
    """Return the slot whose release has these weights, the active one before the other; None where neither has."""
    slots = shelf.slots()
    return next((slot for slot in (slots.active, slots.previous) if slot is not None and slot.weights == weights), None)


def _is_usable(shelf: Shelf, slot: Slot) -> bool:
    """Return whether a release's files still have their bytes, so that an update can start from them."""
    try:
        shelf.check(shelf.manifest(slot.release_id))
    except StoreCorrupted as bad:
        _log.error("a release to start from is damaged; another way will be taken", extra=_said(bad))
        return False
    return True


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
        raise UntrustedUpdate(
            f"target {missing[0]} is not signed for by the image repository", code="trust.disagreement"
        )
    return signed


def choose_steps(
    shop: Workshop, shelf: Shelf, wish: Desired, *, at_hand: Mapping[bytes, int] = MappingProxyType({})
) -> tuple[str, ...]:
    """Return the target paths to apply: of all that is signed the way with the fewest bytes that are not here yet.

    It starts from a slot whose files have their bytes, or from nothing. The director's path says what it sends along,
    as far as it knows what is held here; the slots decide. Payloads `at_hand`, by SHA-256, cost nothing.

    Raises:
        UntrustedUpdate: nothing is signed that leads there, or the metadata are refused.
        TryLater: link or server are not ready.
    """
    find_targets(shop, [wish.full])  # the metadata are here now, or nothing can be chosen
    steps = [
        Step(
            path=target.path,
            base=target.base_weights,
            weights=target.weights,
            release=target.release,
            cost=_left_of(shop, trusted, at_hand),
        )
        for target, trusted in shop.trust.updates(wish)
    ]
    slots = shelf.slots()
    held = {slot.weights: slot for slot in (slots.previous, slots.active) if slot is not None}
    while way := cheapest_way(steps, held, release=wish.release, weights=wish.weights):
        start = way[0].base
        if start is None or _is_usable(shelf, held[start]):
            return tuple(step.path for step in way)
        del held[start]
    return (wish.full,)  # whatever is wrong with it, verification says it


def stock(shop: Workshop, shelf: Shelf, wish: Desired, bundle: BundleFile) -> None:
    """Copy out of a bundle what an assignment needs, so that nothing has to be fetched for it.

    Raises:
        NoSpace: there is no room; nothing was copied.
        TryLater: (`bundle.incomplete`) a payload is neither here nor in the bundle.
        UntrustedUpdate: nothing is signed that leads there.
    """
    work = Work(wish=wish, started_at=0.0, steps=choose_steps(shop, shelf, wish, at_hand=bundle.payloads))
    targets, graphs = _needed(shop, work)
    lacking = [
        target
        for target in (*targets, *(graph for graph in graphs if not shop.store.holds(graph.sha256, graph.length)))
        if _left_of(shop, target, {})
    ]
    for target in lacking:
        if bundle.payloads.get(target.sha256) != target.length:
            raise TryLater(
                f"{target.path} is not in the bundle: this device holds something else than the server believes; "
                "export the bundle with --full",
                code="bundle.incomplete",
            )
    size = sum(target.length for target in lacking)
    require_space(shop.settings.folder, size, margin=shop.settings.space_margin_bytes)
    make_folder(shop.disk, shop.downloads)
    for target in lacking:
        file = shop.downloads / target.sha256.hex()
        remove(shop.disk, file)
        shop.disk.append(file, b"")
        for piece in bundle.payload(target.sha256):
            shop.disk.append(file, piece)
        finish_appends(shop.disk, file)


def still_signed(shop: Workshop, work: Work) -> bool:
    """Return whether all steps that were chosen are signed by what is held; pruned ones are chosen anew."""
    with contextlib.suppress(TryLater, UntrustedUpdate):  # they are asked for once more, and then it is said
        return len(shop.trust.find(work.steps)) == len(set(work.steps))
    return True


def _left_of(shop: Workshop, target: TrustedTarget, at_hand: Mapping[bytes, int]) -> int:
    """Return how many bytes of a payload, and of asking for it, are still to be read."""
    if digest_text(target.sha256) in shop.blobs or at_hand.get(target.sha256) == target.length:
        return 0
    file = shop.downloads / target.sha256.hex()
    here = file.stat().st_size if file.exists() else 0
    return 0 if here == target.length else target.length - min(here, target.length) + FILE_BYTES


def fetch(shop: Workshop, shelf: Shelf, work: Work, received: Callable[[int], None]) -> None:
    """Bring everything that the update's steps need onto the disk.

    Raises:
        NoSpace: there is no room; nothing was fetched.
        UntrustedUpdate: it is not signed for.
        LinkDown: cut; call again later.
    """
    targets, graphs = _needed(shop, work)
    active = shelf.slots().active
    _require_space(shop, targets, graphs, None if active is None else shelf.manifest(active.release_id))
    for target in targets:
        _fetch_one(shop, target, received)
    for graph in graphs:
        if not shop.store.holds(graph.sha256, graph.length):
            _fetch_one(shop, graph, received)


def _needed(shop: Workshop, work: Work) -> tuple[list[TrustedTarget], list[TrustedTarget]]:
    """Return the updates of the work's steps, and the graphs that the release needs."""
    signed = find_targets(shop, [*work.steps, work.wish.graph])
    graphs = [signed[work.wish.graph]]
    local = UpdateTarget.from_custom(work.steps[-1], signed[work.steps[-1]].custom).local
    if local is not None:
        path = graph_path(work.wish.model, local.graph)
        graphs.append(find_targets(shop, [path])[path])
    return [signed[path] for path in work.steps], graphs


def _require_space(
    shop: Workshop, targets: Sequence[TrustedTarget], graphs: Sequence[TrustedTarget], base: Manifest | None
) -> None:
    """Check for room: payloads that are not here yet, and every tensor twice over in the worst case."""
    payloads = sum(target.length for target in targets)
    here = sum(path.stat().st_size for path in shop.downloads.glob("*")) if shop.downloads.is_dir() else 0
    tensors = 4 * payloads if base is None else max(payloads, sum(spec.nbytes for spec in base.table.specs))
    needed = max(0, payloads + sum(graph.length for graph in graphs) - here) + tensors
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
    first = UpdateTarget.from_custom(work.steps[0], find_targets(shop, work.steps[:1])[work.steps[0]].custom)
    base = _slot_with(shelf, first.base_weights) or shelf.slots().active
    weights = None if first.base_weights is None or base is None else base.weights
    return shop.trust.verify(work.wish, work.steps, weights, shop.downloads)


def rebuild(shop: Workshop, shelf: Shelf, work: Work) -> None:
    """Compute the new weights, and what is local in them, into the store and publish their release folder.

    Raises:
        UpdateRejected: the update is not what was signed, gives other weights, or needs inputs that are not here.
        RebuildFailed, StatisticsFailed: the process died.
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
    slot = _slot_with(shelf, updates[0].target.base_weights)
    base = None if slot is None else shelf.manifest(slot.release_id)
    steps = [
        RebuildStep(
            payload=update.payload,
            weights=update.target.weights,
            local=() if update.target.local is None else update.target.local.tensors,
        )
        for update in updates
    ]
    make_folder(shop.disk, shop.settings.folder / "store")
    rebuilt = shop.rebuilder(shop.settings.folder / "store", base, steps)
    manifest = Manifest(
        model=work.wish.model,
        release=work.wish.release,
        release_id=work.release_id,
        graph=work.graph,
        weights=work.wish.weights,
        table=rebuilt.table,
        sha256s=rebuilt.sha256s,
        local=updates[-1].target.local,
    )
    if (weights := manifest.weights_of(rebuilt.sha256s)) != work.wish.weights:
        raise DigestMismatch(
            subject=f"{work.wish.model}@{work.wish.release}", expected=work.wish.weights, actual=weights
        )
    _adopt_graph(shop, parse_digest(work.graph))
    if manifest.local is not None:
        manifest = _with_statistics(shop, shelf, manifest, manifest.local)
    shelf.publish(manifest)


def _with_statistics(shop: Workshop, shelf: Shelf, manifest: Manifest, local: LocalStatistics) -> Manifest:
    """Compute the local tensors from this device's inputs; return the manifest with what came out.

    They are computed beside the statistics graph, in a folder of its own that is collected later. A cut leaves nothing
    but store files and that folder: the whole is done again.
    """
    _adopt_graph(shop, parse_digest(local.graph))
    beside = replace(manifest, graph=local.graph, release_id=release_id(local.graph, manifest.weights))
    held = (shop.settings.unlabelled.get(manifest.model), shop.settings.holdouts.get(manifest.model))
    job = EstimateJob(
        folder=shelf.publish(beside),
        tensors=local.tensors,
        samples=tuple(path for path in held if path is not None),
        settings=shop.settings.statistics,
    )
    estimated = shop.estimator(shop.settings.folder / "store", job)
    _log.info(
        "local statistics computed",
        extra={"model": manifest.model, "tensors": len(local.tensors), "samples": estimated.samples},
    )
    sha256s = [estimated.sha256s.get(index, sha256) for index, sha256 in enumerate(manifest.sha256s)]
    return replace(manifest, sha256s=tuple(sha256s))


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
    settings = shop.settings.under(work.wish.policy).validation
    return new, validate(new, None if serving is None else serving.host, holdout, settings)


def _said(bad: StoreCorrupted) -> dict[str, str]:
    return {"code": bad.code, "detail": str(bad)}
