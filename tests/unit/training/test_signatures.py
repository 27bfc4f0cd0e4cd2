"""What a graph takes and gives, read out of it."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sprat_server.training.graphs import GraphRefused
from sprat_server.training.signatures import signature_of
from sprat_shared.tasks.types import TensorType


def graph(inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.ones(3, np.float32), "w")
    listed = helper.make_tensor_value_info("w", TensorProto.FLOAT, [3])  # as old exporters list weights
    node = helper.make_node("Add", [inputs[0].name, "w"], ["y"])
    made = helper.make_graph([node], "g", [*inputs, listed], outputs, [weight])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)])


def test_weights_are_no_inputs_and_free_lengths_have_names() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", None, 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "2*s0", 3])
    found = signature_of(graph([x], [y]))
    assert found.inputs == {"x": TensorType("float32", ("batch", "x.1", 3))}
    assert found.outputs == {"y": TensorType("float32", ("batch", "_2_s0", 3))}


def test_an_output_without_a_shape_has_the_one_that_follows() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])
    found = signature_of(graph([x], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]))
    assert found.outputs == {"y": TensorType("float32", ("n", 3))}


def test_what_is_no_tensor_of_a_known_type_is_refused_by_name() -> None:
    words = helper.make_tensor_value_info("words", TensorProto.STRING, ["n"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])
    with pytest.raises(GraphRefused, match="words of the graph: dtype 'object'"):
        signature_of(graph([words], [y]))
    open_rank = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
    with pytest.raises(GraphRefused, match="x of the graph has no shape"):
        signature_of(graph([open_rank], [y]))
