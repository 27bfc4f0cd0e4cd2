"""Mends a damaged release from what else this device holds, or says that it cannot.

Tensors that two releases share are one file under two names, so what damages one damages both. What can be had again
without the server: a folder that lost names, from the store; a bfloat16 tensor, from the float32 copy that the graph
reads, and the copy from it; a graph, from another release of the same graph or from the download; a manifest, from
another release's table, where the digest of the files proves it. All else is fetched again.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from sprat_client.agent.bfloat16 import narrowed
from sprat_client.agent.releases import GRAPH, Manifest, Shelf, Slot
from sprat_client.agent.store import StoreCorrupted, TensorStore, file_sha256, map_file
from sprat_shared.ids import digest_text, parse_digest
from sprat_shared.wire.tensors import TensorSpec, release_id

_log = logging.getLogger(__name__)


def mend(shelf: Shelf, store: TensorStore, slot: Slot, others: list[Slot], downloads: Path) -> bool:
    """Make a release whole again; return whether it is.

    Args:
        shelf: of the model.
        store: of the agent.
        slot: the damaged release.
        others: releases beside it.
        downloads: where fetched files may still lie, by the hex of their digests.
    """
    try:
        manifest = shelf.manifest(slot.release_id)
    except StoreCorrupted:
        proven = next(filter(None, (_proven(shelf, slot, other) for other in others)), None)
        if proven is None:
            return False
        manifest = proven
    folder = shelf.folder_of(slot.release_id)
    graph = parse_digest(manifest.graph)
    if not _is_whole(store, graph):
        places = [downloads / graph.hex(), folder / GRAPH, *(shelf.folder_of(one.release_id) / GRAPH for one in others)]
        if not _written(store, graph, (path.read_bytes for path in places if _has(path, graph))):
            return False
    for index, (spec, sha256) in enumerate(zip(manifest.table.specs, manifest.sha256s, strict=True)):
        if not _is_whole(store, sha256):
            places = [folder / "t" / str(index)]
            if not _written(store, sha256, (_reader(path, spec) for path in places)):
                _log.error("cannot be mended here", extra={"tensor": spec.name, "release": slot.release})
                return False
    store.settle()
    shelf.publish(manifest)
    _log.warning("mended", extra={"model": manifest.model, "release": slot.release})
    return True


def _is_whole(store: TensorStore, sha256: bytes) -> bool:
    try:
        store.check(sha256, "")
    except StoreCorrupted:
        return False
    return True


def _has(path: Path, sha256: bytes) -> bool:
    try:
        return file_sha256(path) == sha256
    except OSError:
        return False


def _reader(path: Path, spec: TensorSpec) -> Callable[[], bytes]:
    """Return what reads a tensor out of the file that a graph reads."""

    def read() -> bytes:
        if spec.dtype != "BF16":
            return path.read_bytes()
        return bytes(narrowed(map_file(path, TensorSpec(spec.name, "F32", spec.shape))))

    return read


def _written(store: TensorStore, sha256: bytes, readers: Iterable[Callable[[], bytes]]) -> bool:
    """Write a file of the store anew from the first place that has its bytes."""
    for read in readers:
        try:
            data = read()
        except (OSError, StoreCorrupted):
            continue
        if hashlib.sha256(data).digest() == sha256:
            store.put(sha256, data)
            return True
    return False


def _proven(shelf: Shelf, slot: Slot, other: Slot) -> Manifest | None:
    """Return the manifest that a folder without one must have had, if it has the tensors of another's table."""
    folder = shelf.folder_of(slot.release_id)
    try:
        like = shelf.manifest(other.release_id)
        graph = digest_text(file_sha256(folder / GRAPH))
        sha256s = tuple(
            hashlib.sha256(_reader(folder / "t" / str(index), spec)()).digest()
            for index, spec in enumerate(like.table.specs)
        )
    except (OSError, StoreCorrupted):
        return None
    manifest = replace(
        like, release=slot.release, release_id=slot.release_id, graph=graph, weights=slot.weights, sha256s=sha256s
    )
    if like.local is not None:  # no digest speaks for what this device computed itself
        return None
    is_it = manifest.weights_of(sha256s) == slot.weights and release_id(graph, slot.weights) == slot.release_id
    return manifest if is_it else None
