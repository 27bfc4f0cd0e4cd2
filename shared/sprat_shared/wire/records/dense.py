"""Kind 1, quantised dense: one integer for each value."""

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from sprat_shared.errors import InvalidInput
from sprat_shared.wire.integers import Family
from sprat_shared.wire.records.stream import RecordReader, RecordWriter, check_rebuildable, check_scale
from sprat_shared.wire.tensors import TensorSpec


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """Tensor `index` changes by q * STEPS[scale].

    Attributes:
        q: int32 (size,), row-major, magnitudes below 2**24.
    """

    KIND: ClassVar[int] = 1
    CLOSES: ClassVar[bool] = False

    index: int
    scale: int
    q: npt.NDArray[np.int32]

    def check(self, spec: TensorSpec) -> None:
        """Raise InvalidInput unless it fits the tensor."""
        check_rebuildable(spec)
        check_scale(spec, self.scale)
        if self.q.size != spec.size:
            raise InvalidInput(f"tensor {spec.name!r} has {spec.size} values, the record {self.q.size}")

    def write(self, out: RecordWriter) -> None:
        """Put what follows the kind."""
        out.put_scale(self.scale)
        out.put(Family.DENSE, self.q)

    @classmethod
    def read(cls, index: int, spec: TensorSpec, source: RecordReader) -> Self:
        """Take what `write` put; raise InvalidInput where it does not fit the tensor."""
        check_rebuildable(spec)
        scale = source.take_scale(spec)
        return cls(index, scale, source.take(Family.DENSE, spec.size, np.int32))
