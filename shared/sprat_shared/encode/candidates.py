"""Ways to say one tensor's change: low rank, dense, one after the other, exactly, or not at all; with bytes and error.

Nothing is written or rebuilt to judge a way: bytes are the length of the adaptive code (`encode.cost`), the error of a
low rank follows from products of its factors, and of large tensors the dense part is judged by a sample.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sprat_shared.apply import rebuild_tensor
from sprat_shared.apply.arithmetic import widen
from sprat_shared.encode.cost import run_bits
from sprat_shared.encode.exact import exact_bytes, exact_record
from sprat_shared.encode.svd import Spectrum, truncated_svd
from sprat_shared.wire.records import Dense, Edit, LowRank
from sprat_shared.wire.scales import STEPS, nearest_scale
from sprat_shared.wire.tensors import REBUILDABLE, Array, TensorSpec

_RECORD_BYTES: Final = 2.5  # gap, kind, rank and scale, about
_RANKS: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
_FACTORS: Final = (0.2, 6.0)  # root mean square of the weakest direction's integers: coarsest and finest grid
_LARGE: Final = 1 << 16  # values above which a sample judges
_ROWS: Final = 512  # of that sample
_BY: Final = 4  # scales from one grid to the next: eight are a factor of two
_DEAD_ZONES: Final = (0.0, 0.2)  # how much further than half a step a value must be from zero not to become zero
_FINEST: Final = 1 / 256  # in root mean squares of the change: from there on the exact way is at hand
_COARSEST: Final = 8.0
_STARTS: Final = 3  # low ranks that a dense record may follow
_LARGEST: Final = 127  # magnitude of a factor
_SEED: Final = 20240616
Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """One way to say a tensor's change.

    Attributes:
        bytes: estimated cost in the file.
        squared_error: estimated sum of squares of what is missed, times the tensor's weight.
        records: makes the records for the file; () leaves the tensor as it is.
    """

    bytes: float
    squared_error: float
    records: Callable[[], tuple[Edit, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """A tensor before and after; `weight` is what a unit of its squared error counts."""

    index: int
    spec: TensorSpec
    old: Array
    new: Array
    weight: float = 1.0

    def delta(self) -> Floats:
        """Return the difference, for F32, F16 and BF16."""
        return widen(self.new, self.spec.dtype) - widen(self.old, self.spec.dtype)

    def missed(self, rebuilt: Array) -> tuple[float, float]:
        """Return the weighted squared error and the largest absolute error."""
        off = widen(self.new, self.spec.dtype) - widen(rebuilt, self.spec.dtype)
        return self.weight * squares(off), float(np.abs(off).max(initial=0))

    def usable(self, rebuilt: Array) -> bool:
        """Return whether no value is infinite, nor below or at zero where all should be positive.

        A variance that an approximation makes negative turns a network's answers into noise, however small the error.
        """
        if self.spec.dtype not in REBUILDABLE:
            return True
        values = widen(rebuilt, self.spec.dtype)
        return bool(np.isfinite(values).all()) and not (self.positive() and (values <= 0).any())

    def positive(self) -> bool:
        """Return whether all values are positive after, and none was negative before; what is new begins as zero."""
        old, new = (widen(side, self.spec.dtype) for side in (self.old, self.new))
        return bool((new > 0).all() and (old >= 0).all())

    def rebuilt(self, records: tuple[Edit, ...]) -> Array:
        """Return the tensor that records make."""
        return rebuild_tensor(self.old, self.spec, records)


@dataclass(frozen=True, slots=True, eq=False)
class Options:
    """What one tensor has to offer.

    Attributes:
        change: the tensor.
        ways: in no order; the first leaves the tensor as it is, the last is exact.
        spectrum: of the change's matrix, where it is one.
    """

    change: Change
    ways: tuple[Candidate, ...]
    spectrum: Spectrum | None = None


def lossless_only(change: Change) -> Options:
    """Return the exact way alone."""
    return Options(change, (_lossless(change),))


def _lossless(change: Change) -> Candidate:

    def records() -> tuple[Edit, ...]:
        return (exact_record(change.index, change.spec, change.old, change.new),)

    return Candidate(exact_bytes(change.spec, change.old, change.new) + _RECORD_BYTES, 0.0, records)


def ways_to_say(change: Change) -> Options:
    """Return every way to say the change that keeps the tensor usable as far as that is known.

    Cost: one truncated SVD (`encode.svd`), and for each of some dozens of grids a product of the factors with the
    singular vectors, or a pass over a sample of at most 2**16 values.
    """
    if change.spec.dtype not in REBUILDABLE:
        return lossless_only(change)
    delta, spectrum = change.delta(), None
    ways = [Candidate(0.0, change.weight * squares(delta), tuple)]
    low_ranks: list[_LowRankWay] = []
    if change.spec.matrix is not None and min(change.spec.matrix) > 1 and delta.any():
        spectrum = truncated_svd(delta.reshape(change.spec.matrix))
        low_ranks = list(_low_ranks(change, spectrum))
        ways += [Candidate(way.bytes, change.weight * way.error, way.records) for way in low_ranks]
    ways += _dense(change, delta, None)
    for way in _spread(low_ranks):
        ways += _dense(change, delta, way)
    if change.spec.size <= _LARGE and change.positive():
        ways = [way for way in ways if change.usable(change.rebuilt(way.records()))]
    return Options(change, (*ways, _lossless(change)), spectrum)


@dataclass(frozen=True, slots=True, eq=False)
class _LowRankWay:
    """Factors on a grid, and what they cost and miss (unweighted). Factors are made again when they are needed."""

    index: int
    spectrum: Spectrum
    rank: int
    scale: int
    dead: float
    bytes: float
    error: float

    def record(self) -> LowRank:
        return LowRank(self.index, self.scale, *_factors(self.spectrum, self.rank, self.scale, self.dead))

    def records(self) -> tuple[Edit, ...]:
        return (self.record(),)


def _low_ranks(change: Change, spectrum: Spectrum) -> Iterator[_LowRankWay]:
    """Yield ways of several ranks, on grids on which the weakest direction of a rank is worth its bytes."""
    m, n = len(spectrum.u), spectrum.v.shape[1]
    for rank in (r for r in _RANKS if r <= spectrum.values.size and spectrum.values[r - 1] > 0):
        weakest = float(spectrum.values[rank - 1]) / (m * n) ** 0.5  # of the product's entries, root mean square
        for scale in range(nearest_scale(weakest / _FACTORS[0] ** 2), nearest_scale(weakest / _FACTORS[1] ** 2), -_BY):
            for dead in _DEAD_ZONES if change.spec.size <= _LARGE else _DEAD_ZONES[:1]:
                u, v = _factors(spectrum, rank, scale, dead)
                if u.size and max(np.abs(u).max(), np.abs(v).max()) < _LARGEST:
                    cost = (_sampled_bits(u) + _sampled_bits(v.T)) / 8 + _RECORD_BYTES
                    error = _error(spectrum, u, v, float(STEPS[scale]))
                    yield _LowRankWay(change.index, spectrum, rank, scale, dead, cost, error)


def _sampled_bits(factor: Integers) -> float:
    """Return the bits of a factor, of long ones judged by every so many-th row."""
    every = max(1, factor.size // _LARGE)
    return run_bits(factor[::every]) * len(factor) / len(factor[::every])


def _factors(
    spectrum: Spectrum, rank: int, scale: int, dead: float
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int8]]:
    """Return U (m, r) and V (r, n) on a grid, without the directions of which nothing is left.

    Both have the square root of the singular value: then the last bit of either side's integers, of which the longer
    side has more, buys as much error for each integer.
    """
    size = np.sqrt(spectrum.values[:rank] / float(STEPS[scale])).astype(np.float32)
    q_u, q_v = _rounded(spectrum.u[:, :rank] * size, dead), _rounded(size[:, None] * spectrum.v[:rank], dead)
    kept = q_u.any(axis=0) & q_v.any(axis=1)
    u, v = (part.clip(-_LARGEST, _LARGEST).astype(np.int8) for part in (q_u[:, kept], q_v[kept]))
    return u, v


def _error(spectrum: Spectrum, q_u: Integers, q_v: Integers, step: float) -> float:
    """Return ||delta - step * q_u @ q_v||**2 without the product: by way of the singular vectors.

    What rounding noise has in common with the directions that were cut off is left out; it is next to nothing.
    """
    u, v = q_u.astype(np.float32), q_v.astype(np.float32)
    cross = ((spectrum.u.T @ u) * spectrum.values[:, None].astype(np.float32) * (spectrum.v @ v.T)).sum()
    own = ((u.T @ u).astype(np.float64) * (v @ v.T)).sum()
    return max(0.0, spectrum.total - 2 * step * float(cross) + step * step * float(own))


def _spread(ways: list[_LowRankWay]) -> list[_LowRankWay]:
    """Return a few of the ways, from few bytes to many, of those that leave an eighth less than there was."""
    best, useful = float("inf"), list[_LowRankWay]()
    for way in sorted(ways, key=lambda way: way.bytes):
        if way.error < 0.875 * best and way.error < 0.875 * way.spectrum.total:
            best = way.error
            useful.append(way)
    return useful[:: max(1, len(useful) // _STARTS)][:_STARTS]


def _dense(change: Change, delta: Floats, start: _LowRankWay | None) -> Iterator[Candidate]:
    """Yield dense records on several grids, for the change or for what a low rank leaves of it."""
    sample = _sample(delta, change.spec, start)
    share = delta.size / max(1, sample.size)
    rms = float(np.sqrt(squares(sample) / max(1, sample.size)))
    if not rms > 0:
        return
    for scale in range(nearest_scale(_COARSEST * rms), max(0, nearest_scale(_FINEST * rms) - _BY), -_BY):
        step = np.float32(STEPS[scale])
        for dead in _DEAD_ZONES:
            q = _rounded(sample / step, dead)
            if not q.any() or np.abs(q).max() >= 1 << 24:
                continue
            cost = share * run_bits(q) / 8 + _RECORD_BYTES + (0.0 if start is None else start.bytes)
            error = change.weight * share * squares(sample - q * step)
            yield Candidate(cost, error, partial(_with_dense, change, start, scale, dead))


def _with_dense(change: Change, start: _LowRankWay | None, scale: int, dead: float) -> tuple[Edit, ...]:
    first = () if start is None else start.records()
    left = widen(change.new, change.spec.dtype) - widen(change.rebuilt(first), change.spec.dtype)
    q = _rounded(left.reshape(-1) / STEPS[scale], dead).astype(np.int32)
    return (*first, Dense(change.index, scale, q))


def _sample(delta: Floats, spec: TensorSpec, start: _LowRankWay | None) -> Floats:
    """Return what a low rank leaves, of some rows and columns where the tensor is large."""
    if spec.matrix is None:
        return delta.reshape(-1)[:: max(1, spec.size // _LARGE)]
    m, n = spec.matrix
    draw = np.random.default_rng(_SEED)
    rows, columns = np.arange(m), np.arange(n)
    if spec.size > _LARGE:
        most = (_ROWS, _LARGE // min(m, _ROWS))
        rows, columns = (np.sort(draw.permutation(side)[:k]) for side, k in zip((rows, columns), most, strict=True))
    part: Floats = delta.reshape(m, n)[np.ix_(rows, columns)]
    if start is not None:
        u, v = _factors(start.spectrum, start.rank, start.scale, start.dead)
        part = part - u[rows].astype(np.float32) @ v[:, columns].astype(np.float32) * STEPS[start.scale]
    return part


def _rounded(values: Floats, dead: float) -> Floats:
    """Return the nearest integers, zero reaching further by `dead`."""
    if not dead:
        return np.rint(values)
    return np.where(np.abs(values) < 0.5 + dead, np.float32(0), np.rint(values))


def squares(values: npt.NDArray[Any]) -> float:
    """Return the sum of squares in double precision."""
    flat = values.reshape(-1)
    return float(sum(np.square(flat[at : at + _LARGE], dtype=np.float64).sum() for at in range(0, flat.size, _LARGE)))
