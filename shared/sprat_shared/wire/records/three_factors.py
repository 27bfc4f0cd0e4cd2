"""Kind 4, three factors: a core between two sides, which may be drawn or left out (Tucker-2 of a convolution)."""

from dataclasses import dataclass
from math import prod
from typing import ClassVar, Final, Self

import numpy as np
import numpy.typing as npt

from sprat_shared.errors import InvalidInput
from sprat_shared.wire.drawn import Use, drawn_matrix
from sprat_shared.wire.integers import Family
from sprat_shared.wire.records.stream import RecordReader, RecordWriter, check_rebuildable, check_scale
from sprat_shared.wire.tensors import TensorSpec

_SENT, _DRAWN, _IDENTITY = 0, 1, 2
_MOST: Final = 1 << 38  # times 2**15, a core's integers: no sum exceeds 2**53
_LARGEST: Final = 127  # of a factor that is sent
Factor = npt.NDArray[np.int8]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A side of 1 and -1 that writer and reader draw alike; a file has one seed, 0 to 2**32 - 1."""

    seed: int


@dataclass(frozen=True, slots=True)
class Identity:
    """A side that changes nothing: the core is as long as the tensor there."""


Side = Factor | Drawn | Identity


@dataclass(frozen=True, slots=True, eq=False)
class ThreeFactors:
    """Tensor `index`, as (m, n, s), changes by STEPS[scale] times the sum of u[o, a] * core[a, b, x] * v[b, i].

    s is the product of the dimensions after the second: 1 for a matrix.

    Attributes:
        u: int8 (m, r) in [-127, 127], or drawn, or the identity.
        core: int16 (r, t, s), magnitudes below 2**15.
        v: int8 (t, n) in [-127, 127], or drawn, or the identity.
    """

    KIND: ClassVar[int] = 4
    CLOSES: ClassVar[bool] = False

    index: int
    scale: int
    u: Side
    core: npt.NDArray[np.int16]
    v: Side

    def left(self, spec: TensorSpec) -> Factor | None:
        """Return u, int8 (m, r); None where it is the identity."""
        return self._factor(self.u, Use.LEFT, spec.shape[0], self.core.shape[0])

    def right(self, spec: TensorSpec) -> Factor | None:
        """Return v, int8 (t, n); None where it is the identity."""
        return self._factor(self.v, Use.RIGHT, self.core.shape[1], spec.shape[1])

    def _factor(self, side: Side, use: Use, rows: int, columns: int) -> Factor | None:
        if isinstance(side, Drawn):
            return drawn_matrix(side.seed, self.index, use, rows, columns)
        return None if isinstance(side, Identity) else side

    def check(self, spec: TensorSpec) -> None:
        """Raise InvalidInput unless it fits the tensor."""
        check_rebuildable(spec)
        check_scale(spec, self.scale)
        m, n, s = three_sides(spec)
        r, t = self.core.shape[0], self.core.shape[1]
        _check_ranks(spec, _number(self.u), _number(self.v), r, t)
        shapes = [side.shape if isinstance(side, np.ndarray) else None for side in (self.u, self.v)]
        if self.core.shape != (r, t, s) or shapes[0] not in {None, (m, r)} or shapes[1] not in {None, (t, n)}:
            raise InvalidInput(f"tensor {spec.name!r} {spec.shape}: factors {shapes}, {self.core.shape} don't fit")

    def write(self, out: RecordWriter) -> None:
        """Put what follows the kind."""
        for side in (self.u, self.v):
            out.put(Family.SIDE, [_number(side)])
        for side in (self.u, self.v):
            if isinstance(side, Drawn):
                out.put_seed(side.seed)
        for side, rank in zip((self.u, self.v), self.core.shape, strict=False):
            if not isinstance(side, Identity):
                out.put(Family.RANK, [rank])
        out.put_scale(self.scale)
        if isinstance(self.u, np.ndarray):
            out.put(Family.U, self.u)
        out.put(Family.CORE, self.core)
        if isinstance(self.v, np.ndarray):
            out.put(Family.V, self.v)

    @classmethod
    def read(cls, index: int, spec: TensorSpec, source: RecordReader) -> Self:
        """Take what `write` put; raise InvalidInput where it does not fit the tensor."""
        check_rebuildable(spec)
        m, n, s = three_sides(spec)
        left, right = source.take_one(Family.SIDE), source.take_one(Family.SIDE)
        if max(left, right) > _IDENTITY:
            raise InvalidInput(f"tensor {spec.name!r}: a side of kind {max(left, right)} is not known")
        seed = source.take_seed() if _DRAWN in {left, right} else 0
        r = m if left == _IDENTITY else source.take_one(Family.RANK)
        t = n if right == _IDENTITY else source.take_one(Family.RANK)
        _check_ranks(spec, left, right, r, t)
        scale = source.take_scale(spec)
        unsent: dict[int, Side] = {_DRAWN: Drawn(seed), _IDENTITY: Identity()}
        u = unsent[left] if left else source.take(Family.U, m * r, np.int8).reshape(m, r)
        core = source.take(Family.CORE, r * t * s, np.int16).reshape(r, t, s)
        v = unsent[right] if right else source.take(Family.V, t * n, np.int8).reshape(t, n)
        return cls(index, scale, u, core, v)


def three_sides(spec: TensorSpec) -> tuple[int, int, int]:
    """Return (m, n, s) of a tensor: its first two dimensions and the product of the others.

    Raises:
        InvalidInput: it has fewer than two dimensions, or no values.
    """
    if len(spec.shape) < 2 or not spec.size:  # noqa: PLR2004  # a matrix, or more
        raise InvalidInput(f"tensor {spec.name!r} {spec.shape}: three factors need two dimensions and values")
    return spec.shape[0], spec.shape[1], prod(spec.shape[2:])


def _number(side: Side) -> int:
    return _DRAWN if isinstance(side, Drawn) else _IDENTITY if isinstance(side, Identity) else _SENT


def _check_ranks(spec: TensorSpec, left: int, right: int, r: int, t: int) -> None:
    m, n, s = three_sides(spec)
    counts = 1
    for side, rank, own, others in ((left, r, m, n * s), (right, t, n, m * s)):
        if not 0 < rank <= own or (rank > others and side != _IDENTITY) or (rank < own and side == _IDENTITY):
            raise InvalidInput(f"tensor {spec.name!r}: ranks {r} and {t} are impossible for shape {spec.shape}")
        counts *= {_SENT: _LARGEST * rank, _DRAWN: rank, _IDENTITY: 1}[side]
    if counts > _MOST:
        raise InvalidInput(f"tensor {spec.name!r}: ranks {r} and {t} are too large to be summed exactly")
