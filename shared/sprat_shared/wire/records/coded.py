"""Kind 6, coded: a frame of coded distances gives the exact bits of a float tensor."""

from dataclasses import dataclass
from typing import ClassVar, Self

from sprat_shared.errors import InvalidInput
from sprat_shared.wire.exact import EXPONENT_BITS, decode_exact
from sprat_shared.wire.records.stream import RecordReader, RecordWriter
from sprat_shared.wire.tensors import Array, TensorSpec


@dataclass(frozen=True, slots=True, eq=False)
class Coded:
    """Tensor `index` gets exactly the bits that `frame` gives from its bits so far (`wire.exact`)."""

    KIND: ClassVar[int] = 6
    CLOSES: ClassVar[bool] = True

    index: int
    frame: bytes | memoryview

    def check(self, spec: TensorSpec) -> None:
        """Raise InvalidInput unless it fits the tensor."""
        _check_values(spec)

    def write(self, out: RecordWriter) -> None:
        """Put what follows the kind."""
        out.put_frame(self.frame)

    @classmethod
    def read(cls, index: int, spec: TensorSpec, source: RecordReader) -> Self:
        """Take what `write` put; raise InvalidInput where it does not fit the tensor."""
        _check_values(spec)
        return cls(index, source.take_frame())

    def restore(self, spec: TensorSpec, old: Array) -> Array:
        """Return the new tensor; raise MalformedUpdate where the frame gives none."""
        return decode_exact(spec, old, self.frame)


def _check_values(spec: TensorSpec) -> None:
    if not spec.size or spec.dtype not in EXPONENT_BITS:
        raise InvalidInput(f"tensor {spec.name!r}: a coded record is for floats, this holds {spec.size} {spec.dtype}")
