"""What a graph takes and gives, as a module of a task: its inputs and outputs with dtype and shape."""

from collections.abc import Iterable
from typing import Any

import onnx

from sprat_server.training.graphs import GraphRefused
from sprat_shared.errors import InvalidInput
from sprat_shared.tasks.types import Signature, TensorType, free_length


def signature_of(model: onnx.ModelProto) -> Signature:
    """Return the inputs that are not initialisers, and the outputs, of a graph.

    Raises:
        GraphRefused: one is no tensor of a type that tasks know, or its number of dimensions is open.
    """
    stored = {initialiser.name for initialiser in model.graph.initializer}
    outputs = model.graph.output
    if any(not port.type.tensor_type.HasField("shape") for port in outputs):
        outputs = onnx.shape_inference.infer_shapes(model).graph.output
    return Signature(
        _ports(port for port in model.graph.input if port.name not in stored),
        _ports(outputs),
    )


def _ports(ports: Iterable[Any]) -> dict[str, TensorType]:
    return {port.name: _type(port) for port in ports}


def _type(port: Any) -> TensorType:
    tensor = port.type.tensor_type
    if not port.type.HasField("tensor_type") or not tensor.HasField("shape"):
        raise GraphRefused(f"{port.name} of the graph has no shape, or is no tensor; export it with one")
    shape = tuple(
        dim.dim_value if dim.HasField("dim_value") else free_length(dim.dim_param or None, port.name, axis)
        for axis, dim in enumerate(tensor.shape.dim)
    )
    try:
        return TensorType(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name, shape)
    except (InvalidInput, KeyError) as bad:
        raise GraphRefused(f"{port.name} of the graph: {bad}") from bad
