"""Tiny classifiers made without torch: weights as numpy arrays, graphs as ONNX without weights."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

Array = np.ndarray[Any, Any]
Weights = Mapping[str, tuple[str, Array]]  # name to (safetensors code, array)

FEATURES, HIDDEN, CLASSES = 12, 24, 4


def _layers(hidden: int) -> dict[str, tuple[int, ...]]:
    return {
        "first.bias": (hidden,),
        "first.weight": (FEATURES, hidden),
        "second.bias": (CLASSES,),
        "second.weight": (hidden, CLASSES),
    }


LAYERS = _layers(HIDDEN)


def weights(seed: int, *, scale: float = 1.0, hidden: int = HIDDEN) -> dict[str, tuple[str, Array]]:
    """Return the weights of a classifier; `steps` is a counter that the graph does not read.

    Args:
        seed: of the draw.
        scale: standard deviation.
        hidden: units between: each takes 68 bytes.
    """
    draw = np.random.default_rng(seed)
    shapes = _layers(hidden)
    arrays = {name: ("F32", (scale * draw.standard_normal(shape)).astype(np.float32)) for name, shape in shapes.items()}
    return {**arrays, "steps": ("I64", np.array(seed, np.int64))}


def nudged(base: Weights, seed: int, size: float = 1e-3) -> dict[str, tuple[str, Array]]:
    """Return weights close to `base`: what a good retrain gives."""
    draw = np.random.default_rng(seed)
    return {
        name: (code, (array + size * draw.standard_normal(array.shape)).astype(np.float32) if code == "F32" else array)
        for name, (code, array) in base.items()
    }


def grown(base: Weights, seed: int, classes: int = CLASSES + 2) -> dict[str, tuple[str, Array]]:
    """Return the weights with a head of more classes, the first of which answer as in `base`."""
    more = weights(seed, scale=2.0)
    return {
        name: (code, np.concatenate([array, more[name][1][..., : classes - CLASSES]], axis=-1))
        if name.startswith("second")
        else (code, array)
        for name, (code, array) in base.items()
    }


def logits(parameters: Weights, inputs: Array) -> Array:
    """Return what the graph computes, (n, classes)."""
    (_, b1), (_, w1), (_, b2), (_, w2) = (parameters[name] for name in LAYERS)
    answer: Array = np.maximum(inputs @ w1 + b1, 0) @ w2 + b2
    return answer


def samples(parameters: Weights, count: int, seed: int = 5) -> tuple[Array, Array]:
    """Return samples (n, features) that the classifier has right, with their labels (n,)."""
    inputs = np.random.default_rng(seed).standard_normal((count, FEATURES)).astype(np.float32)
    return inputs, logits(parameters, inputs).argmax(axis=1)


def graph(*, bfloat16: bool = False, doubled: bool = False, classes: int = CLASSES, hidden: int = HIDDEN) -> bytes:
    """Return the ONNX bytes: initialisers are external, `t/<index>`, the index being the place in name order.

    Args:
        bfloat16: says nothing in the graph: it reads float32 copies either way.
        doubled: an architecture of another digest (the answer is doubled).
        classes: outputs of the head.
        hidden: units between.
    """
    del bfloat16
    order = sorted([*LAYERS, "steps"])
    initialisers = []
    for name, layer in _layers(hidden).items():
        shape = (*layer[:-1], classes) if name.startswith("second") else layer
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        length = 4 * int(np.prod(shape))
        for key, value in (("location", f"t/{order.index(name)}"), ("offset", "0"), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)
        initialisers.append(tensor)
    nodes = [
        helper.make_node("Gemm", ["inputs", "first.weight", "first.bias"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("Gemm", ["active", "second.weight", "second.bias"], ["raw"], alpha=1.0),
        helper.make_node("Add", ["raw", "raw"], ["logits"])
        if doubled
        else helper.make_node("Identity", ["raw"], ["logits"]),
    ]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "tiny",
            [helper.make_tensor_value_info("inputs", TensorProto.FLOAT, ["batch", FEATURES])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])],
            initialisers,
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )
    encoded: bytes = model.SerializeToString()
    assert onnx.load_model_from_string(encoded).graph.name == "tiny"
    return encoded
