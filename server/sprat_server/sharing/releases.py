"""A release as sharing reads it: a graph whose initialisers are named tensors, whatever made it.

Which tensor an initialiser is stands in the graph: external data at `t/<index>` (docs/wire-format.md, section 2).
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Final

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, numpy_helper

from sprat_shared.apply.arithmetic import narrow
from sprat_shared.errors import InvalidInput
from sprat_shared.wire.tensors import Array, ArrayTensors, TensorSource, TensorSpec

_LOCATION: Final = "t/"


class NotShareable(InvalidInput):
    """A graph cannot take part in sharing, or two cannot share; the message says why."""

    code = "sharing.impossible"


class Release:
    """One release: graph and tensors.

    Args:
        name: what messages call it.
        graph: ONNX bytes whose initialisers point at `t/<index>`.
        tensors: the weights.
        changed: initialisers whose tensors are not those that were released.

    Raises:
        NotShareable: the graph is no ONNX model with one tensor as input.
    """

    def __init__(self, name: str, graph: bytes, tensors: TensorSource, changed: Collection[str] = ()) -> None:
        self.name, self.tensors, self.changed = name, tensors, frozenset(changed)
        try:
            self.model = onnx.load_model_from_string(graph)
        except (DecodeError, ValueError) as e:
            raise NotShareable(f"the graph of {name} is not an ONNX model: {e}") from e
        inside = {initialiser.name for initialiser in self.model.graph.initializer}
        inputs = [port.name for port in self.model.graph.input if port.name not in inside]
        if len(inputs) != 1:
            raise NotShareable(f"{name} has the inputs {inputs}; models that share have one")
        self.input: str = inputs[0]

    def require_takes(self, inputs: Array) -> None:
        """Return if the model takes inputs (n, ...) of this shape and dtype.

        Raises:
            NotShareable: it takes others.
        """
        port = next(port for port in self.model.graph.input if port.name == self.input)
        kind = port.type.tensor_type
        dims = [axis.dim_value for axis in kind.shape.dim][1:]
        given, dtype = inputs.shape[1:], onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        if len(dims) != len(given) or any(dim not in {0, size} for dim, size in zip(dims, given, strict=False)):
            raise NotShareable(f"{self.name} takes inputs of shape {dims}; those of the dataset are {list(given)}")
        if dtype != inputs.dtype:
            raise NotShareable(f"{self.name} takes {dtype}; those of the dataset are {inputs.dtype}")

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """Return the names of the model's outputs."""
        return tuple(port.name for port in self.model.graph.output)

    @cached_property
    def bound(self) -> Mapping[str, int]:
        """Return initialiser -> index in the tensor table."""
        return {
            initialiser.name: index
            for initialiser in self.model.graph.initializer
            if (index := tensor_index(initialiser)) is not None
        }

    def spec(self, initialiser: str) -> TensorSpec:
        """Return the table's entry of an initialiser."""
        spec: TensorSpec = self.tensors.table[self.bound[initialiser]]
        return spec

    def read(self, initialiser: str) -> Array:
        """Return a tensor as the graph reads it: bfloat16 as float32."""
        array = self.tensors.read(self.bound[initialiser])
        if self.spec(initialiser).dtype != "BF16":
            return array
        return (array.astype(np.uint32) << 16).view(np.float32)

    def with_changed(self, values: Mapping[str, Array]) -> "Release":
        """Return the release with other values in some of its tensors; those of the same bits do not count as changed.

        Args:
            values: initialiser -> float32 of the tensor's shape; rounded to the tensor's dtype.
        """
        table = self.tensors.table
        arrays = {spec.name: (spec.dtype, self.tensors.read(index)) for index, spec in enumerate(table)}
        changed = set(self.changed)
        for initialiser, wished in values.items():
            spec = self.spec(initialiser)
            array = narrow(np.ascontiguousarray(wished, np.float32), spec.dtype)
            if array.tobytes() != arrays[spec.name][1].tobytes():
                arrays[spec.name] = (spec.dtype, array)
                changed.add(initialiser)
        tensors = ArrayTensors(arrays, table.aliases)
        return Release(self.name, self.model.SerializeToString(), tensors, changed)

    def bytes_of(self, initialisers: Iterable[str]) -> int:
        """Return the bytes of the tensors behind initialisers, each once."""
        table = self.tensors.table
        return sum(table[index].nbytes for index in {self.bound[name] for name in initialisers if name in self.bound})

    @property
    def nbytes(self) -> int:
        """Return the bytes of all tensors that the graph reads."""
        return self.bytes_of(self.bound)

    def filled(self, replaced: Mapping[str, Array] | None = None) -> onnx.ModelProto:
        """Return the model with its weights inside, some of them replaced by others of the same shape.

        Args:
            replaced: initialiser -> values as the graph reads them.
        """
        replaced = replaced or {}
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        for initialiser in model.graph.initializer:
            if initialiser.name in self.bound:
                array = replaced.get(initialiser.name)
                fill(initialiser, self.read(initialiser.name) if array is None else array)
        return model


def tensor_index(initialiser: Any) -> int | None:
    """Return the index of the tensor that an initialiser is, None of a constant of the graph."""
    location = next((entry.value for entry in initialiser.external_data if entry.key == "location"), "")
    return int(location.removeprefix(_LOCATION)) if location.startswith(_LOCATION) else None


def fill(initialiser: Any, values: Array) -> None:
    """Put values into an initialiser."""
    filled: TensorProto = numpy_helper.from_array(np.ascontiguousarray(values), initialiser.name)
    initialiser.CopyFrom(filled)


def point_at(initialiser: Any, index: int) -> None:
    """Make an initialiser external data at `t/<index>`, offset 0, with its length; shape and type stay."""
    kind, dims = initialiser.data_type, list(initialiser.dims)
    pointing = TensorProto(name=initialiser.name, data_type=kind, dims=dims, data_location=TensorProto.EXTERNAL)
    width = onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize
    length = str(width * int(np.prod(dims, dtype=np.int64)))
    for key, value in (("location", f"{_LOCATION}{index}"), ("offset", "0"), ("length", length)):
        pointing.external_data.add(key=key, value=value)
    initialiser.CopyFrom(pointing)


def reads(node: Any) -> set[str]:
    """Return the names that a node reads, and those that graphs within it (If, Loop) may read."""
    inner = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return {*(name for name in node.input if name), *(n for graph in inner for part in graph.node for n in reads(part))}


def needed_for(nodes: Sequence[Any], wished: Collection[str], given: Collection[str]) -> list[Any]:
    """Return the nodes that some tensors need where others are given, in the order of the graph."""
    needed, kept = set(wished) - set(given), []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            kept.append(node)
            needed |= reads(node) - set(given)
    return kept[::-1]


def attribute(node: Any, name: str, default: Any = None) -> Any:
    """Return the value of a node's attribute, or the default where it has none of that name."""
    found = next((one for one in node.attribute if one.name == name), None)
    return default if found is None else onnx.helper.get_attribute_value(found)
