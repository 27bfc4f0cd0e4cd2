"""Runs a graph in onnxruntime in a process of its own: a graph that crashes it does not take the worker along.

    python -m sprat_server.training.graph_runner FOLDER

FOLDER holds graph.onnx, its tensors t/<index>, and inputs.npz: input k of batch i is b<i>i<k>. Its output j becomes
b<i>o<j> in outputs.npz.
An error of onnxruntime is the last line on stderr, with exit code 65.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

GRAPH: Final = "graph.onnx"
INPUTS: Final = "inputs.npz"
OUTPUTS: Final = "outputs.npz"
REFUSED: Final = 65


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write arrays by name to an .npz file."""
    np.savez(path, **arrays)  # type: ignore[arg-type]  # numpy's stub takes allow_pickle for a name


def run_folder(folder: Path) -> None:
    """Run all batches of `inputs.npz` and write what comes out."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED  # as on devices
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 4
    session = ort.InferenceSession(str(folder / GRAPH), options, providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()]
    outputs = {}
    with np.load(folder / INPUTS) as given:
        for batch in range(len(given.files) // len(names)):
            inputs = {name: given[f"b{batch}i{at}"] for at, name in enumerate(names)}
            for position, output in enumerate(session.run(None, inputs)):
                outputs[f"b{batch}o{position}"] = output
    write_arrays(folder / OUTPUTS, outputs)


def main() -> int:
    """Run the folder named on the command line; return the exit code."""
    try:
        run_folder(Path(sys.argv[1]))
    except Exception as e:  # noqa: BLE001 - onnxruntime's exceptions share no public base below Exception
        lines = [line.strip() for line in str(e).splitlines() if line.strip()]
        sys.stderr.write(f"\n{(lines or [type(e).__name__])[0][:500]}\n")
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
