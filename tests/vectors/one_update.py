"""An update whose bits depend on everything that could go wrong: for processes that rebuild it in other ways."""

import numpy as np

from sprat_shared.apply import rebuild_tensor
from sprat_shared.wire.records import Dense, LowRank, Record
from sprat_shared.wire.tensors import ArrayTensors, digest_of
from sprat_shared.wire.update import encode_update


def the_update() -> tuple[ArrayTensors, bytes, str]:
    """Base, update and expected digest: factors of 100 to 127, all floats, enough rows that BLAS shares them out."""
    rng = np.random.default_rng(1)
    m, n, r = 128, 96, 24  # enough products that BLAS shares them out to its threads
    weights = rng.standard_normal((m, n), dtype=np.float32)
    weights[0, :4] = np.array([0x80000000, 1, 0x807FFFFF, 0x3F800001], np.uint32).view(np.float32)
    tensors = {
        "a": ("F32", weights),
        "b": ("F16", rng.standard_normal((m, n)).astype(np.float16)),
        "c": ("BF16", (weights.view(np.uint32) >> 16).astype(np.uint16)),
    }
    records: list[Record] = []
    for index in range(3):
        u, v = ((rng.integers(100, 128, s) * rng.choice([-1, 1], s)).astype(np.int8) for s in ((m, r), (r, n)))
        records.append(LowRank(index, 30 + index, u, v))
    records.append(Dense(2, 20, rng.integers(-9, 10, m * n).astype(np.int32)))
    base = ArrayTensors(tensors)
    new = {
        spec.name: (spec.dtype, rebuild_tensor(base.read(i), spec, [r for r in records if r.index == i]))
        for i, spec in enumerate(base.table)
    }
    expected = digest_of(ArrayTensors(new))
    return base, encode_update(base.table, records, base_digest=digest_of(base)), expected
