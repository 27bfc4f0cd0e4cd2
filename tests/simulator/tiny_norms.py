"""A tiny classifier with two batch norms, made without torch: its weights, its graph, and what it computes."""

from typing import Any

import numpy as np
from onnx import TensorProto, helper

Array = np.ndarray[Any, Any]
Weights = dict[str, tuple[str, Array]]  # name to (safetensors code, array)

FEATURES, HIDDEN, CLASSES = 12, 16, 4
_EPSILON = 1e-5
_SHAPES = {
    "first.weight": (FEATURES, HIDDEN),
    "first.bias": (HIDDEN,),
    "norm1.weight": (HIDDEN,),
    "norm1.bias": (HIDDEN,),
    "norm1.running_mean": (HIDDEN,),
    "norm1.running_var": (HIDDEN,),
    "second.weight": (HIDDEN, CLASSES),
    "second.bias": (CLASSES,),
    "norm2.weight": (CLASSES,),
    "norm2.bias": (CLASSES,),
    "norm2.running_mean": (CLASSES,),
    "norm2.running_var": (CLASSES,),
}
NAMES = sorted(_SHAPES)
LOCAL = tuple(index for index, name in enumerate(NAMES) if "running" in name)


def weights(seed: int) -> Weights:
    """Return weights whose statistics are those of standard normal inputs."""
    draw = np.random.default_rng(seed)
    made = {name: ("F32", draw.standard_normal(shape).astype(np.float32)) for name, shape in _SHAPES.items()}
    for name in ("norm1.weight", "norm2.weight"):
        made[name] = ("F32", draw.uniform(0.5, 1.5, _SHAPES[name]).astype(np.float32))
    return with_statistics(made, draw.standard_normal((4096, FEATURES)).astype(np.float32))


def with_statistics(weights: Weights, inputs: Array) -> Weights:
    """Return the weights with the statistics of all `inputs` at once, as training does: biased in it, unbiased kept."""
    made, x = dict(weights), inputs.astype(np.float64)
    for layer, norm in (("first", "norm1"), ("second", "norm2")):
        x = x @ made[f"{layer}.weight"][1] + made[f"{layer}.bias"][1]
        mean, kept = x.mean(axis=0), x.var(axis=0, ddof=1)
        made[f"{norm}.running_mean"] = ("F32", mean.astype(np.float32))
        made[f"{norm}.running_var"] = ("F32", kept.astype(np.float32))
        x = (x - mean) / np.sqrt(x.var(axis=0) + _EPSILON) * made[f"{norm}.weight"][1] + made[f"{norm}.bias"][1]
        x = np.maximum(x, 0)
    return made


def logits(weights: Weights, inputs: Array) -> Array:
    """Return what the graph computes, (n, classes)."""
    x = inputs
    for layer, norm in (("first", "norm1"), ("second", "norm2")):
        x = x @ weights[f"{layer}.weight"][1] + weights[f"{layer}.bias"][1]
        scale = weights[f"{norm}.weight"][1] / np.sqrt(weights[f"{norm}.running_var"][1] + _EPSILON)
        x = (x - weights[f"{norm}.running_mean"][1]) * scale + weights[f"{norm}.bias"][1]
        x = np.maximum(x, 0) if norm == "norm1" else x
    return x


def graph() -> bytes:
    """Return the ONNX bytes: initialisers are external, `t/<index>`, the index being the place in name order."""
    initialisers = []
    for index, name in enumerate(NAMES):
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=_SHAPES[name])
        tensor.data_location = TensorProto.EXTERNAL
        length = 4 * int(np.prod(_SHAPES[name]))
        for key, value in (("location", f"t/{index}"), ("offset", "0"), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)
        initialisers.append(tensor)
    norm = ["weight", "bias", "running_mean", "running_var"]
    nodes = [
        helper.make_node("Gemm", ["inputs", "first.weight", "first.bias"], ["a"]),
        helper.make_node("BatchNormalization", ["a", *(f"norm1.{part}" for part in norm)], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Gemm", ["c", "second.weight", "second.bias"], ["d"]),
        helper.make_node("BatchNormalization", ["d", *(f"norm2.{part}" for part in norm)], ["logits"]),
    ]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "tiny-norms",
            [helper.make_tensor_value_info("inputs", TensorProto.FLOAT, ["batch", FEATURES])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
            initialisers,
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )
    encoded: bytes = model.SerializeToString()
    return encoded
