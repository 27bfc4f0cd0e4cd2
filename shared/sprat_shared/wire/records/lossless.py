"""Kind 2, lossless: a frame of byte planes gives the exact bits."""

from dataclasses import dataclass
from typing import ClassVar

from sprat_shared.errors import InvalidInput
from sprat_shared.wire.planes import decode_planes
from sprat_shared.wire.records.framed import Framed
from sprat_shared.wire.tensors import Array, TensorSpec


@dataclass(frozen=True, slots=True, eq=False)
class Lossless(Framed):
    """Its frame is one of `wire.planes`."""

    KIND: ClassVar[int] = 2

    @staticmethod
    def check_values(spec: TensorSpec) -> None:
        """Raise InvalidInput where the tensor has no values."""
        if not spec.size:
            raise InvalidInput(f"tensor {spec.name!r} has no values that a record could change")

    def restore(self, spec: TensorSpec, old: Array) -> Array:
        """Return the new tensor; raise MalformedUpdate where the frame gives none."""
        return decode_planes(spec, old, self.frame)
