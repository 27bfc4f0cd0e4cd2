"""Graphs without weights: ONNX whose initialisers, where they are tensors of the release, are files `t/<index>`.

The rule (docs/wire-format.md has the index): an initialiser that is a tensor of the table is external data at
location `t/<index>`, offset 0, with its length; shape and other small constants stay inside. A bfloat16 tensor is
declared as float, because onnxruntime's CPU kernels refuse bfloat16; the device writes a float32 copy of it.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from sprat_shared.errors import InvalidInput
from sprat_shared.wire.tensors import TensorSpec, TensorTable

MAX_CONSTANT_BYTES: Final = 64 << 10
"""A floating-point constant above this is a weight that the weights file lacks."""

PROBE_PREFIX: Final = "probe:"
"""Outputs of the probe graph are named by this and the layer's name."""

_ONNX_TYPES: Final[Mapping[str, int]] = {
    "F32": TensorProto.FLOAT,
    "F16": TensorProto.FLOAT16,
    "BF16": TensorProto.FLOAT,
    "F64": TensorProto.DOUBLE,
    "I64": TensorProto.INT64,
    "I32": TensorProto.INT32,
    "I16": TensorProto.INT16,
    "I8": TensorProto.INT8,
    "U64": TensorProto.UINT64,
    "U32": TensorProto.UINT32,
    "U16": TensorProto.UINT16,
    "U8": TensorProto.UINT8,
    "BOOL": TensorProto.BOOL,
}
_FLOAT_CODES: Final = frozenset({"F32", "F16", "BF16", "F64"})
_FLOATS: Final = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16})


class GraphRefused(InvalidInput):
    """The graph cannot be used with these weights."""

    code = "graph.refused"


@dataclass(frozen=True, slots=True)
class Graph:
    """A graph without weights.

    Attributes:
        data: its ONNX bytes.
        bound: index in the tensor table -> name of its initialiser (empty tensors stay inside and are not bound).
    """

    data: bytes
    bound: Mapping[int, str]


def parse(data: bytes) -> onnx.ModelProto:
    """Read ONNX bytes; external data are not opened.

    Raises:
        GraphRefused: they are not an ONNX model.
    """
    try:
        model = onnx.load_model_from_string(data)
    except (DecodeError, ValueError) as e:
        raise GraphRefused(f"the graph is not an ONNX model: {e}") from e
    if not model.graph.node or not model.graph.input or not model.graph.output:
        raise GraphRefused("the graph is not an ONNX model with inputs, nodes and outputs")
    return model


def bind(model: onnx.ModelProto, table: TensorTable, unused: Collection[str] = ()) -> Graph:
    """Take the weights out of a graph and point its initialisers at `t/<index>`.

    Args:
        model: is not changed.
        table: the tensors of the release; an initialiser may also bear a tied tensor's further name.
        unused: tensors that the outputs are known not to depend on; the graph may do without them.

    Raises:
        GraphRefused: initialisers and tensors do not match by name, shape and dtype; all that do not are named.
    """
    bound_model = onnx.ModelProto()
    bound_model.CopyFrom(model)
    bound: dict[int, str] = {}
    problems: list[str] = []
    names = {spec.name for spec in table}
    for initialiser in bound_model.graph.initializer:
        name = table.aliases.get(initialiser.name, initialiser.name)
        if name not in names:
            problems += _stays(initialiser)
            continue
        index = table.index_of(name)
        spec: TensorSpec = table[index]
        found = (initialiser.data_type, tuple(initialiser.dims))
        if found != (_ONNX_TYPES.get(spec.dtype), spec.shape):
            kind = TensorProto.DataType.Name(initialiser.data_type)
            problems.append(
                f"{name} is {kind}{list(initialiser.dims)} in the graph, {spec.dtype}{list(spec.shape)} in the weights"
            )
        elif spec.size:
            _externalise(initialiser, index)
            bound[index] = initialiser.name
    problems += [
        f"{spec.name} is in the weights, but the graph has no initialiser of that name"
        for index, spec in enumerate(table)
        if index not in bound and spec.size and spec.dtype in _FLOAT_CODES and spec.name not in unused
    ]
    if problems:
        raise GraphRefused("graph and weights do not match: " + "; ".join(problems[:20]))
    _strip(bound_model)
    return Graph(bound_model.SerializeToString(deterministic=True), bound)


def missing(model: onnx.ModelProto, table: TensorTable) -> list[str]:
    """Return the floating-point tensors of the table that the graph has no initialiser for."""
    present = {table.aliases.get(initialiser.name, initialiser.name) for initialiser in model.graph.initializer}
    return [spec.name for spec in table if spec.size and spec.dtype in _FLOAT_CODES and spec.name not in present]


def stored(data: bytes) -> Graph:
    """Read a graph that `bind` made: which tensor is which initialiser stands in it."""
    bound: dict[int, str] = {}
    for initialiser in parse(data).graph.initializer:
        for entry in initialiser.external_data:
            if entry.key == "location":
                bound[int(entry.value.removeprefix("t/"))] = initialiser.name
    return Graph(data, bound)


def _stays(initialiser: Any) -> list[str]:
    """Return what is wrong with an initialiser that is not of the release: it must be a constant of the graph."""
    if initialiser.data_location == TensorProto.EXTERNAL:
        return [f"initialiser {initialiser.name} has its data in another file and is not in the weights"]
    if initialiser.data_type in _FLOATS and initialiser.ByteSize() > MAX_CONSTANT_BYTES:
        return [f"initialiser {initialiser.name} holds {prod(initialiser.dims)} values and is not in the weights"]
    return []


def _externalise(initialiser: Any, index: int) -> None:
    kept = TensorProto(name=initialiser.name, data_type=initialiser.data_type, dims=list(initialiser.dims))
    kept.data_location = TensorProto.EXTERNAL
    width = onnx.helper.tensor_dtype_to_np_dtype(initialiser.data_type).itemsize
    for key, value in (("location", f"t/{index}"), ("offset", "0"), ("length", str(width * prod(initialiser.dims)))):
        kept.external_data.add(key=key, value=value)
    initialiser.CopyFrom(kept)


def _strip(model: onnx.ModelProto) -> None:
    """Remove what only the exporter needed: traces with file names, comments; equal models give equal bytes."""
    model.doc_string = ""
    del model.metadata_props[:]
    graph = model.graph
    graph.doc_string = ""
    for item in (graph, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""
    for node in (*graph.node, *(node for function in model.functions for node in function.node)):
        del node.metadata_props[:]
        node.doc_string = ""
    del graph.value_info[:]


def name_batch_axis(model: onnx.ModelProto) -> None:
    """Call the symbolic first axis of the first input `batch`, wherever it occurs."""
    first = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if first and dim.dim_param == first:
                dim.dim_param = "batch"


def with_probes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with the output of every layer (leaf module) as a further output `probe:<layer>`.

    Layers are known from what torch's exporter notes on each node; a graph without such notes is returned as it is.
    """
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    known = {value.name: value for value in probed.graph.value_info}
    known |= {value.name: value for value in probed.graph.output}
    last: dict[str, str] = {}
    for node in probed.graph.node:
        scope = _scope(node)
        if scope and node.output and node.output[0] in known:
            last[scope] = node.output[0]
    parents = {scope.rpartition(".")[0] for scope in last}
    for scope, value in last.items():
        if scope in parents:
            continue
        name = PROBE_PREFIX + scope
        probed.graph.node.append(onnx.helper.make_node("Identity", [value], [name], name=name))
        output = probed.graph.output.add()
        output.CopyFrom(known[value])
        output.name = name
    return probed


def _scope(node: Any) -> str:
    """Return the name of the innermost module that a node belongs to, '' where unknown."""
    for note in node.metadata_props:
        if note.key == "pkg.torch.onnx.name_scopes":
            scopes: list[str] = [part.strip().strip("'\"") for part in note.value.strip("[]").split(",")]
            return scopes[-2] if len(scopes) > 1 and not scopes[-2].startswith("_empty") else ""
    return ""


def name_outputs(model: onnx.ModelProto, names: Sequence[str]) -> None:
    """Give a graph's outputs these names, in order; a value inside that has one of them gets another.

    Raises:
        GraphRefused: an input or a tensor has the name of an output.
    """
    graph = model.graph
    outer = {value.name for value in (*graph.input, *graph.initializer)}
    if taken := sorted(outer & set(names)):
        raise GraphRefused(
            f"{taken[0]} names an output of the module, and an input or a tensor: give the output another"
        )
    given = dict(zip((value.name for value in graph.output), names, strict=True))
    inside = {name for node in graph.node for name in node.output}
    moved = {name: f"{name}.inside" for name in set(names) & inside - given.keys()}
    renamed = {**moved, **given}
    for node in graph.node:
        for part in (node.input, node.output):
            for place, name in enumerate(part):
                part[place] = renamed.get(name, name)
    for value in (*graph.value_info, *graph.output):
        value.name = renamed.get(value.name, value.name)


def input_examples(model: onnx.ModelProto) -> dict[str, tuple[tuple[int, ...], str] | None]:
    """Return of each input of a graph its shape without the batch axis and numpy dtype name, None where it is open.

    Raises:
        GraphRefused: the graph has no input that is not an initialiser, one that is no tensor, or a fixed batch.
    """
    stored = {initialiser.name for initialiser in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    if not inputs or not all(value.type.HasField("tensor_type") for value in inputs):
        raise GraphRefused(f"the graph has the inputs {[value.name for value in inputs]}; tensors are needed")
    return {value.name: _example(value) for value in inputs}


def _example(value: onnx.ValueInfoProto) -> tuple[tuple[int, ...], str] | None:
    tensor = value.type.tensor_type
    dims = [dim.dim_value if dim.HasField("dim_value") else 0 for dim in tensor.shape.dim]
    if not dims or min(dims[1:], default=1) < 1:
        return None
    if dims[0]:
        raise GraphRefused(
            f"the graph's input {value.name} has a fixed batch of {dims[0]}; export it with a dynamic first axis"
        )
    return tuple(dims[1:]), onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
