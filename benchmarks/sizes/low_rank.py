"""What the reference trains: a low-rank change of each matrix beside the frozen weights (LoRA).

Chen et al., "Update Compression for Deep Neural Networks on the Edge", arXiv 2203.04516; Hu et al., arXiv 2106.09685.
One factor starts at random, the other at zero. Norms and biases are trained and sent too. Norms start from statistics
re-estimated on the new data, folded into scale and bias, which halves what they cost: sprat's trick, given to the peer.
"""

import math
from pathlib import Path
from typing import Final

import torch

from sizes import fitting
from sizes.cases import Problem
from sizes.fitting import Leaves, fit
from sizes.ledger import source_digest
from sizes.store import Store

RANKS: Final = (1, 2, 3, 4, 6, 8, 16, 32)
CODE: Final = (Path(__file__), Path(fitting.__file__))


def trained_factors(problem: Problem, store: Store, rank: int, *, distilled: bool) -> Leaves:
    """Return the trained factors `name|u` (m, r) and `name|v` (r, n), and the changes of tensors too small for them.

    They are trained once and kept in the store: several rows send the same factors in several ways.
    """
    name = f"low-rank-{rank}{'-distilled' if distilled else ''}-{source_digest(*CODE)}"
    return store.state(name, lambda: fit(problem, _start(problem, rank), change, distilled=distilled))


def change(leaves: Leaves) -> Leaves:
    """Return the change of each tensor, a matrix (m, n) for what has factors."""
    pairs = {name[:-2] for name in leaves if name.endswith("|u")}
    whole = {name: leaf for name, leaf in leaves.items() if "|" not in name}
    return whole | {name: leaves[f"{name}|u"] @ leaves[f"{name}|v"] for name in pairs}


def small_changes(problem: Problem) -> Leaves:
    """Return where the changes of norms and biases start: at re-estimated statistics, else at zero."""
    learned = ((name, problem.base[name]) for name, _ in problem.trainable.module.named_parameters())
    return {name: problem.norms.get(name, old) - old for name, old in learned if old.ndim <= 1}


def _start(problem: Problem, rank: int) -> Leaves:
    leaves = small_changes(problem)
    draw = torch.Generator().manual_seed(problem.seed)
    for name, _ in problem.trainable.module.named_parameters():
        old = problem.base[name]
        if name in leaves:
            continue
        rows, columns = len(old), old[0].numel()
        if rank * (rows + columns) < rows * columns and rank < min(rows, columns):
            leaves[name + "|u"] = torch.zeros(rows, rank)
            leaves[name + "|v"] = torch.randn(rank, columns, generator=draw) / math.sqrt(columns)
        else:
            leaves[name] = torch.zeros_like(old)
    return leaves
