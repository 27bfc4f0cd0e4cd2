"""The exact ways: a record that gives every bit of one tensor, what it will cost, and whole releases from nothing."""

from typing import Final

import numpy as np

from sprat_shared.wire.exact import EXPONENT_BITS, encode_exact
from sprat_shared.wire.planes import encode_planes
from sprat_shared.wire.records import Coded, Exact, Lossless
from sprat_shared.wire.tensors import LOCAL_SHA256, Array, TensorSource, TensorSpec, digest_of
from sprat_shared.wire.update import encode_update

_SAMPLE: Final = 1 << 16  # values after which a tensor's bytes are known well enough
_CHUNKS: Final = 4
_CODED_FROM: Final = 1 << 12  # values: below, a frame of its own costs more than it saves
_SAVES: Final = 0.98  # decoding distances takes longer than unpacking planes; for less than this nobody should wait
_CODED_SHARE: Final = 0.95  # of the bytes of planes that coding takes, about
_THOROUGH_BELOW: Final = 4 << 20  # bytes of a tensor above which zstd's slowest level takes minutes for a percent
_SLOW_LEVEL, _FAST_LEVEL = 19, 9


def exact_record(index: int, spec: TensorSpec, old: Array, new: Array) -> Exact:
    """Return the record of tensor `index` that gives `new` from `old`, bit for bit, in the fewest bytes.

    Large tensors are judged by a sample of their values; coding takes about a second for a million of them.
    """
    if not _coded_is_smaller(spec, old, new):
        return Lossless(index, _planes(spec, old, new))
    coded = encode_exact(spec, old, new)
    if spec.size <= 2 * _SAMPLE and len(planes := _planes(spec, old, new)) * _SAVES <= len(coded):
        return Lossless(index, planes)
    return Coded(index, coded)


def exact_bytes(spec: TensorSpec, old: Array, new: Array) -> float:
    """Return about how many bytes an exact record takes, judged by a sample of the values packed as planes."""
    part, before, after = _sample(spec, old, new)
    packed = len(encode_planes(part, before, after, level=_FAST_LEVEL)) * spec.size / max(1, part.size)
    return packed * (_CODED_SHARE if spec.dtype in EXPONENT_BITS and spec.size >= _CODED_FROM else 1.0)


def encode_full(source: TensorSource, *, standalone: bool = False) -> bytes:
    """Return a full update: `source` exactly, from nothing; local tensors stay zeros.

    Args:
        source: the weights.
        standalone: the file carries the digest of its result.
    """
    records = [
        exact_record(i, spec, np.zeros(spec.shape, spec.storage), source.read(i))
        for i, spec in enumerate(source.table)
        if spec.size and source.sha256(i) != LOCAL_SHA256
    ]
    digest = digest_of(source) if standalone else None
    return encode_update(source.table, records, base_digest=None, result_digest=digest)


def _coded_is_smaller(spec: TensorSpec, old: Array, new: Array) -> bool:
    if spec.dtype not in EXPONENT_BITS or spec.size < _CODED_FROM:
        return False
    part, before, after = _sample(spec, old, new)
    return len(encode_exact(part, before, after)) < _SAVES * len(encode_planes(part, before, after, level=_FAST_LEVEL))


def _planes(spec: TensorSpec, old: Array, new: Array) -> bytes:
    return encode_planes(spec, old, new, level=_SLOW_LEVEL if spec.nbytes < _THOROUGH_BELOW else _FAST_LEVEL)


def _sample(spec: TensorSpec, old: Array, new: Array) -> tuple[TensorSpec, Array, Array]:
    """Return some runs of values of both sides, and a spec for them; small tensors whole."""
    if spec.size <= _SAMPLE:
        return TensorSpec(spec.name, spec.dtype, (spec.size,)), old.reshape(-1), new.reshape(-1)
    length = _SAMPLE // _CHUNKS
    starts = np.linspace(0, spec.size - length, _CHUNKS).astype(np.int64)
    before, after = (np.concatenate([side.reshape(-1)[at : at + length] for at in starts]) for side in (old, new))
    return TensorSpec(spec.name, spec.dtype, (_SAMPLE,)), before, after
