"""Kind 0, low rank: two factors of a matrix view."""

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from sprat_shared.errors import InvalidInput
from sprat_shared.wire.integers import Family
from sprat_shared.wire.records.stream import RecordReader, RecordWriter, check_rebuildable, check_scale
from sprat_shared.wire.tensors import TensorSpec


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """Tensor `index` changes by (u @ v) * STEPS[scale] in its matrix view (m, n).

    Attributes:
        u: int8 (m, r) in [-127, 127].
        v: int8 (r, n) in [-127, 127].
    """

    KIND: ClassVar[int] = 0
    CLOSES: ClassVar[bool] = False

    index: int
    scale: int
    u: npt.NDArray[np.int8]
    v: npt.NDArray[np.int8]

    def check(self, spec: TensorSpec) -> None:
        """Raise InvalidInput unless it fits the tensor."""
        check_rebuildable(spec)
        check_scale(spec, self.scale)
        (m, n), r = spec.matrix or (0, 0), self.u.shape[1]
        _check_rank(spec, r)
        if self.u.shape != (m, r) or self.v.shape != (r, n):
            raise InvalidInput(f"tensor {spec.name!r} {spec.shape}: factors {self.u.shape}, {self.v.shape} don't fit")

    def write(self, out: RecordWriter) -> None:
        """Put what follows the kind."""
        out.put(Family.RANK, [self.u.shape[1]])
        out.put_scale(self.scale)
        out.put(Family.U, self.u)
        out.put(Family.V, self.v)

    @classmethod
    def read(cls, index: int, spec: TensorSpec, source: RecordReader) -> Self:
        """Take what `write` put; raise InvalidInput where it does not fit the tensor."""
        check_rebuildable(spec)
        m, n = spec.matrix or (0, 0)
        rank = source.take_one(Family.RANK)
        _check_rank(spec, rank)
        scale = source.take_scale(spec)
        u, v = source.take(Family.U, m * rank, np.int8), source.take(Family.V, rank * n, np.int8)
        return cls(index, scale, u.reshape(m, rank), v.reshape(rank, n))


def _check_rank(spec: TensorSpec, rank: int) -> None:
    if not 0 < rank <= min(spec.matrix or (0, 0)):
        raise InvalidInput(f"tensor {spec.name!r}: rank {rank} is impossible for shape {spec.shape}")
