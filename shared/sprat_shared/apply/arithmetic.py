"""The arithmetic of the format (docs/wire-format.md, section 7): exact integers first, then single float32 operations.

A float32 matrix product of integers is exact in any order of summation while every partial sum stays within 2**24;
factors lie in [-127, 127], so 1,040 of them may be summed. What follows is elementwise and correctly rounded
(IEEE 754), so every machine, thread count and library that keeps subnormal numbers computes the same bits.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from sprat_shared.errors import UnsafeArithmetic
from sprat_shared.wire.planes import decode_planes
from sprat_shared.wire.records import Dense, Lossless, LowRank, Record
from sprat_shared.wire.scales import STEPS
from sprat_shared.wire.tensors import Array, TensorSpec

EXACT_RANK: Final = 1040  # 1040 * 127 * 127 <= 2**24
_BLOCK: Final = 1 << 16  # values worked on at a time: they stay in the processor's cache
Floats = npt.NDArray[np.float32]


def rebuild_tensor(base: Array, spec: TensorSpec, records: Sequence[Record]) -> Array:
    """Return the tensor that `records` make of `base`.

    Args:
        base: storage dtype, spec's shape; it is not changed.
        spec: name, dtype and shape.
        records: of this tensor, in file order; a lossless one last.

    Returns:
        A new array in storage dtype and shape. Memory: the result, the factors as float32, and a few MB.
    """
    sums = [record for record in records if not isinstance(record, Lossless)]
    if not sums:
        return decode_planes(spec, base, records[-1].frame) if records else base  # type: ignore[union-attr]
    out = np.empty(spec.shape, spec.storage)
    rows, columns = (spec.matrix or (0, 0)) if any(isinstance(record, LowRank) for record in sums) else (1, spec.size)
    old, new = base.reshape(rows, columns), out.reshape(rows, columns)
    width = min(columns, _BLOCK)
    height = max(1, _BLOCK // max(1, width))
    for left in range(0, columns, max(1, width)):
        across = slice(left, min(columns, left + width))
        terms = [_Term(record, rows, columns, across) for record in sums]
        for top in range(0, rows, height):
            down = slice(top, min(rows, top + height))
            values = widen(old[down, across], spec.dtype)
            with np.errstate(over="ignore", invalid="ignore"):  # a writer promises finite results; a digest holds it
                for term in terms:
                    values += term.rows(down)
                new[down, across] = narrow(values, spec.dtype)
    if isinstance(last := records[-1], Lossless):
        return decode_planes(spec, out, last.frame)
    return out


class _Term:
    """What one record adds to some columns of the matrix view, a block of rows at a time."""

    def __init__(self, record: LowRank | Dense, rows: int, columns: int, across: slice) -> None:
        self._step = STEPS[record.scale]
        if isinstance(record, Dense):
            self._q = record.q.reshape(rows, columns)[:, across]
        else:
            self._u, self._v = record.u, record.v[:, across].astype(np.float32)
        self._is_dense = isinstance(record, Dense)

    def rows(self, down: slice) -> Floats:
        if self._is_dense:
            product = self._q[down].astype(np.float32)
        else:
            product = integer_product(self._u[down].astype(np.float32), self._v)
        product *= self._step
        return product


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


def widen(array: Array, dtype: str) -> Floats:
    """Return float32 values of F32, F16 or BF16 bits; exact."""
    if dtype == "BF16":
        return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return array.astype(np.float32)


def narrow(values: Floats, dtype: str) -> Array:
    """Return `values` rounded to nearest even in F32, F16 or BF16 storage. NaN stays NaN."""
    if dtype == "F32":
        return values
    if dtype == "F16":
        with np.errstate(over="ignore", invalid="ignore"):  # beyond the range is infinity, which the encoder refuses
            return values.astype(np.float16)
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype(np.uint16)


_PROBE: Final = np.array(
    [0x80000000, 0x00000001, 0x807FFFFF, 0x3F800000, 0x3F800001, 0xBF800000, 0x4B800000, 0x00800000], dtype=np.uint32
)  # -0.0, subnormals, ties at 1 and its neighbour, 2**24, the smallest normal number
_PROBE_ADDED: Final = np.array([0, 0, 0, 1, 1, -1, 1, 0], dtype=np.int32)
_PROBE_RESULT: Final = np.array(
    [0x00000000, 0x00000001, 0x807FFFFF, 0x3F800000, 0x3F800002, 0xBF800000, 0x4B800000, 0x00800000], dtype=np.uint32
)
_TIE_SCALE: Final = 0  # STEPS[0] is 2**-24: half a unit in the last place of 1.0


def check_arithmetic() -> None:
    """Check that this process, now, computes the format's bits. Costs microseconds.

    Raises:
        UnsafeArithmetic: subnormal numbers are flushed to zero (torch.set_flush_denormal, an onnxruntime session
            with denormals as zero), rounding is not to nearest even, or the matrix product is not exact.
    """
    spec = TensorSpec("probe", "F32", _PROBE.shape)
    rebuilt = rebuild_tensor(_PROBE.view(np.float32), spec, [Dense(0, _TIE_SCALE, _PROBE_ADDED)]).view(np.uint32)
    small = np.array([1], dtype=np.uint32).view(np.float32) + np.zeros(1, np.float32)
    if small.view(np.uint32)[0] == 0 or not rebuilt[1]:
        raise UnsafeArithmetic(
            "subnormal numbers are flushed to zero in this process, so it would rebuild other weights; "
            "do not switch on flush-to-zero (torch.set_flush_denormal, denormals as zero in onnxruntime) here"
        )
    if (rebuilt != _PROBE_RESULT).any():
        raise UnsafeArithmetic("float32 addition does not round to nearest even in this process; weights would differ")
    most = np.full((3, EXACT_RANK), 127, np.float32)
    if (integer_product(most, most.T.copy()) != EXACT_RANK * 127 * 127).any():
        raise UnsafeArithmetic("the float32 matrix product of integers is not exact with this BLAS library")
