"""Kind 2, lossless: a frame of byte planes gives the exact bits."""

from dataclasses import dataclass
from typing import ClassVar, Self

from sprat_shared.errors import InvalidInput
from sprat_shared.wire.planes import decode_planes
from sprat_shared.wire.records.stream import RecordReader, RecordWriter
from sprat_shared.wire.tensors import Array, TensorSpec


@dataclass(frozen=True, slots=True, eq=False)
class Lossless:
    """Tensor `index` gets exactly the bits that `frame` gives from its bits so far (`wire.planes`)."""

    KIND: ClassVar[int] = 2
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
        return decode_planes(spec, old, self.frame)


def _check_values(spec: TensorSpec) -> None:
    if not spec.size:
        raise InvalidInput(f"tensor {spec.name!r} has no values that a record could change")
