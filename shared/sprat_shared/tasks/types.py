"""Types of what flows along the edges of a task: dtype and shape, written as `float32[n, 3, 224, 224]`.

A dimension is a number, or a name for any number: the same name within one task, or one module, is the same number.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Final, TypeAlias

from sprat_shared.errors import InvalidInput

CODE: Final = "task.invalid"
ITEM_BYTES: Final[Mapping[str, int]] = {
    **dict.fromkeys(("bool", "int8", "uint8"), 1),
    **dict.fromkeys(("float16", "int16", "uint16"), 2),
    **dict.fromkeys(("float32", "int32", "uint32"), 4),
    **dict.fromkeys(("float64", "int64", "uint64"), 8),
}
"""Bytes of one value, by dtype as numpy names it."""
MOST_DIMENSIONS: Final = 8
_TYPE: Final = re.compile(r"\s*([a-z0-9]+)\s*\[([^\[\]]*)\]\s*")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,62}")
_ILL: Final = re.compile(r"[^A-Za-z0-9_.]")

Dimension: TypeAlias = int | str


@dataclass(frozen=True, slots=True)
class TensorType:
    """Dtype and shape of a tensor.

    Attributes:
        dtype: as numpy names it, one of `ITEM_BYTES`.
        shape: one entry for each axis: its length, or the name of a length that is free.
    """

    dtype: str
    shape: tuple[Dimension, ...] = ()

    def __post_init__(self) -> None:
        if self.dtype not in ITEM_BYTES:
            raise InvalidInput(f"dtype {self.dtype!r:.40} is not one of {', '.join(ITEM_BYTES)}", code=CODE)
        if len(self.shape) > MOST_DIMENSIONS:
            raise InvalidInput(f"{self}: a tensor has at most {MOST_DIMENSIONS} dimensions", code=CODE)
        for dimension in self.shape:
            good = _NAME.fullmatch(dimension) if isinstance(dimension, str) else 0 <= dimension < 1 << 40
            if not good:
                raise InvalidInput(f"{self}: {dimension!r:.80} is neither a length nor the name of one", code=CODE)

    @classmethod
    def parse(cls, text: str) -> "TensorType":
        """Read `float32[n, 3]`; `float32[]` is a single number.

        Raises:
            InvalidInput: the text has another form.
        """
        found = _TYPE.fullmatch(text)
        if found is None:
            raise InvalidInput(f"{text!r:.100} is no type; write it as float32[n, 3, 224, 224]", code=CODE)
        said = [one.strip() for one in found[2].split(",")] if found[2].strip() else []
        return cls(found[1], tuple(int(one) if one.isdecimal() else one for one in said))

    def __str__(self) -> str:
        """Return the text that `parse` reads."""
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"

    def nbytes(self, sizes: Mapping[str, int] | None = None) -> int:
        """Return the bytes of its values, free lengths by name; those that are left out count as 1."""
        lengths = (one if isinstance(one, int) else (sizes or {}).get(one, 1) for one in self.shape)
        return ITEM_BYTES[self.dtype] * prod(lengths)

    def takes(self, given: "TensorType", bound: dict[str, Dimension]) -> bool:
        """Return whether a port of this type takes what is given; its free lengths are bound, or held to what they are.

        Args:
            given: what flows in.
            bound: lengths of this side by name; those that this call finds are added.
        """
        if self.dtype != given.dtype or len(self.shape) != len(given.shape):
            return False
        for wanted, have in zip(self.shape, given.shape, strict=True):
            if isinstance(wanted, int):
                if wanted != have:
                    return False
            elif bound.setdefault(wanted, have) != have:
                return False
        return True

    def within(self, bound: Mapping[str, Dimension], scope: str) -> "TensorType":
        """Return this type with its free lengths as they were bound; those that were not become names of `scope`."""
        shape = (one if isinstance(one, int) else bound.get(one, f"{scope}.{one}"[:63]) for one in self.shape)
        return TensorType(self.dtype, tuple(shape))


def free_length(name: str | None, port: str, axis: int) -> str:
    """Return how a type names a free length of a module.

    Args:
        name: as the module's graph names it; None where it has no name.
        port: the input or output, and
        axis: the axis that it is of.
    """
    said = _ILL.sub("_", name or f"{port}.{axis}")[:62]
    return said if _NAME.fullmatch(said) else f"_{said}"


@dataclass(frozen=True, slots=True)
class Signature:
    """What a module takes and gives, by the names of its graph's inputs and outputs."""

    inputs: Mapping[str, TensorType]
    outputs: Mapping[str, TensorType]
