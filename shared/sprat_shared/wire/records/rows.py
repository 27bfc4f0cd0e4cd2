"""Kind 3, rows: a few rows of a matrix view, as of an embedding."""

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from sprat_shared.errors import InvalidInput
from sprat_shared.wire.integers import Family
from sprat_shared.wire.records.stream import RecordReader, RecordWriter, check_rebuildable, check_scale
from sprat_shared.wire.tensors import TensorSpec


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Some rows of tensor `index`, in its matrix view (m, n), change by q * STEPS[scale].

    Attributes:
        rows: uint32 (k,), rising; k * (n + 1) is at most m * n: more rows are cheaper dense.
        q: int32 (k, n), magnitudes below 2**24.
    """

    KIND: ClassVar[int] = 3
    CLOSES: ClassVar[bool] = False

    index: int
    scale: int
    rows: npt.NDArray[np.uint32]
    q: npt.NDArray[np.int32]

    def check(self, spec: TensorSpec) -> None:
        """Raise InvalidInput unless it fits the tensor."""
        check_rebuildable(spec)
        check_scale(spec, self.scale)
        m, n = spec.matrix or (0, 0)
        _check_count(spec, self.rows.size)
        if self.rows.dtype != np.uint32 or self.q.shape != (self.rows.size, n):
            found = f"{self.rows.size} rows ({self.rows.dtype}) of {self.q.shape}"
            raise InvalidInput(f"tensor {spec.name!r} {spec.shape}: {found} don't fit")
        if (np.diff(self.rows.astype(np.int64)) <= 0).any() or self.rows[-1] >= m:
            raise InvalidInput(f"tensor {spec.name!r}: rows must rise and be below {m}")

    def write(self, out: RecordWriter) -> None:
        """Put what follows the kind."""
        out.put(Family.COUNT, [self.rows.size])
        out.put_scale(self.scale)
        out.put(Family.ROW, np.diff(self.rows.astype(np.int64), prepend=-1) - 1)
        out.put(Family.DENSE, self.q)

    @classmethod
    def read(cls, index: int, spec: TensorSpec, source: RecordReader) -> Self:
        """Take what `write` put; raise InvalidInput where it does not fit the tensor."""
        check_rebuildable(spec)
        m, n = spec.matrix or (0, 0)
        count = source.take_one(Family.COUNT)
        _check_count(spec, count)
        scale = source.take_scale(spec)
        rows, at, last = np.empty(count, np.uint32), 0, -1
        for gaps in source.chunks(Family.ROW, count):
            part = last + np.cumsum(gaps + 1)
            last = int(part[-1])
            if last >= m:
                raise InvalidInput(f"tensor {spec.name!r}: row {last} of {m}")
            rows[at : at + part.size] = part
            at += part.size
        return cls(index, scale, rows, source.take(Family.DENSE, count * n, np.int32).reshape(count, n))


def _check_count(spec: TensorSpec, count: int) -> None:
    m, n = spec.matrix or (0, 0)
    if not 0 < count * (n + 1) <= m * n or m > 1 << 32:
        raise InvalidInput(f"tensor {spec.name!r} {spec.shape}: {count} rows are none, or cheaper dense")
