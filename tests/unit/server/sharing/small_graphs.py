"""Small models in ONNX, made by hand: enough of each kind of layer, weights drawn with a seed."""

from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from sprat_server.sharing.releases import Release, point_at
from sprat_shared.wire.tensors import ArrayTensors

OPSET = 20


class Builder:
    """Adds layers one after the other; `at` is the tensor that the last one gave."""

    def __init__(self, seed: int) -> None:
        self.draw = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.weights: dict[str, np.ndarray] = {}
        self.at = "input"

    def tensor(self, name: str, *shape: int, low: float | None = None) -> str:
        values = self.draw.normal(0, 1 / max(1, np.prod(shape[1:])) ** 0.5, shape)
        values = values if low is None else low + self.draw.random(shape)
        self.weights[name] = values.astype(np.float32)
        return name

    def node(self, kind: str, *inputs: str, name: str, **attributes: Any) -> "Builder":
        self.nodes.append(helper.make_node(kind, [self.at, *inputs], [name], name=name, **attributes))
        self.at = name
        return self

    def conv(self, name: str, narrow: int, wide: int, *, kernel: int = 3, stride: int = 1) -> "Builder":
        pads = [kernel // 2] * 4
        weight, bias = self.tensor(f"{name}.w", wide, narrow, kernel, kernel), self.tensor(f"{name}.b", wide)
        return self.node("Conv", weight, bias, name=name, kernel_shape=[kernel] * 2, pads=pads, strides=[stride] * 2)

    def norm(self, name: str, wide: int) -> "Builder":
        least = {"g": 0.5, "b": -0.5, "m": -0.5, "v": 0.5}
        parts = [self.tensor(f"{name}.{part}", wide, low=low) for part, low in least.items()]
        return self.node("BatchNormalization", *parts, name=name)

    def relu(self, name: str) -> "Builder":
        return self.node("Relu", name=name)

    def head(self, wide: int, classes: int) -> "Builder":
        self.node("GlobalAveragePool", name="pool").node("Flatten", name="flat")
        weight, bias = self.tensor("head.w", classes, wide), self.tensor("head.b", classes)
        return self.node("Gemm", weight, bias, name="logits", transB=1)

    def release(self, name: str, *input_shape: int) -> Release:
        ports = [
            helper.make_tensor_value_info(port, TensorProto.FLOAT, ["batch", *shape])
            for port, shape in (("input", input_shape), (self.at, (None,)))
        ]
        initialisers = [numpy_helper.from_array(array, key) for key, array in self.weights.items()]
        graph = helper.make_graph(self.nodes, name, ports[:1], ports[1:], initialisers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
        tensors = ArrayTensors({key: ("F32", array) for key, array in self.weights.items()})
        for initialiser in model.graph.initializer:
            point_at(initialiser, tensors.table.index_of(initialiser.name))
        return Release(name, model.SerializeToString(), tensors)


def plain(name: str = "plain", seed: int = 0, width: int = 4, classes: int = 3) -> Release:
    """Convolutions with norms, a pool between, a head."""
    one = Builder(seed).conv("c1", 1, width).norm("n1", width).relu("r1")
    one.node("MaxPool", name="p1", kernel_shape=[2, 2], strides=[2, 2])
    return (
        one.conv("c2", width, 2 * width)
        .norm("n2", 2 * width)
        .relu("r2")
        .head(2 * width, classes)
        .release(name, 1, 8, 8)
    )


def pointwise(name: str = "pointwise", seed: int = 1, width: int = 6, classes: int = 3) -> Release:
    """A 1 x 1 convolution without padding follows a nonlinearity, and a strided one before it."""
    one = Builder(seed).conv("c1", 1, width, stride=2).relu("r1").conv("c2", width, 2, kernel=1).relu("r2")
    return one.head(2, classes).release(name, 1, 8, 8)


def residual(name: str = "residual", seed: int = 2, width: int = 5, classes: int = 3) -> Release:
    """A convolution beside a short cut: inside it the graph cannot be cut."""
    one = Builder(seed).conv("c1", 1, width).relu("r1").conv("c2", width, width).relu("inner").conv("c3", width, width)
    one.node("Add", "r1", name="sum").relu("r2")
    return one.head(width, classes).release(name, 1, 8, 8)


def tokens(name: str = "tokens", seed: int = 3, width: int = 4) -> Release:
    """Matrix products over tokens (batch, 6, features)."""
    one = Builder(seed)
    one.node("MatMul", one.tensor("m1.w", 5, width), name="m1").node("Relu", name="r1")
    one.node("MatMul", one.tensor("m2.w", width, 2), name="m2")
    return one.release(name, 6, 5)


def images(count: int, seed: int = 0) -> np.ndarray:
    """Inputs of the convolutional ones."""
    return np.random.default_rng(seed).normal(size=(count, 1, 8, 8)).astype(np.float32)
