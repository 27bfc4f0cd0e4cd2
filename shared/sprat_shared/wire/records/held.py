"""Kind 7, held: the tensor begins as one that the device has already, of whatever model and release."""

from dataclasses import dataclass
from typing import ClassVar, Final, Self

from sprat_shared.errors import InvalidInput
from sprat_shared.wire.records.stream import RecordReader, RecordWriter
from sprat_shared.wire.tensors import TensorSpec

PREFIX_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Held:
    """Tensor `index` begins with the bytes whose SHA-256 begins with `prefix`; its first record.

    The device finds them in its store, by their length too. The prefix finds, it proves nothing: the weights digest of
    the result does.
    """

    KIND: ClassVar[int] = 7
    CLOSES: ClassVar[bool] = False

    index: int
    prefix: bytes

    def check(self, spec: TensorSpec) -> None:
        """Raise InvalidInput unless it fits the tensor."""
        if not spec.size:
            raise InvalidInput(f"tensor {spec.name!r} has no values that a record could change")
        if len(self.prefix) != PREFIX_BYTES:
            raise InvalidInput(f"tensor {spec.name!r}: {len(self.prefix)} bytes of a digest, not {PREFIX_BYTES}")

    def write(self, out: RecordWriter) -> None:
        """Put what follows the kind."""
        out.put_frame(self.prefix)

    @classmethod
    def read(cls, index: int, spec: TensorSpec, source: RecordReader) -> Self:
        """Take what `write` put; raise InvalidInput where it does not fit the tensor."""
        record = cls(index, bytes(source.take_frame()[: PREFIX_BYTES + 1]))
        record.check(spec)
        return record
