"""The work of each state: what FETCHING, VERIFYING and REBUILDING do for one update; VALIDATING's is in `comparing`.

Each can be done again from what is on the disk, so a power cut in the middle costs time and nothing else.
"""

import contextlib
import hashlib
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Protocol
from uuid import UUID
from weakref import WeakValueDictionary

from sprat_client.agent.budget import ByteBudget
from sprat_client.agent.desired import Desired
from sprat_client.agent.durable import Disk, make_folder, write_file
from sprat_client.agent.estimator import EstimateJob, Estimator
from sprat_client.agent.events import EventLog
from sprat_client.agent.holdouts import Holdouts
from sprat_client.agent.hooks import Hooks
from sprat_client.agent.journal import Journal, Work
from sprat_client.agent.permits import Permits
from sprat_client.agent.rebuilder import Rebuilder, RebuildStep
from sprat_client.agent.releases import Manifest, Shelf, Slot
from sprat_client.agent.reports import Outbox
from sprat_client.agent.room import REBUILD_PROCESS_BYTES, Reserve, code_of, require_memory
from sprat_client.agent.servings import Servings
from sprat_client.agent.settings import AgentSettings
from sprat_client.agent.states import Event, State
from sprat_client.agent.store import StoreCorrupted, TensorStore
from sprat_client.agent.transfer import Blob, Link
from sprat_client.agent.trust.clock import Clock
from sprat_client.agent.trust.repository import TrustedTarget
from sprat_client.agent.trust.store import Signed, TrustStore, VerifiedUpdate
from sprat_client.agent.watchdog import Watchdog
from sprat_client.runtime.background import giving_way
from sprat_client.runtime.ports import ModelHost, Runtime
from sprat_shared.errors import BaseMismatch, DigestMismatch, TryLater, UntrustedUpdate
from sprat_shared.ids import digest_text, parse_digest
from sprat_shared.trust.targets import LocalStatistics, UpdateTarget, graph_path
from sprat_shared.wire.tensors import release_id

_log = logging.getLogger(__name__)
_AGAINS_ALLOWED: Final = 2  # a disk that damages what is fetched over and over does not get better


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
        holdouts: labelled samples that applications added.
        blobs: payloads of the last poll, by digest.
        stopping: the agent was asked to end; long work is left for the next start.
        watchdog: is told what is done, and that it goes forward.
        budget: the bytes of the day.
        events: what happened.
        meanwhile: does what is due while a download goes on; returns whether the download must end for it.
        taken: bytes that loading a release took, by model and release id: of the two that were compared last.
        hosts: what is loaded to answer, by release id, while anything holds it.
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
    budget: ByteBudget
    events: EventLog
    holdouts: Holdouts
    blobs: dict[str, bytes] = field(default_factory=dict)
    stopping: threading.Event = field(default_factory=threading.Event)
    watchdog: Watchdog = field(default_factory=Watchdog)
    meanwhile: Callable[[], bool] = lambda: False
    taken: dict[str, dict[str, int]] = field(default_factory=dict)
    hosts: WeakValueDictionary[str, ModelHost] = field(default_factory=WeakValueDictionary)

    @property
    def downloads(self) -> Path:
        """The folder of payloads, named by the hex of their digests."""
        return self.settings.folder / "downloads"

    def left(
        self, before: State, event: Event, model: str, work: Work | None, bad: tuple[str, str] | None = None
    ) -> None:
        """Tell of a transition that is durable: from which state, by what, with which work, and what went wrong."""
        release = None if work is None else work.wish.release
        said = {"model": model, "state": self.journal.record(model).state.value, "was": before.value, "by": event.value}
        code = {} if bad is None else {"code": bad[0]}
        self.events.note("state", **said, release=release, **code)
        self.hooks.left(before, event, model, release)

    @property
    def reports_wait(self) -> bool:
        """Whether there are reports that the server does not have."""
        return bool(self.journal.unsent) or bool(self.outbox.waiting())

    @property
    def reserve(self) -> Reserve:
        """Room on the disk for the update under way."""
        return Reserve(self.settings.folder, self.disk)

    def flush_reports(self) -> None:
        """Sign what the journal decided to report, into the outbox; where the disk fails, they wait in the journal."""
        try:
            if self.journal.unsent:
                for body in self.journal.unsent:
                    self.outbox.put(body)
                self.journal.forget_unsent()
        except (OSError, MemoryError) as bad:
            _log.warning("reports wait in the journal", extra={"code": code_of(bad), "detail": str(bad)})


def wished_release_id(wish: Desired) -> str:
    """Return the release id that an assignment speaks of: of its graph's path and its weights."""
    return release_id(f"sha256:{wish.graph.rpartition('/')[2]}", wish.weights)


def _slot_with(shelf: Shelf, weights: str | None) -> Slot | None:
    """Return the slot whose release has these weights, the active one before the other; None where neither has."""
    slots = shelf.slots()
    return next((slot for slot in (slots.active, slots.previous) if slot is not None and slot.weights == weights), None)


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


class Receiver(Protocol):
    """Told of a download's pieces, and asked before each request how many bytes it may bring (None: any number)."""

    count: Callable[[int], None]

    def __call__(self, size: int) -> None:
        """Take note of a piece; what it raises ends the download."""

    def allowed(self) -> int | None:
        """Return how many bytes the next request may bring."""


def fetch(shop: Workshop, shelf: Shelf, work: Work, received: Receiver) -> None:
    """Bring everything that the update's steps need onto the disk.

    Raises:
        NoSpace: there is no room; nothing was fetched.
        UntrustedUpdate: it is not signed for.
        LinkDown: cut; call again later.
    """
    targets, graphs = needed(shop, work)
    files = [*targets, *(graph for graph in graphs if not shop.store.holds(graph.sha256, graph.length))]
    coming = sum(max(0, file.length - _kept(shop, file)) for file in files)
    room = coming + _tensor_bytes(_active_manifest(shelf), sum(target.length for target in targets))
    shop.reserve.take(room, margin=shop.settings.space_margin_bytes)
    for file in files:
        _fetch_one(shop, file, received)


def needed(shop: Workshop, work: Work) -> tuple[list[TrustedTarget], list[TrustedTarget]]:
    """Return what is signed of the work's steps, and of the graphs that the release needs; errors as `find_targets`."""
    signed = find_targets(shop, [*work.steps, work.wish.graph])
    graphs = [signed[work.wish.graph]]
    local = UpdateTarget.from_custom(work.steps[-1], signed[work.steps[-1]].custom).local
    if local is not None:
        path = graph_path(work.wish.model, local.graph)
        graphs.append(find_targets(shop, [path])[path])
    return [signed[path] for path in work.steps], graphs


def _kept(shop: Workshop, target: TrustedTarget) -> int:
    """Return how many bytes of a payload are here already."""
    try:
        return (shop.downloads / target.sha256.hex()).stat().st_size
    except OSError:
        return 0


def _active_manifest(shelf: Shelf) -> Manifest | None:
    """Return what the active release holds; None where there is none, or it cannot be read."""
    active = shelf.slots().active
    try:
        return None if active is None else shelf.manifest(active.release_id)
    except StoreCorrupted:
        return None


def _tensor_bytes(base: Manifest | None, payloads: int) -> int:
    """Return how many bytes the tensors of a new release may take: in the worst case all anew, with graphs' copies."""
    held = 0 if base is None else sum(spec.nbytes * (3 if spec.dtype == "BF16" else 1) for spec in base.table.specs)
    return 4 * payloads if base is None else max(payloads, held)


def _fetch_one(shop: Workshop, target: TrustedTarget, received: Receiver) -> None:
    file = shop.downloads / target.sha256.hex()
    inline = shop.blobs.get(digest_text(target.sha256))
    if inline is not None and hashlib.sha256(inline).digest() == target.sha256:
        make_folder(shop.disk, shop.downloads)
        write_file(shop.disk, file, inline)
        received.count(len(inline))
        return
    shop.link.download(Blob(target.sha256, target.length, file), shop.disk, received, received.allowed)


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
        NoSpace, MemoryShort: there is too little room; nothing was written or loaded.
        StoreCorrupted: what it starts from is damaged.
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
    payloads = sum(update.payload.stat().st_size for update in updates)
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
    largest = payloads if base is None else max(spec.nbytes for spec in base.table.specs)
    require_memory(REBUILD_PROCESS_BYTES + 3 * largest, f"rebuilding {work.wish.model}@{work.wish.release}")
    shop.reserve.take(_tensor_bytes(base, payloads), margin=shop.settings.space_margin_bytes)
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
        shares=updates[-1].target.shares,
    )
    if (weights := manifest.weights_of(rebuilt.sha256s)) != work.wish.weights:
        raise DigestMismatch(
            subject=f"{work.wish.model}@{work.wish.release}", expected=work.wish.weights, actual=weights
        )
    _adopt_graph(shop, parse_digest(work.graph))
    if manifest.local is not None:
        manifest = _with_statistics(shop, shelf, manifest, manifest.local)
    shop.reserve.give_back()
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


def load_once(shop: Workshop, shelf: Shelf, manifest: Manifest) -> ModelHost:
    """Check every file of a release, and load it where it is not in memory yet: a model and a plan may both need it.

    Raises:
        StoreCorrupted: a file does not have its bytes.
        ModelNotLoadable: the runtime refuses it.
    """
    giving_way(lambda: shelf.check(manifest))
    host = shop.hosts.get(manifest.release_id)
    if host is None:
        host = shop.hosts[manifest.release_id] = shop.runtime.load(shelf.folder_of(manifest.release_id))
    return host


def anew(work: Work, code: str) -> Work | None:
    """Return an update to be fetched and rebuilt once more, after an error of this code; None where that is no use.

    Where what it starts from lacks, or a tensor of another model that it names, the full update is taken, which needs
    neither: so that is done once. Where something is damaged, the way is chosen again.
    """
    lacks = code == BaseMismatch.code and work.steps != (work.wish.full,)
    if work.agains >= _AGAINS_ALLOWED or not (lacks or code == StoreCorrupted.code):
        return None
    return replace(work, steps=(work.wish.full,) if lacks else (), agains=work.agains + 1)


def fetch_again(shop: Workshop, shelf: Shelf, work: Work) -> None:
    """Remove what is damaged of a new release, so that fetching and rebuilding it write it afresh."""
    if work.release_id is not None and shelf.holds(work.release_id):
        try:
            shelf.discard_damaged(shelf.manifest(work.release_id))
        except StoreCorrupted:
            shelf.discard(work.release_id)
    if work.graph is not None:
        graph = parse_digest(work.graph)
        try:
            shop.store.check(graph, "graph")
        except StoreCorrupted:
            shop.store.discard(graph)


def _said(bad: StoreCorrupted) -> dict[str, str]:
    return {"code": bad.code, "detail": str(bad)}
