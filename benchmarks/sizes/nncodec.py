"""NNCodec (ISO/IEC 15938-17), in an environment of its own.

It is measured here and is no part of sprat: its licence grants no patents. Where its environment cannot be made, its
rows are left out with a message. What is given to the coder: float32 tensors, the full difference or trained factors.
What counts: the length of its bitstream, decoded by its own decoder.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from sizes.cases import Problem
from sizes.environments import Environment, Unavailable
from sizes.method import Method, Sent
from sizes.post_hoc import deltas, patched
from sizes.store import Store

_QPS: Final = {f"qp {qp}": qp for qp in range(-42, -13, 2)}
_FINEST: Final = -44  # of what is no matrix
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
for given, taken, qp, other in json.loads(sys.argv[1]):
    with np.load(given) as file:
        tensors = {name: file[name] for name in file.files}
    with contextlib.redirect_stdout(io.StringIO()):
        args = {"qp": qp, "nonweight_qp": other, "use_dq": True, "verbose": False}
        stream = nncodec.nn.encode(tensors, args=args)
        decoded = nncodec.nn.decode(stream, args={"verbose": False})
    np.savez(taken, **{name: np.asarray(value) for name, value in decoded.items()})
    print(len(stream), flush=True)
"""
ENVIRONMENT: Final = Environment(
    name="nncodec", packages=("torch==2.13.0", "torchvision<0.29", "nncodec==2.1.3"), check=_IMPORTS
)


def coded(
    asked: Mapping[str, tuple[Mapping[str, Tensor], int, int]], folder: Path
) -> Iterator[tuple[str, int, dict[str, Tensor]]]:
    """Yield the bytes of each bitstream, and the tensors that decoding it gives.

    Args:
        asked: name -> tensors, quantisation parameter of matrices, the same of all else.
        folder: for files of its own.

    Raises:
        Unavailable: NNCodec is not there, or failed.
    """
    jobs, files = [], dict[int, Path]()
    for number, (tensors, qp, other) in enumerate(asked.values()):
        if id(tensors) not in files:
            files[id(tensors)] = folder / f"given-{number}.npz"
            arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
            np.savez(files[id(tensors)], **arrays)
        jobs.append((str(files[id(tensors)]), str(folder / f"taken-{number}.npz"), qp, other))
    command = [str(ENVIRONMENT.python), "-c", _IMPORTS + _SCRIPT, json.dumps(jobs)]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,  # it writes files where it stands
    ) as process:
        assert process.stdout  # a pipe was asked for
        for name, job, line in zip(asked, jobs, process.stdout, strict=False):
            with np.load(job[1]) as file:
                decoded = {key: torch.from_numpy(file[key]).float() for key in file.files}
            Path(job[1]).unlink()
            yield name, int(line), decoded
        errors = process.stderr.read() if process.stderr else ""
    for given in files.values():
        given.unlink()
    if process.returncode:
        print(errors, file=sys.stderr)
        raise Unavailable(f"NNCodec failed: {errors.splitlines()[-1] if errors else process.returncode}")


def _sweep(problem: Problem, settings: Sequence[str], store: Store) -> Iterator[Sent]:
    change = deltas(problem)
    asked = {setting: (change, _QPS[setting], _FINEST) for setting in settings}
    for setting, size, decoded in coded(asked, store.scratch("nncodec")):
        yield Sent(setting, size, patched(problem, decoded))


METHODS: Final = (
    Method(
        key="nncodec",
        title="NNCodec 2.1.3 (ISO/IEC 15938-17)",
        ours=False,
        settings=tuple(_QPS),
        sweep=_sweep,
        code=(Path(__file__),),
        environment=ENVIRONMENT,
    ),
)
