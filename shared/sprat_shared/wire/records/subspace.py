"""Kind 5, subspace: every value takes one of a few coefficients, or its negative, by lot."""

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from sprat_shared.errors import InvalidInput
from sprat_shared.wire.records.stream import RecordReader, RecordWriter, check_rebuildable, check_scale
from sprat_shared.wire.tensors import TensorSpec


@dataclass(frozen=True, slots=True, eq=False)
class Subspace:
    """Tensor `index` changes by STEPS[scale] times one coefficient, or its negative, at each value (`wire.drawn`).

    Attributes:
        seed: 0 to 2**32 - 1; one for the file.
        q: the coefficients, int16 (count,), magnitudes below 2**15, at most 2**20; the same in all records of a file.
    """

    KIND: ClassVar[int] = 5
    CLOSES: ClassVar[bool] = False

    index: int
    scale: int
    seed: int
    q: npt.NDArray[np.int16]

    def check(self, spec: TensorSpec) -> None:
        """Raise InvalidInput unless it fits the tensor."""
        check_rebuildable(spec)
        check_scale(spec, self.scale)
        if self.q.ndim != 1:
            raise InvalidInput(f"tensor {spec.name!r}: coefficients of shape {self.q.shape}; they are a vector")

    def write(self, out: RecordWriter) -> None:
        """Put what follows the kind."""
        out.put_seed(self.seed)
        out.put_coefficients(self.q)
        out.put_scale(self.scale)

    @classmethod
    def read(cls, index: int, spec: TensorSpec, source: RecordReader) -> Self:
        """Take what `write` put; raise InvalidInput where it does not fit the tensor."""
        check_rebuildable(spec)
        seed, q = source.take_seed(), source.take_coefficients()
        return cls(index, source.take_scale(spec), seed, q)
