"""LoRA adapters out of the PEFT library itself, in fp16, trained in an environment of its own.

Adapters on every layer that PEFT has them for, and its `bias="all"`: biases of layers and norms are trained and sent
too. It is the library as one uses it: scales of norms stay, no re-estimated statistics are folded in, nobody teaches.
"""

import copy
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import torch

from sizes import fitting
from sizes.cases import Problem
from sizes.environments import Environment, Unavailable
from sizes.fitting import RATE
from sizes.method import Method, Sent
from sizes.store import Store

_RANKS: Final = {f"rank {rank}": rank for rank in (1, 2, 3, 4, 6, 8, 16, 32)}
_SCRIPT: Final = Path(__file__).with_name("peft_script.py")
ENVIRONMENT: Final = Environment(name="peft", packages=("torch==2.13.0", "peft==0.21.2"), check="import peft")


def _sweep(problem: Problem, settings: Sequence[str], store: Store) -> Iterator[Sent]:
    folder, train = store.scratch("peft"), problem.data.train
    job, module, out = (folder / name for name in ("job.pt", "module.pt", "merged"))
    by_rank = {_RANKS[setting]: setting for setting in settings}
    fresh = copy.deepcopy(problem.trainable.module).eval()
    fresh.load_state_dict(dict(problem.base))
    torch.save(fresh, module)
    what = {
        "path": [entry for entry in sys.path if entry],
        "module": str(module),
        "out": str(out),
        "ranks": list(by_rank),
        "inputs": train.inputs,
        "labels": train.labels,
        "epochs": problem.epochs,
        "batch": problem.batch,
        "seed": problem.seed,
        "rate": RATE,
    }
    torch.save(what, job)
    pipe = subprocess.PIPE
    command = [str(ENVIRONMENT.python), str(_SCRIPT), str(job)]
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout  # a pipe was asked for
        for line in process.stdout:
            rank, size = map(int, line.split())
            merged = Path(f"{out}.{rank}.pt")
            state = torch.load(merged, weights_only=True)
            merged.unlink()
            yield Sent(by_rank[rank], size, {name: state[name] for name in problem.base})
        errors = process.stderr.read() if process.stderr else ""
    if process.returncode:
        print(errors, file=sys.stderr)
        raise Unavailable(f"PEFT failed: {errors.splitlines()[-1] if errors else process.returncode}")


METHODS: Final = (
    Method(
        key="peft",
        title="PEFT LoRA fp16 (the library, with biases)",
        ours=False,
        settings=tuple(_RANKS),
        sweep=_sweep,
        code=(Path(__file__), _SCRIPT, Path(fitting.__file__)),
        environment=ENVIRONMENT,
    ),
)
