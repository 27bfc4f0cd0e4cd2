"""The default runtime: onnxruntime on the CPU, one thread, weights mapped from the release folder.

Weights stay the mapped pages of the store's files, shared with other sessions and given back under pressure, only
where onnxruntime neither repacks nor folds them: `session.disable_prepacking`, and no fusion of convolution and batch
norm. That costs time for convolutions; `prepack=True` trades the memory back. Last bits differ between the two, so
releases are compared under one setting.
"""

import ctypes
import gc
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

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


class OnnxRuntime:
    """Loads release folders into onnxruntime.

    Args:
        threads: threads per session; more than one hurts beside a busy process.
        prepack: let onnxruntime repack and fold weights into memory of its own.
    """

    def __init__(self, *, threads: int = 1, prepack: bool = False) -> None:
        self._threads, self._prepack = threads, prepack

    def load(self, folder: Path) -> "OnnxModel":
        """See `Runtime.load`."""
        import onnxruntime  # noqa: PLC0415  # 60 ms and 20 MB that a poll without a change does not need

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        options.log_severity_level = 3
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.set_denormal_as_zero", "0")  # it would switch numpy over as well
        if not self._prepack:
            options.add_session_config_entry("session.disable_prepacking", "1")
        try:
            session = onnxruntime.InferenceSession(
                str(folder / GRAPH_FILE),
                sess_options=options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=None if self._prepack else list(_FOLDING),
            )
        except Exception as bad:
            raise ModelNotLoadable(f"{folder.name}: onnxruntime does not load it: {str(bad)[:400]}") from bad
        return OnnxModel(session, folder.name)


class OnnxModel:
    """One onnxruntime session."""

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
        import onnxruntime  # noqa: PLC0415  # loaded already

        options = onnxruntime.RunOptions()
        options.only_execute_path_to_fetches = True
        try:
            return np.asarray(self._session.run([name], dict(values), options)[0])
        except Exception as bad:
            raise InferenceFailed(f"{self._name}: onnxruntime failed: {str(bad)[:400]}") from bad


def _spec(port: Any, name: str) -> PortSpec:
    dtype = _DTYPES.get(port.type)
    if dtype is None:
        raise ModelNotLoadable(f"{name}: {port.name!r} is a {port.type}, which this runtime does not take")
    shape = tuple(n if isinstance(n, int) else None for n in port.shape)
    return PortSpec(port.name, np.dtype(dtype), shape)


def return_memory() -> None:
    """Give memory of dropped sessions back to the system, where the C library can (glibc's malloc_trim)."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        return
