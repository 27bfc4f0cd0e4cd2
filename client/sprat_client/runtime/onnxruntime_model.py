"""A release folder as an onnxruntime session: what `onnxruntime_host` loads with the first model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime

from sprat_client.runtime.ports import Array, InferenceFailed, ModelNotLoadable, PortSpec

_DTYPES: Final[Mapping[str, str]] = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int16)": "int16",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(bool)": "bool",
}
# Each of these writes new weights made from the mapped ones, which would then be held twice.
_FOLDING: Final = ("ConvBNFusion", "ConvMulFusion", "ConvAddFusion", "MatMulBnFusion", "ConstantFolding")
GRAPH_FILE: Final = "graph.onnx"
_IDENTITY: Final = bytes.fromhex(  # y = Identity(x), float32[1], of opset 17
    "08083a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a020801620f0a0179120a0a080801"
    "12040a02080142040a001011"
)


class OnnxModel:
    """One onnxruntime session.

    Args:
        session: the session.
        name: of the release folder, for messages.
    """

    def __init__(self, session: Any, name: str) -> None:
        self._session, self._name = session, name
        self.inputs = [_spec(port, name) for port in session.get_inputs()]
        self.outputs = [_spec(port, name) for port in session.get_outputs()]

    def run(self, values: Mapping[str, Array]) -> list[Array]:
        """See `ModelHost.run`."""
        try:
            answers = self._session.run(None, dict(values))
        except Exception as bad:
            raise InferenceFailed(f"{self._name}: onnxruntime failed: {str(bad)[:400]}") from bad
        return [np.asarray(answer) for answer in answers]

    def output(self, values: Mapping[str, Array], name: str) -> Array:
        """See `ProbedHost.output`."""
        options = onnxruntime.RunOptions()
        options.only_execute_path_to_fetches = True
        try:
            return np.asarray(self._session.run([name], dict(values), options)[0])
        except Exception as bad:
            raise InferenceFailed(f"{self._name}: onnxruntime failed: {str(bad)[:400]}") from bad


def open_model(folder: Path, *, threads: int, prepack: bool) -> OnnxModel:
    """Load a release folder; see `OnnxRuntime`.

    Raises:
        ModelNotLoadable: onnxruntime refuses it.
    """
    try:
        session = _session(str(folder / GRAPH_FILE), threads=threads, prepack=prepack)
    except Exception as bad:
        raise ModelNotLoadable(f"{folder.name}: onnxruntime does not load it: {str(bad)[:400]}") from bad
    return OnnxModel(session, folder.name)


def warm_up(*, threads: int, prepack: bool) -> None:
    """Run a graph of one node.

    Raises:
        ModelNotLoadable: onnxruntime does not run here.
    """
    try:
        _session(_IDENTITY, threads=threads, prepack=prepack).run(None, {"x": np.zeros(1, np.float32)})
    except Exception as bad:
        raise ModelNotLoadable(f"onnxruntime does not run here: {str(bad)[:400]}") from bad


def _session(graph: str | bytes, *, threads: int, prepack: bool) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.set_denormal_as_zero", "0")  # it would switch numpy over as well
    if not prepack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    return onnxruntime.InferenceSession(
        graph,
        sess_options=options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=None if prepack else list(_FOLDING),
    )


def _spec(port: Any, name: str) -> PortSpec:
    dtype = _DTYPES.get(port.type)
    if dtype is None:
        raise ModelNotLoadable(f"{name}: {port.name!r} is a {port.type}, which this runtime does not take")
    shape = tuple(n if isinstance(n, int) else None for n in port.shape)
    lengths = tuple(n if isinstance(n, str) and n else None for n in port.shape)
    return PortSpec(port.name, np.dtype(dtype), shape, lengths)
