"""A made-up task on vectors, and weights that solve it well, badly, or backwards; graph and weights without torch."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

Floats = npt.NDArray[np.float32]
Weights = Mapping[str, Floats]


def truth() -> dict[str, Floats]:
    """Weights that are right by definition: labels are what they say."""
    rng = np.random.default_rng(1)
    shapes = {"0.weight": (32, 16), "0.bias": (32,), "2.weight": (4, 32), "2.bias": (4,)}
    return {name: (rng.normal(size=shape) / np.sqrt(shape[-1])).astype(np.float32) for name, shape in shapes.items()}


def of_five(classes: int = 5) -> dict[str, Floats]:
    """Weights of the first so many classes of five; all five are right by definition."""
    rng = np.random.default_rng(11)
    head, bias = rng.normal(size=(5, 32)).astype(np.float32), np.array([0.3, 0.1, 0, 0.2, 0.3], np.float32)
    return {**truth(), "2.weight": head[:classes], "2.bias": bias[:classes]}


def worn() -> dict[str, Floats]:
    """The truth with a change of rank 1 that costs about a third of the answers: a base that wants an update."""
    rng = np.random.default_rng(2)
    change = np.outer(rng.normal(size=32), rng.normal(size=16)).astype(np.float32) * 0.4
    right = truth()
    return {**right, "0.weight": right["0.weight"] + change}


def backwards() -> dict[str, Floats]:
    """Weights that prefer the wrong class: nobody should keep them."""
    right = truth()
    return {**right, "2.weight": -right["2.weight"], "2.bias": -right["2.bias"]}


def logits(weights: Weights, inputs: Floats) -> Floats:
    hidden = np.maximum(inputs @ weights["0.weight"].T + weights["0.bias"], 0)
    answer: Floats = hidden @ weights["2.weight"].T + weights["2.bias"]
    return answer


def samples(count: int, seed: int, right: Weights | None = None) -> dict[str, npt.NDArray[np.generic]]:
    """Inputs (count, 16) and the labels that the truth, or other weights that are right, give them."""
    inputs = np.random.default_rng(seed).normal(size=(count, 16)).astype(np.float32)
    return {"inputs": inputs, "labels": logits(right or truth(), inputs).argmax(1).astype(np.int64)}


def accuracy(weights: Weights, *, count: int = 500, seed: int = 99) -> float:
    test = samples(count, seed)
    return float((logits(weights, test["inputs"].astype(np.float32)).argmax(1) == test["labels"]).mean())


def write_weights(path: Path, weights: Weights) -> Path:
    save_file(dict(weights), path)
    return path


def write_samples(path: Path, *, count: int, seed: int, right: Weights | None = None) -> Path:
    np.savez(path, **samples(count, seed, right))  # type: ignore[arg-type]
    return path


def write_graph(path: Path, weights: Weights) -> Path:
    """Write the network as ONNX with its weights inside, as an exporter would."""
    constants = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    nodes = [
        helper.make_node("Gemm", ["x", "0.weight", "0.bias"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "2.weight", "2.bias"], ["logits"], transB=1),
    ]
    width, classes = weights["0.weight"].shape[1], weights["2.weight"].shape[0]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)
    return path
