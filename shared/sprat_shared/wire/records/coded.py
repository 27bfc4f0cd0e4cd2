"""Kind 6, coded: a frame of coded distances gives the exact bits of a float tensor."""

from dataclasses import dataclass
from typing import ClassVar

from sprat_shared.errors import InvalidInput
from sprat_shared.wire.exact import EXPONENT_BITS, decode_exact
from sprat_shared.wire.records.framed import Framed
from sprat_shared.wire.tensors import Array, TensorSpec


@dataclass(frozen=True, slots=True, eq=False)
class Coded(Framed):
    """Its frame is one of `wire.exact`."""

    KIND: ClassVar[int] = 6

    @staticmethod
    def check_values(spec: TensorSpec) -> None:
        """Raise InvalidInput unless the tensor holds floats."""
        if not spec.size or spec.dtype not in EXPONENT_BITS:
            raise InvalidInput(
                f"tensor {spec.name!r}: a coded record is for floats, this holds {spec.size} {spec.dtype}"
            )

    def restore(self, spec: TensorSpec, old: Array) -> Array:
        """Return the new tensor; raise MalformedUpdate where the frame gives none."""
        return decode_exact(spec, old, self.frame)
