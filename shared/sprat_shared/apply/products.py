"""The exact integers of a record, rounded once to float32, block by block (docs/wire-format.md, section 7, item 2).

A float32 matrix product of integers is exact in any order of summation while every partial sum stays within 2**24;
factors lie in [-127, 127], so 1,040 of them may be summed. Three factors are multiplied in float64, where the format
bounds every partial sum by 2**53. What is drawn is drawn for a block at a time, from its positions.
"""

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from sprat_shared.wire.drawn import slots_and_signs
from sprat_shared.wire.records import Dense, LowRank, Rows, Subspace, Sum, ThreeFactors
from sprat_shared.wire.tensors import TensorSpec

EXACT_RANK: Final = 1040  # 1040 * 127 * 127 <= 2**24
BLOCK: Final = 1 << 16  # values worked on at a time: they stay in the processor's cache
_INNER: Final = 1 << 19  # values of the factors of a block
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Strip = Callable[[slice], Floats]  # some rows of a strip of columns


def products(record: Sum, spec: TensorSpec) -> Iterator[tuple[slice, slice, Floats]]:
    """Yield rows, columns and exact integers, rounded to float32 with every zero positive, until all are covered.

    Rows and columns are those of the matrix view, (1, size) where there is none. Memory: some MB, and for a low rank
    the columns of a block as float32.
    """
    if not spec.size:
        return
    rows, columns = spec.matrix or (1, spec.size)
    strip_of, strips = _ways(record, spec, columns)
    for across in strips:
        strip = strip_of(across)
        height = max(1, BLOCK // (across.stop - across.start))
        for top in range(0, rows, height):
            down = slice(top, min(rows, top + height))
            yield down, across, strip(down)


def _ways(record: Sum, spec: TensorSpec, columns: int) -> tuple[Callable[[slice], Strip], Iterator[slice]]:
    """Return what gives the integers of a strip of columns, and the strips."""
    match record:
        case LowRank():
            return _low_rank(record), _cut(0, columns, BLOCK)
        case Dense():
            return _dense(record, columns), _cut(0, columns, BLOCK)
        case Rows():
            return _rows(record), _cut(0, columns, BLOCK)
        case Subspace():
            return _subspace(record, columns), _cut(0, columns, BLOCK)
        case ThreeFactors():
            s = record.core.shape[2]
            width = max(1, min(BLOCK, _INNER // max(record.core.shape[:2])))
            if s <= width:
                return _three_factors(record, spec), _cut(0, columns, width // s * s)
            return _three_factors(record, spec), (
                strip for at in range(0, columns, s) for strip in _cut(at, at + s, width)
            )


def _cut(start: int, stop: int, width: int) -> Iterator[slice]:
    return (slice(at, min(stop, at + width)) for at in range(start, stop, width))


def _low_rank(record: LowRank) -> Callable[[slice], Strip]:
    def strip_of(across: slice) -> Strip:
        v = record.v[:, across].astype(np.float32)
        return lambda down: integer_product(record.u[down].astype(np.float32), v)

    return strip_of


def integer_product(u: Floats, v: Floats) -> Floats:
    """Return u @ v, exact before its one rounding to float32, every zero positive.

    Args:
        u: integers in [-127, 127] as float32, (m, r).
        v: the same, (r, n).
    """
    rank = u.shape[1]
    if rank <= EXACT_RANK:
        product: Floats = u @ v
    else:
        total = np.zeros((u.shape[0], v.shape[1]), np.float64)
        for at in range(0, rank, EXACT_RANK):
            total += u[:, at : at + EXACT_RANK] @ v[at : at + EXACT_RANK]
        product = total.astype(np.float32)
    product += np.float32(0.0)
    return product


def _dense(record: Dense, columns: int) -> Callable[[slice], Strip]:
    q = record.q.reshape(-1, columns)
    return lambda across: lambda down: q[down, across].astype(np.float32)


def _rows(record: Rows) -> Callable[[slice], Strip]:
    def block(down: slice, across: slice) -> Floats:
        first, last = np.searchsorted(record.rows, (down.start, down.stop))
        out = np.zeros((down.stop - down.start, across.stop - across.start), np.float32)
        out[record.rows[first:last].astype(np.int64) - down.start] = record.q[first:last, across]
        return out

    return lambda across: lambda down: block(down, across)


def _subspace(record: Subspace, columns: int) -> Callable[[slice], Strip]:
    count = record.q.size
    either = np.concatenate([record.q, -record.q]).astype(np.float32)

    def block(down: slice, across: slice) -> Floats:
        starts = np.arange(down.start, down.stop, dtype=np.uint64) * np.uint64(columns)
        positions = starts[:, None] + np.arange(across.start, across.stop, dtype=np.uint64)
        slots, signs = slots_and_signs(record.seed, record.index, positions, count)
        slots += count * (signs < 0)
        return either[slots]

    return lambda across: lambda down: block(down, across)


def _three_factors(record: ThreeFactors, spec: TensorSpec) -> Callable[[slice], Strip]:
    u, v = record.left(spec), record.right(spec)

    def strip_of(across: slice) -> Strip:
        inner = _core_by_right(record.core, v, across)

        def strip(down: slice) -> Floats:
            product = (inner[down] if u is None else u[down].astype(np.float64) @ inner).astype(np.float32)
            product += np.float32(0.0)
            return product

        return strip

    return strip_of


def _core_by_right(core: npt.NDArray[np.int16], v: npt.NDArray[np.int8] | None, across: slice) -> Doubles:
    """Return the columns `across` of the core times v: float64 (r, columns), exact.

    Args:
        core: (r, t, s).
        v: (t, n); None for the identity.
        across: of the n * s columns: whole multiples of s, or within one.
    """
    r, t, s = core.shape
    i = slice(across.start // s, -(-across.stop // s))
    x = slice(across.start - i.start * s, across.stop - i.start * s) if i.stop - i.start == 1 else slice(0, s)
    if v is None:
        return core[:, i, x].astype(np.float64).reshape(r, -1)
    out, right = np.empty((r, across.stop - across.start)), v[:, i].astype(np.float64)
    height = max(1, _INNER // max(t * (x.stop - x.start), out.shape[1]))
    for part in _cut(0, r, height):
        cut = core[part, :, x].astype(np.float64).transpose(0, 2, 1)  # (a, x, b)
        out[part] = (cut.reshape(-1, t) @ right).reshape(*cut.shape[:2], -1).transpose(0, 2, 1).reshape(len(cut), -1)
    return out
