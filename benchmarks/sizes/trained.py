"""The reference's way: freeze the deployed weights, train a low-rank change, send its factors in fp16 (LoRA).

Chen et al., "Update Compression for Deep Neural Networks on the Edge", arXiv 2203.04516; Hu et al., arXiv 2106.09685.
One factor starts at random, the other at zero. Norms and biases are trained and sent too. Norms start from statistics
re-estimated on the new data, folded into scale and bias, which halves what they cost: sprat's trick, given to the peer.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from sizes.cases import Problem
from sizes.method import Method, Sent
from sizes.post_hoc import halves, patched, squeezed
from sprat_server.training.factors import teacher_outputs

_RANKS: Final = {f"rank {rank}": rank for rank in (1, 2, 3, 4, 6, 8, 16, 32)}
_EPOCHS, _BATCH, _RATE, _WARMER = 20, 64, 5e-3, 3.0
_OWN_SHARE: Final = 0.3  # of the loss, beside 0.7 of the full retrain's outputs at temperature 3, as for sprat


def _train(*, distilled: bool, problem: Problem, settings: Sequence[str], folder: Path) -> Iterator[Sent]:
    del folder
    targets = teacher_outputs(problem.trainable, problem.teacher, problem.data.train)
    for setting in settings:
        leaves = _start(problem, _RANKS[setting])
        _fit(problem, leaves, targets if distilled else None)
        rounded, data = halves({name: leaf.detach() for name, leaf in leaves.items()})
        yield Sent(setting, squeezed(data), patched(problem, _change(rounded)))


def _start(problem: Problem, rank: int) -> dict[str, Tensor]:
    """Return the trainable factors `name|u`, `name|v`, and the changes of tensors too small for factors."""
    leaves: dict[str, Tensor] = {}
    draw = torch.Generator().manual_seed(problem.seed)
    for name, _ in problem.trainable.module.named_parameters():
        old = problem.base[name]
        rows, columns = (len(old), old[0].numel()) if old.ndim > 1 else (0, 0)
        if rank * (rows + columns) < rows * columns and rank < min(rows, columns):
            leaves[name + "|u"] = torch.zeros(rows, rank)
            leaves[name + "|v"] = torch.randn(rank, columns, generator=draw) / math.sqrt(columns)
        else:
            leaves[name] = problem.norms.get(name, old) - old
    return {name: leaf.requires_grad_() for name, leaf in leaves.items()}


def _change(leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    pairs = {name[:-2] for name in leaves if name.endswith("|u")}
    whole = {name: leaf for name, leaf in leaves.items() if "|" not in name}
    return whole | {name: leaves[f"{name}|u"] @ leaves[f"{name}|v"] for name in pairs}


def _fit(problem: Problem, leaves: dict[str, Tensor], targets: Tensor | None) -> None:
    train, module = problem.data.train, problem.trainable.module.eval()
    optimizer = torch.optim.Adam(leaves.values(), lr=_RATE)
    steps = _EPOCHS * math.ceil(len(train) / _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps)
    order = torch.Generator().manual_seed(problem.seed)
    for _ in range(_EPOCHS):
        for batch in torch.randperm(len(train), generator=order).split(_BATCH):
            optimizer.zero_grad()
            outputs = functional_call(module, patched(problem, _change(leaves)), (train.inputs[batch],))
            loss = problem.trainable.loss(outputs, train.labels[batch])
            if targets is not None:
                loss = _OWN_SHARE * loss + (1 - _OWN_SHARE) * _taught(outputs, targets[batch])
            loss.backward()
            optimizer.step()
            schedule.step()


def _taught(outputs: Tensor, targets: Tensor) -> Tensor:
    ours, theirs = (functional.log_softmax(t / _WARMER, 1) for t in (outputs, targets))
    return _WARMER**2 * functional.kl_div(ours, theirs, log_target=True, reduction="batchmean")


def _method(key: str, title: str, *, distilled: bool) -> Method:
    def sweep(problem: Problem, settings: Sequence[str], folder: Path) -> Iterator[Sent]:
        return _train(distilled=distilled, problem=problem, settings=settings, folder=folder)

    return Method(key=key, title=title, ours=False, settings=tuple(_RANKS), sweep=sweep, code=(Path(__file__),))


METHODS: Final = (
    _method("low-rank", "trained low rank fp16 (the reference's way)", distilled=False),
    _method("low-rank-distilled", "trained low rank fp16, distilled", distilled=True),
)
