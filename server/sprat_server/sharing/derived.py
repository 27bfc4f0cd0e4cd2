"""A derived release: a graph put together from parts of others, and which tensor of its table comes from where.

On a device a tensor that comes from another model is a second name for a file that is there already.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import onnx

from sprat_server.sharing.releases import Release, fill, point_at, tensor_index
from sprat_shared.wire.tensors import Array, ArrayTensors

DONOR_PREFIX = "donor/"
MAP_PREFIX = "map/"


class From(StrEnum):
    """Where a tensor of a derived release comes from."""

    DONOR = "donor"
    RECIPIENT = "recipient"
    NEW = "new"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a tensor comes from, and its name there; a new one has its name in the derived release."""

    side: From
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Derived:
    """A graph and its tensors.

    Attributes:
        graph: ONNX bytes without weights; initialisers point at `t/<index>`.
        tensors: all that it reads, by the names of its initialisers.
        origins: tensor -> where it comes from.
    """

    graph: bytes
    tensors: ArrayTensors
    origins: Mapping[str, Origin]

    @property
    def new_bytes(self) -> int:
        """Return the bytes of tensors that neither model has."""
        return self._bytes(From.NEW)

    @property
    def own_bytes(self) -> int:
        """Return the bytes of tensors that only the recipient has, and new ones: what it costs beside its donor."""
        return self.new_bytes + self._bytes(From.RECIPIENT)

    def _bytes(self, side: From) -> int:
        return sum(spec.nbytes for spec in self.tensors.table if self.origins[spec.name].side is side)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A tensor of a derived release before it has an index: its code, its bits, and where it comes from."""

    code: str
    array: Array
    origin: Origin


def new_part(name: str, array: Array) -> Part:
    """Return a new float32 tensor."""
    return Part("F32", np.ascontiguousarray(array, np.float32), Origin(From.NEW, name))


def part_of(release: Release, initialiser: str, side: From) -> Part:
    """Return the tensor behind an initialiser of a release, in its own bits; one that was changed is new."""
    spec = release.spec(initialiser)
    origin = Origin(From.NEW, initialiser) if initialiser in release.changed else Origin(side, spec.name)
    return Part(spec.dtype, release.tensors.read(release.bound[initialiser]), origin)


def derive(model: onnx.ModelProto, parts: Mapping[str, Part]) -> Derived:
    """Return a derived release of a model whose initialisers are parts, by name, or constants of the graph.

    Args:
        model: is changed: parts' initialisers are pointed at their files.
        parts: initialiser -> tensor.
    """
    tensors = ArrayTensors({name: (part.code, part.array) for name, part in parts.items()})
    for initialiser in model.graph.initializer:
        if initialiser.name in parts:
            point_at(initialiser, tensors.table.index_of(initialiser.name))
    origins = {name: part.origin for name, part in parts.items()}
    return Derived(model.SerializeToString(deterministic=True), tensors, origins)


def initialisers_of(release: Release, renamed: Callable[[str], str]) -> Mapping[str, Any]:
    """Return a model's initialisers by new name, empty of weights: what is a tensor gets its data later."""
    found = {}
    for initialiser in release.model.graph.initializer:
        copied = onnx.TensorProto()
        copied.CopyFrom(initialiser)
        copied.name = renamed(initialiser.name)
        found[copied.name] = copied
    return found


def placeholder(name: str, array: Array) -> Any:
    """Return an initialiser for a new tensor."""
    made = onnx.TensorProto(name=name)
    fill(made, array)
    return made


def is_tensor(initialiser: Any) -> bool:
    """Say whether an initialiser is a tensor of a release rather than a constant."""
    return tensor_index(initialiser) is not None
