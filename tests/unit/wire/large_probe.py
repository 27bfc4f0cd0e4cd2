"""Applies good files to a tensor of ten million values, each with a fresh high-water mark.

Prints a line of JSON for each: {"case", "peak_bytes", "declared_bytes", "right"}; `right` says whether values here and
there are those of the records.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from memory_probe import status

from sprat_shared.apply import apply_update
from sprat_shared.errors import DigestMismatch
from sprat_shared.wire.drawn import Use, drawn_matrix, slots_and_signs
from sprat_shared.wire.planes import encode_planes
from sprat_shared.wire.records import Dense, Drawn, Lossless, LowRank, Record, Rows, Subspace, ThreeFactors
from sprat_shared.wire.scales import STEPS
from sprat_shared.wire.tensors import Array, ArrayTensors, TensorSpec, TensorTable, digest_of
from sprat_shared.wire.update import encode_update

SHAPE = (2500, 4000)
SCALE, SEED, COUNT = 136, 5, 1000  # 1 / 128: sums of a few steps are exact
AT = np.random.default_rng(3).integers(0, 10_000_000, 2000)
RANK = 12


class Looked:
    """A sink that keeps the values at `AT`."""

    found: Array

    def begin(self, table: TensorTable) -> None:
        """Nothing to learn."""

    def keep(self, index: int, sha256: bytes) -> None:
        """Nothing is kept."""

    def put(self, index: int, array: Array, sha256: bytes) -> None:
        del index, sha256
        self.found = array.reshape(-1)[AT].copy()


def cases(spec: TensorSpec) -> Iterator[tuple[str, list[Record], np.ndarray]]:
    """Name, records of tensor 0, and the sum of their integers at `AT`; all are worth one step."""
    rng = np.random.default_rng(1)
    rows, columns = np.divmod(AT, SHAPE[1])
    u, v = (rng.integers(-127, 128, shape).astype(np.int8) for shape in ((SHAPE[0], RANK), (RANK, SHAPE[1])))
    yield "low rank", [LowRank(0, SCALE, u, v)], (u[rows].astype(int) * v[:, columns].T).sum(1)
    core = rng.integers(-99, 100, (RANK, 700, 1)).astype(np.int16)
    right = drawn_matrix(SEED, 0, Use.RIGHT, 700, SHAPE[1]).astype(int)
    between = (u[rows].astype(int) @ core[:, :, 0].astype(int) * right[:, columns].T).sum(1)
    yield "three factors", [ThreeFactors(0, SCALE, u, core, Drawn(SEED))], between
    which = np.sort(rng.choice(SHAPE[0], 40, replace=False)).astype(np.uint32)
    q = rng.integers(-99, 100, (40, SHAPE[1])).astype(np.int32)
    place = np.searchsorted(which, rows).clip(max=39)
    yield "rows", [Rows(0, SCALE, which, q)], np.where(which[place] == rows, q[place, columns], 0)
    coefficients = rng.integers(-99, 100, COUNT).astype(np.int16)
    slots, signs = slots_and_signs(SEED, 0, AT.astype(np.uint64), COUNT)
    yield "subspace", [Subspace(0, SCALE, SEED, coefficients)], coefficients[slots] * signs
    if spec.dtype == "F16":  # takes most beside its own size
        dense = np.zeros(10_000_000, np.int32)
        dense[AT[:1000]] = 7
        yield "dense twice", [Dense(0, SCALE, dense)] * 2, 2 * dense[AT]
    new = ((np.arange(10_000_000) % 2) * STEPS[SCALE]).astype(spec.storage).reshape(SHAPE)
    frame = encode_planes(spec, np.zeros(SHAPE, spec.storage), new, level=1)
    yield "lossless", [Lossless(0, frame)], AT % 2


def main() -> None:
    for dtype in ("F32", "F16"):
        spec = TensorSpec("w", dtype, SHAPE)
        base = ArrayTensors({"w": (dtype, np.zeros(SHAPE, spec.storage))})
        base_digest = digest_of(base)
        for name, records, integers in cases(spec):
            data, sink = encode_update(base.table, records, base_digest=base_digest), Looked()
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            before = status("VmRSS:")
            try:
                apply_update(data, base, sink, expected="sha256:" + "0" * 64, base_digest=base_digest)
            except DigestMismatch:  # the digest of the result is not known here; what it holds is looked at
                peak = status("VmHWM:") - before
            wanted = np.float32(0) + integers.astype(np.float32) * STEPS[SCALE]
            right = bool((sink.found == wanted.astype(spec.storage)).all() and (wanted != 0).any())
            row = {"case": f"{name}, {dtype}", "peak_bytes": peak, "declared_bytes": spec.nbytes, "right": right}
            sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
