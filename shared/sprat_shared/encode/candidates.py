"""Ways to say one tensor's change: low rank or dense on several grids, exactly, or not at all; with bytes and error."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from sprat_shared.apply import rebuild_tensor
from sprat_shared.apply.arithmetic import widen
from sprat_shared.wire.planes import encode_planes
from sprat_shared.wire.records import Dense, Lossless, LowRank, Record
from sprat_shared.wire.scales import STEPS, nearest_scale
from sprat_shared.wire.tensors import REBUILDABLE, Array, TensorSpec

_RANKS: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
_MAX_RANK: Final = _RANKS[-1]
_GRIDS: Final = (1.5, 3.0, 7.0, 20.0, 60.0, 127.0)  # largest integer of a factor
_DENSE_STEPS: Final = (4.0, 2.0, 1.0, 0.5, 0.25, 1 / 16, 1 / 256, 1 / 4096)  # in root mean squares of the change
_EXACT_SVD: Final = 256  # up to here the whole decomposition costs less than a randomised one
_OVERSAMPLE: Final = 8
_RECORD_BYTES: Final = 3.0  # gap, kind, rank and scale, about
_SEED: Final = 20240616
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """One way to say a tensor's change.

    Attributes:
        records: for the file; () leaves the tensor as it is.
        bytes: estimated cost in the file, from the entropy of the integers.
        squared_error: sum of squares of what is missed, in units of the new tensor's mean square.
        max_error: largest absolute difference to the new tensor.
    """

    records: tuple[Record, ...]
    bytes: float
    squared_error: float
    max_error: float


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """A tensor before and after; `mean_square` makes errors of different tensors comparable."""

    index: int
    spec: TensorSpec
    old: Array
    new: Array
    mean_square: float = field(default=1.0)

    def missed(self, rebuilt: Array) -> tuple[float, float]:
        """Return squared error, in mean squares of the new tensor, and the largest absolute error."""
        off = widen(self.new, self.spec.dtype) - widen(rebuilt, self.spec.dtype)
        return float(np.square(off, dtype=np.float64).sum()) / self.mean_square, float(np.abs(off).max(initial=0))


def lossless(change: Change, level: int = 19) -> Candidate:
    """Return the exact way."""
    frame = encode_planes(change.spec, change.old, change.new, level=level)
    return Candidate((Lossless(change.index, frame),), len(frame) + _RECORD_BYTES, 0.0, 0.0)


def candidates(change: Change) -> Iterator[Candidate]:
    """Yield every way to say the change that keeps the tensor usable. F32, F16 and BF16 only.

    Usable is finite, and positive where it was positive before and after, or is and began as zero: a variance that an
    approximation makes negative turns a network's answers into noise, however small the error.

    Cost: one truncated SVD, randomised above 256 rows (Halko, Martinsson, Tropp, arXiv 0909.4061, with two power
    iterations and a fixed seed), and one rebuild for each candidate.
    """
    if change.spec.dtype not in REBUILDABLE:
        raise ValueError(f"{change.spec.dtype} has only the exact way")
    old, new = (widen(side, change.spec.dtype) for side in (change.old, change.new))
    positive = bool((new > 0).all() and (old >= 0).all())
    if _usable(old, positive=positive):
        yield Candidate((), 0.0, *change.missed(change.old))
    for record, integers in _records(change):
        rebuilt = rebuild_tensor(change.old, change.spec, [record])
        if _usable(widen(rebuilt, change.spec.dtype), positive=positive):
            yield Candidate((record,), _entropy_bytes(integers) + _RECORD_BYTES, *change.missed(rebuilt))


def _usable(values: Floats, *, positive: bool) -> bool:
    return bool(np.isfinite(values).all() and not (positive and (values <= 0).any()))


def _records(change: Change) -> Iterator[tuple[Record, list[npt.NDArray[np.signedinteger]]]]:
    delta = widen(change.new, change.spec.dtype) - widen(change.old, change.spec.dtype)
    rms = float(np.sqrt(np.square(delta, dtype=np.float64).mean()))
    for share in _DENSE_STEPS:
        scale = nearest_scale(rms * share)
        q = np.rint(delta.reshape(-1) / STEPS[scale])
        if np.abs(q).max(initial=0) < 1 << 24:
            dense = q.astype(np.int32)
            yield Dense(change.index, scale, dense), [dense]
    if change.spec.matrix is not None and min(change.spec.matrix) > 1:
        u, v = _truncated_svd(delta.reshape(change.spec.matrix))
        yield from _low_ranks(change.index, u, v)


def _low_ranks(index: int, u: Floats, v: Floats) -> Iterator[tuple[LowRank, list[npt.NDArray[np.signedinteger]]]]:
    for grid in _GRIDS:
        for rank in (r for r in _RANKS if r <= u.shape[1]):
            a, b = u[:, :rank], v[:rank]
            step_u, step_v = (float(np.abs(part).max()) / grid for part in (a, b))
            if not step_u * step_v > 0:
                return
            scale = nearest_scale(step_u * step_v)
            step_u *= float(STEPS[scale]) / (step_u * step_v)  # the table's step is the one that will be used
            q_u, q_v = (
                np.clip(np.rint(part / np.float32(step)), -127, 127).astype(np.int8)
                for part, step in ((a, step_u), (b, step_v))
            )
            yield LowRank(index, scale, q_u, q_v), [q_u, q_v]


def _truncated_svd(delta: Floats) -> tuple[Floats, Floats]:
    """Return u (m, r) and v (r, n), each carrying the square roots of the singular values; r is at most 128."""
    if min(delta.shape) <= _EXACT_SVD:
        u, s, v = np.linalg.svd(delta, full_matrices=False)
    else:
        width = min(_MAX_RANK + _OVERSAMPLE, *delta.shape)
        sketch = delta @ np.random.default_rng(_SEED).standard_normal((delta.shape[1], width), dtype=np.float32)
        for _ in range(2):
            sketch = delta @ (delta.T @ np.linalg.qr(sketch)[0])
        basis = np.linalg.qr(sketch)[0]
        inner, s, v = np.linalg.svd(basis.T @ delta, full_matrices=False)
        u = basis @ inner
    root = np.sqrt(s[:_MAX_RANK]).astype(np.float32)
    return u[:, : root.size] * root, root[:, None] * v[: root.size]


def _entropy_bytes(parts: list[npt.NDArray[np.signedinteger]]) -> float:
    bits = 0.0
    for part in parts:
        _, counts = np.unique(part, return_counts=True)
        bits += float(counts @ np.log2(counts.sum() / counts)) + 2.0 * counts.size  # and what learning the odds costs
    return bits / 8
