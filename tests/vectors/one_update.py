"""An update whose bits depend on everything that could go wrong: for processes that rebuild it in other ways."""

import numpy as np

from sprat_shared.apply import rebuild_tensor
from sprat_shared.wire.records import Dense, Drawn, LowRank, Record, Rows, Subspace, ThreeFactors
from sprat_shared.wire.tensors import ArrayTensors, digest_of
from sprat_shared.wire.update import encode_update

SEED = 11


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
        "d": ("F32", rng.standard_normal((30, 20, 3, 3), dtype=np.float32)),
    }

    def extreme(low: int, high: int, *shape: int) -> np.ndarray:
        return rng.integers(low, high, shape) * rng.choice([-1, 1], shape)

    records: list[Record] = []
    for index in range(3):
        u, v = extreme(100, 128, m, r).astype(np.int8), extreme(100, 128, r, n).astype(np.int8)
        core = extreme(30000, 32768, r, r, 1).astype(np.int16)
        sides = (u, v) if index == 0 else (Drawn(SEED), Drawn(SEED))
        records += [LowRank(index, 30 + index, u, v), ThreeFactors(index, 10 * index, sides[0], core, sides[1])]
    records.append(Rows(2, 20, np.array([0, 5, 127], np.uint32), extreme(0, 2**24, 3, n).astype(np.int32)))
    records.append(Subspace(2, 60, SEED, extreme(0, 32768, 50).astype(np.int16)))
    records.append(Dense(2, 20, rng.integers(-9, 10, m * n).astype(np.int32)))
    core = extreme(0, 32768, 10, 8, 9).astype(np.int16)
    records.append(ThreeFactors(3, 5, extreme(1, 128, 30, 10).astype(np.int8), core, Drawn(SEED)))
    base = ArrayTensors(tensors)
    new = {
        spec.name: (spec.dtype, rebuild_tensor(base.read(i), spec, [r for r in records if r.index == i]))
        for i, spec in enumerate(base.table)
    }
    expected = digest_of(ArrayTensors(new))
    return base, encode_update(base.table, records, base_digest=digest_of(base)), expected
