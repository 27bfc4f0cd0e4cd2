"""What the exact kinds have in common: a frame of its own gives every bit of a tensor, as its last record."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Self

from sprat_shared.wire.records.stream import RecordReader, RecordWriter
from sprat_shared.wire.tensors import Array, TensorSpec


@dataclass(frozen=True, slots=True, eq=False)
class Framed(ABC):
    """Tensor `index` gets exactly the bits that `frame` gives from its bits so far."""

    CLOSES: ClassVar[bool] = True

    index: int
    frame: bytes | memoryview

    def check(self, spec: TensorSpec) -> None:
        """Raise InvalidInput unless it fits the tensor."""
        self.check_values(spec)

    def write(self, out: RecordWriter) -> None:
        """Put what follows the kind."""
        out.put_frame(self.frame)

    @classmethod
    def read(cls, index: int, spec: TensorSpec, source: RecordReader) -> Self:
        """Take what `write` put; raise InvalidInput where it does not fit the tensor."""
        cls.check_values(spec)
        return cls(index, source.take_frame())

    @staticmethod
    @abstractmethod
    def check_values(spec: TensorSpec) -> None:
        """Raise InvalidInput where the kind is not for such a tensor."""

    @abstractmethod
    def restore(self, spec: TensorSpec, old: Array) -> Array:
        """Return the new tensor; raise MalformedUpdate where the frame gives none."""
