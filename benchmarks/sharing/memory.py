"""Real memory of several models in one process, as the agent runs them: weights mapped from files, not repacked.

python -m sharing.memory FOLDER

FOLDER holds a folder for each model (graph.onnx, t/<index>) and inputs.npy; prints JSON: bytes of the process that are
resident because of the models, and those of them that are mapped tensors. Pages are counted by their proportional share
(Pss of smaps): a page that one process has mapped three times is one page, of which Rss makes three.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sprat_client.runtime.memory import return_memory
from sprat_client.runtime.onnxruntime_host import OnnxRuntime
from sprat_client.runtime.onnxruntime_model import GRAPH_FILE
from sprat_shared.wire.tensors import TensorSource, raw_bytes


def resident(models: Mapping[str, tuple[bytes, TensorSource]], inputs: Any) -> dict[str, int]:
    """Return the resident bytes of models, each graph and tensors; equal tensors are one file, as in a tensor store."""
    with tempfile.TemporaryDirectory(prefix="sprat-sharing-") as name:
        folder = Path(name)
        (folder / "store").mkdir()
        for model, (graph, tensors) in models.items():
            (folder / "models" / model / "t").mkdir(parents=True)
            (folder / "models" / model / GRAPH_FILE).write_bytes(graph)
            for index in range(len(tensors.table)):
                stored = folder / "store" / tensors.sha256(index).hex()
                if not stored.exists():
                    stored.write_bytes(raw_bytes(tensors.read(index)))
                (folder / "models" / model / "t" / str(index)).hardlink_to(stored)
        np.save(folder / "inputs.npy", inputs[:1])
        path = os.pathsep.join(part for part in sys.path if part)
        done = subprocess.run(
            [sys.executable, "-m", __name__, name],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": path},
        )
    found: dict[str, int] = json.loads(done.stdout)
    return found


def _resident(part: str = "") -> int:
    """Return the resident bytes of this process, or of its mappings whose file's path has this in it."""
    total, counts = 0, not part
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if "-" in line.split(" ", 1)[0]:
            counts = part in line
        elif counts and line.startswith("Pss:"):
            total += 1024 * int(line.split()[1])
    return total


def _main(folder: Path) -> None:
    import onnxruntime  # noqa: F401, PLC0415 - its own memory is no model's

    runtime, inputs = OnnxRuntime(), np.load(folder / "inputs.npy")
    before, loaded = _resident(), []
    for model in sorted((folder / "models").iterdir()):
        host = runtime.load(model)
        host.run({host.inputs[0].name: inputs})
        loaded.append(host)
    return_memory()
    print(json.dumps({"resident": _resident() - before, "mapped": _resident(f"{folder.name}/")}))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
