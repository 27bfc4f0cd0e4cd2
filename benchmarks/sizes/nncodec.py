"""NNCodec (ISO/IEC 15938-17) on the full difference, in an environment of its own.

It is measured here and is no part of sprat: its licence grants no patents. The environment is made in the cache folder
the first time (about a gigabyte); where it cannot be made, the row is left out with a message. What is given to the
coder: one file of float32 differences. What counts: the length of its bitstream, decoded by its own decoder.
"""

import json
import os
import subprocess
import sys
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from sizes.cases import Problem
from sizes.method import Method, Sent, Unavailable
from sizes.post_hoc import deltas, patched

PYTHON: Final = "SPRAT_BENCH_NNCODEC"
"""Environment variable that hands the environment's Python to the measuring processes."""

PACKAGES: Final = ("torch==2.13.0", "torchvision<0.29", "nncodec==2.1.3")
_QPS: Final = {f"qp {qp}": qp for qp in range(-42, -13, 2)}
# torchvision beside a torch built for CPUs only has no such operator, and cannot be imported without one of the name.
_IMPORTS: Final = """
import contextlib, io, json, sys
import numpy as np
import torch
operators = torch.library.Library("torchvision", "FRAGMENT")
for name in ("nms", "qnms"):
    with contextlib.suppress(RuntimeError):
        operators.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import nncodec.nn
torch.set_num_threads(1)
"""
_SCRIPT: Final = """
given, qps = sys.argv[1], json.loads(sys.argv[2])
with np.load(given) as file:
    delta = {name: file[name] for name in file.files}
for qp in qps:
    with contextlib.redirect_stdout(io.StringIO()):
        stream = nncodec.nn.encode(dict(delta), args={"qp": qp, "nonweight_qp": -44, "use_dq": True, "verbose": False})
        decoded = nncodec.nn.decode(stream, args={"verbose": False})
    np.savez(f"{given}.{qp}.npz", **{name: np.asarray(value) for name, value in decoded.items()})
    print(json.dumps({"qp": qp, "bytes": len(stream)}), flush=True)
"""


def environment(folder: Path) -> Path:
    """Return the Python of an environment that has NNCodec, made in `folder` where it is not there yet.

    Raises:
        Unavailable: it cannot be made; the message has pip's last lines.
    """
    python, ready = folder / "bin" / "python", folder / ".ready"
    if ready.exists():
        return python
    if not python.exists():
        venv.create(folder, with_pip=True)
    command = [str(python), "-m", "pip", "install", "--quiet", *PACKAGES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        done = subprocess.run([str(python), "-c", _IMPORTS], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable("NNCodec cannot be installed: " + " / ".join(done.stderr.splitlines()[-3:]))
    ready.touch()
    return python


def _sweep(problem: Problem, settings: Sequence[str], folder: Path) -> Iterator[Sent]:
    python = Path(os.environ[PYTHON])
    given = folder / "delta.npz"
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in deltas(problem).items()}
    np.savez(given, **arrays)
    by_qp = {_QPS[setting]: setting for setting in settings}
    command = [str(python), "-c", _IMPORTS + _SCRIPT, str(given), json.dumps(list(by_qp))]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,  # it writes files where it stands
    ) as process:
        assert process.stdout  # a pipe was asked for
        for line in process.stdout:
            row = json.loads(line)
            path = Path(f"{given}.{row['qp']}.npz")
            with np.load(path) as file:
                decoded = {name: torch.from_numpy(file[name]).float() for name in file.files}
            path.unlink()
            yield Sent(by_qp[row["qp"]], row["bytes"], patched(problem, decoded))
        errors = process.stderr.read() if process.stderr else ""
    if process.returncode:
        print(errors, file=sys.stderr)
        raise Unavailable(f"NNCodec failed: {errors.splitlines()[-1] if errors else process.returncode}")


METHODS: Final = (
    Method(
        key="nncodec",
        title="NNCodec 2.1.3 (ISO/IEC 15938-17)",
        ours=False,
        settings=tuple(_QPS),
        sweep=_sweep,
        code=(Path(__file__),),
    ),
)
