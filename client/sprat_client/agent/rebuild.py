"""Rebuilds weights in a process of its own, so that nothing the agent has loaded can change the arithmetic.

    python -m sprat_client.agent.rebuild < job.json > result.json
First the golden vector is computed (`check_arithmetic`): a process that would compute other bits refuses by name. Then
each update is applied to the release before it, into the tensor store, and only the expected weights digest is taken.
"""

import mmap
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sprat_client.agent.child import peak_bytes, serve_job
from sprat_client.agent.durable import PosixDisk
from sprat_client.agent.rebuilder import RebuildStep, Rebuilt
from sprat_client.agent.releases import Manifest
from sprat_client.agent.room import RESERVE_FILE, spend
from sprat_client.agent.store import TensorStore, file_sha256
from sprat_client.agent.stored import HeldTensors, StoredTensors
from sprat_shared.apply import apply_update, check_arithmetic
from sprat_shared.errors import DigestMismatch, UpdateRejected
from sprat_shared.wire.tensors import Array, TensorTable, WithoutLocal, raw_bytes


class _StoreSink:
    """Puts rebuilt tensors into the store (`apply.TensorSink`)."""

    def __init__(self, store: TensorStore, reserve: Path | None) -> None:
        self._store, self._reserve = store, reserve
        self.sha256s: dict[int, bytes] = {}

    def begin(self, table: TensorTable) -> None:
        """Take the table of the new release."""
        self.table = table

    def keep(self, index: int, sha256: bytes) -> None:
        """Take a tensor that the base has already."""
        self.sha256s[index] = sha256

    def put(self, index: int, array: Array, sha256: bytes) -> None:
        """Write a tensor, unless the store has it."""
        self.sha256s[index] = sha256
        if not (self._store.holds(sha256, array.nbytes) and file_sha256(self._store.path(sha256)) == sha256):
            if self._reserve is not None:
                spend(self._reserve, array.nbytes)
            self._store.put(sha256, raw_bytes(array))


def rebuild(
    store: TensorStore, base: Manifest | None, steps: Sequence[RebuildStep], reserve: Path | None = None
) -> Rebuilt:
    """Apply updates one after the other; every tensor of the last release is durably in the store at return.

    Peak memory: the mapped base and three times the largest tensor. What it writes, it gives back of the `reserve`
    file, where there is one.

    Raises:
        UnsafeArithmetic: this process would compute other bits.
        UpdateRejected: an update is malformed, made for other weights, or gives other weights than expected.
        StoreCorrupted: a file of the base does not have its bytes any more, and the result shows it.
    """
    check_arithmetic()
    source = None if base is None else StoredTensors(base.table, base.sha256s, store)
    local: Sequence[int] = () if base is None or base.local is None else base.local.tensors
    for step in steps:
        sink = _StoreSink(store, reserve)
        with step.payload.open("rb") as file:
            payload = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # unmapped with its last view
        start = None if source is None else WithoutLocal(source, local)
        try:
            apply_update(
                memoryview(payload), start, sink, expected=step.weights, local=step.local, held=HeldTensors(store)
            )
        except DigestMismatch:
            if source is not None:
                source.check_all()  # hashing the base each time would find what the result's digest finds as well
            raise
        store.settle()
        local = step.local
        source = StoredTensors(sink.table, [sink.sha256s[index] for index in range(len(sink.table))], store)
    if source is None:
        raise UpdateRejected("an update without a step")
    sha256s = tuple(source.sha256(index) for index in range(len(source.table)))
    return Rebuilt(table=source.table, sha256s=sha256s, peak_bytes=peak_bytes())


def _work(store: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    base = None if job["base"] is None else Manifest.of(job["base"])
    steps = [
        RebuildStep(payload=Path(payload), weights=weights, local=tuple(local))
        for payload, weights, local in job["steps"]
    ]
    return rebuild(TensorStore(store, PosixDisk()), base, steps, store.parent / RESERVE_FILE).as_json()


if __name__ == "__main__":
    sys.exit(serve_job(_work))
