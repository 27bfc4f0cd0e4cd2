"""Runs graphs in onnxruntime with named activations, batch by batch: no more than one batch is in memory."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto

from sprat_server.sharing.cuts import Cut, Shape
from sprat_server.sharing.releases import NotShareable, Release
from sprat_shared.wire.tensors import Array

Floats = npt.NDArray[np.float32]


class Runner:
    """A model with its weights inside, ready to run on one thread.

    Args:
        model: ONNX with one input.
        named: tensors of the graph to give, in this order; None: its outputs.

    Raises:
        NotShareable: onnxruntime cannot load it; the message has its reason.
    """

    def __init__(self, model: onnx.ModelProto, named: Sequence[str] | None = None) -> None:
        outputs = {port.name for port in model.graph.output}
        self.named = [port.name for port in model.graph.output] if named is None else list(named)
        inner = [name for name in self.named if name not in outputs]
        if inner:
            probed = onnx.ModelProto()
            probed.CopyFrom(model)
            probed.graph.output.extend(onnx.helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in inner)
            model = probed
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED  # as on devices
        options.enable_cpu_mem_arena = False
        options.log_severity_level = 4
        try:
            self._session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as bad:  # onnxruntime's exceptions share no public base below Exception
            raise NotShareable(f"onnxruntime does not load the graph: {str(bad)[:400]}") from bad
        self._input = self._session.get_inputs()[0].name

    def run(self, inputs: Array) -> dict[str, Array]:
        """Return the named tensors of one batch of inputs."""
        return dict(zip(self.named, self._session.run(self.named, {self._input: inputs}), strict=True))

    def stream(self, inputs: Array, batch: int = 64) -> Iterator[dict[str, Array]]:
        """Yield the named tensors of inputs (n, ...), a batch at a time."""
        for start in range(0, len(inputs), batch):
            yield self.run(inputs[start : start + batch])

    def answers(self, inputs: Array, batch: int = 256) -> Array:
        """Return the first output of all inputs (n, ...)."""
        return np.concatenate([part[self.named[0]] for part in self.stream(inputs, batch)])


def shapes_of(release: Release, cuts: Sequence[Cut], inputs: Array) -> Mapping[str, Shape]:
    """Return the shape, without the batch axis, of each cut, as it is for some inputs (n, ...); n >= 1."""
    given = Runner(release.filled(), [cut.tensor for cut in cuts]).run(inputs[:1])
    return {name: array.shape[1:] for name, array in given.items()}
