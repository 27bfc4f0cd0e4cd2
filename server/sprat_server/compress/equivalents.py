"""The cheapest of several records that say exactly the same change.

A trained low-rank product may have few rows that are not zero (an embedding whose tokens rarely occur, a head whose
new classes alone change), or few values at all; then rows or single values take fewer bytes than its factors. What a
record costs is counted by the coder itself.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from sprat_shared.wire.records import Dense, LowRank, Record, Rows
from sprat_shared.wire.records.stream import RecordWriter
from sprat_shared.wire.tensors import TensorSpec

_MOST: Final = (1 << 24) - 1  # magnitude of a value of its own
Integers = npt.NDArray[np.int64]


def cheapest(record: Record, spec: TensorSpec) -> Record:
    """Return the record that decodes to the same bits as `record` in the fewest bytes, itself where none is better.

    Args:
        record: of the tensor; only low rank and dense have equivalents.
        spec: of the tensor.
    """
    return min((record, *_equivalents(record, spec)), key=_bytes)


def _bytes(record: Record) -> int:
    writer = RecordWriter()
    record.write(writer)
    return len(writer.finish()[1])


def _equivalents(record: Record, spec: TensorSpec) -> Iterator[Record]:
    if spec.matrix is None:
        return
    match record:
        case LowRank(index=index, scale=scale, u=u, v=v):
            order = np.argsort(-np.count_nonzero(v, axis=1), kind="stable")  # the coder's odds follow slow changes best
            u, v = (np.ascontiguousarray(side) for side in (u[:, order], v[order]))
            yield LowRank(index=index, scale=scale, u=u, v=v)
            touched = np.count_nonzero(u.any(axis=1))
            if touched * v.shape[1] <= 8 * (u.size + v.size):  # a bound: beyond it the product cannot be cheaper
                yield from _spelled_out(index, scale, u.astype(np.int64) @ v.astype(np.int64), dense=True)
        case Dense(index=index, scale=scale, q=q):
            yield from _spelled_out(index, scale, q.astype(np.int64).reshape(spec.matrix), dense=False)
        case _:
            return


def _spelled_out(index: int, scale: int, product: Integers, *, dense: bool) -> Iterator[Record]:
    """Yield the integers of a matrix as rows, where few are not zero, and as they are, where that is asked for."""
    if np.abs(product).max(initial=0) > _MOST:
        return
    q = product.astype(np.int32)
    rows = np.flatnonzero(q.any(axis=1))
    if 0 < rows.size * (q.shape[1] + 1) <= q.size:
        yield Rows(index=index, scale=scale, rows=rows.astype(np.uint32), q=np.ascontiguousarray(q[rows]))
    if dense:
        yield Dense(index=index, scale=scale, q=q.reshape(-1))
