"""The arithmetic of the format (docs/wire-format.md, section 7): exact integers first, then single float32 operations.

`apply.products` gives the integers of a record. What follows is elementwise and correctly rounded (IEEE 754), so every
machine, thread count and library that keeps subnormal numbers computes the same bits.
"""

from collections.abc import Iterable
from typing import Final

import numpy as np

from sprat_shared.apply.products import BLOCK, EXACT_RANK, Floats, integer_product, products
from sprat_shared.errors import UnsafeArithmetic
from sprat_shared.wire.records import Dense, Edit, Exact, Sum
from sprat_shared.wire.scales import STEPS
from sprat_shared.wire.tensors import Array, TensorSpec


def rebuild_tensor(base: Array, spec: TensorSpec, records: Iterable[Edit]) -> Array:
    """Return the tensor that `records` make of `base`.

    Args:
        base: storage dtype, spec's shape; it is not changed.
        spec: name, dtype and shape.
        records: of this tensor, in file order, an exact one last; one at a time is taken and let go.

    Returns:
        A new array in storage dtype and shape; `base` itself where there are no records. Memory: the result (and for
        halves its values as float32), the factors as float32, and some MB.
    """
    values: Floats | None = None
    for record in records:
        if isinstance(record, Exact):
            return record.restore(spec, base if values is None else _narrowed(values, spec))
        values = _add(base, values, spec, record)
        del record  # before the next one is read
    return base if values is None else _narrowed(values, spec)


def _add(base: Array, values: Floats | None, spec: TensorSpec, record: Sum) -> Floats:
    """Return the values after a record, float32; `values` is what there is so far, or None for `base`."""
    shape = spec.matrix or (1, spec.size)
    start = values is None
    out = np.empty(spec.shape, np.float32) if values is None else values
    old, new, step = base.reshape(shape), out.reshape(shape), STEPS[record.scale]
    with np.errstate(over="ignore", invalid="ignore"):  # a writer promises finite results; a digest holds it
        for down, across, product in products(record, spec):
            before = widen(old[down, across], spec.dtype) if start else new[down, across]
            np.add(before, np.multiply(product, step, out=product), out=new[down, across])
    return out


def _narrowed(values: Floats, spec: TensorSpec) -> Array:
    if spec.dtype == "F32":
        return values
    out = np.empty(spec.shape, spec.storage)
    flat, new = values.reshape(-1), out.reshape(-1)
    for at in range(0, flat.size, BLOCK):
        new[at : at + BLOCK] = narrow(flat[at : at + BLOCK], spec.dtype)
    return out


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
_LONG: Final = 1024  # sums of the float64 probe end beyond 2**51
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
    left, right = np.full((3, _LONG), 2**24 - 1, np.float64), np.full((_LONG, 3), 2**18 + 1, np.float64)
    if (left @ right != (2**24 - 1) * (2**18 + 1) * _LONG).any():
        raise UnsafeArithmetic("the float64 matrix product of integers is not exact with this BLAS library")
