"""The graph that gives what goes into each batch norm of a release, from which devices compute its local statistics.

It is made from the release's own graph: statistics become inputs, the norms' inputs become outputs, and what only the
model's answer needs goes away (`sprat_shared.trust.statistics` names the ports). Devices run it and parse nothing.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import TensorProto

from sprat_server.training.graphs import parse
from sprat_shared.trust.statistics import NORM_OUTPUT, STATISTIC_INPUT

_MEAN, _VARIANCE = 3, 4  # positions among the inputs of BatchNormalization


@dataclass(frozen=True, slots=True)
class StatisticsGraph:
    """A statistics graph.

    Attributes:
        data: its ONNX bytes.
        tensors: indices of the running means and variances in the tensor table, rising.
    """

    data: bytes
    tensors: tuple[int, ...]


def statistics_graph(graph: bytes) -> StatisticsGraph | None:
    """Return the statistics graph of a stored graph; None where no norm has float32 statistics of its own.

    A norm whose statistics are shared with another use keeps them: they would be of two inputs.

    Raises:
        GraphRefused: the bytes are not an ONNX model.
    """
    model = parse(graph)
    index_of = {
        initialiser.name: index for initialiser in model.graph.initializer if (index := _index(initialiser)) >= 0
    }
    uses = Counter(name for node in model.graph.node for name in node.input)
    norms = [
        node
        for node in model.graph.node
        if node.op_type == "BatchNormalization"
        and not node.domain
        and all(name in index_of and uses[name] == 1 for name in node.input[_MEAN : _VARIANCE + 1])
    ]
    if not norms:
        return None
    statistics = {name: index_of[name] for norm in norms for name in norm.input[_MEAN : _VARIANCE + 1]}
    del model.graph.output[:]
    for norm in norms:
        name = NORM_OUTPUT + ":".join(str(statistics[tensor]) for tensor in norm.input[_MEAN : _VARIANCE + 1])
        model.graph.node.append(onnx.helper.make_node("Identity", [norm.input[0]], [name], name=name))
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    _take_as_inputs(model, statistics)
    _prune(model)
    return StatisticsGraph(model.SerializeToString(deterministic=True), tuple(sorted(statistics.values())))


def _index(initialiser: Any) -> int:
    """Return the index of a float32 tensor of the release, -1 of everything else."""
    location = next((entry.value for entry in initialiser.external_data if entry.key == "location"), "")
    is_float = initialiser.data_type == TensorProto.FLOAT
    return int(location.removeprefix("t/")) if location.startswith("t/") and is_float else -1


def _take_as_inputs(model: onnx.ModelProto, statistics: dict[str, int]) -> None:
    """Turn initialisers into inputs `t/<index>`."""
    kept = []
    for initialiser in model.graph.initializer:
        if initialiser.name not in statistics:
            kept.append(initialiser)
            continue
        name = f"{STATISTIC_INPUT}{statistics[initialiser.name]}"
        shape = list(initialiser.dims)
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            if name in statistics:
                node.input[position] = f"{STATISTIC_INPUT}{statistics[name]}"


def _prune(model: onnx.ModelProto) -> None:
    """Remove nodes and initialisers that no output depends on."""
    needed = {output.name for output in model.graph.output}
    kept = []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(_reads(node))
    del model.graph.node[:]
    model.graph.node.extend(reversed(kept))
    initialisers = [initialiser for initialiser in model.graph.initializer if initialiser.name in needed]
    del model.graph.initializer[:]
    model.graph.initializer.extend(initialisers)


def _reads(node: Any) -> set[str]:
    """Return the names that a node reads, and those that graphs within it (If, Loop) may read."""
    inner = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return {*node.input, *(name for graph in inner for part in graph.node for name in _reads(part))}
