"""How peers' updates are trained: Adam, one cycle, the labels alone or with the full retrain's outputs beside them."""

import math
from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from sizes.cases import Problem
from sizes.post_hoc import patched

_OWN_SHARE: Final = 0.3  # of the loss, beside 0.7 of the full retrain's outputs at temperature 3, as for sprat
_WARMER: Final = 3.0
RATE: Final = 5e-3

Leaves = dict[str, Tensor]


def fit(
    problem: Problem,
    leaves: Leaves,
    change: Callable[[Leaves], Mapping[str, Tensor]],
    *,
    distilled: bool,
    rate: float = RATE,
) -> Leaves:
    """Train what an update is made of, from where it stands, and return it.

    Args:
        problem: its base stays as it is; passes and batch are the case's, as for every trained row.
        leaves: what is trained.
        change: leaves -> change of each tensor.
        distilled: whether the full retrain teaches.
        rate: peak of the learning rate.
    """
    train, module = problem.data.train, problem.trainable.module.eval()
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in leaves.items()}
    optimizer = torch.optim.Adam(leaves.values(), lr=rate)
    steps = problem.epochs * math.ceil(len(train) / problem.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    order = torch.Generator().manual_seed(problem.seed)
    for _ in range(problem.epochs):
        for batch in torch.randperm(len(train), generator=order).split(problem.batch):
            optimizer.zero_grad()
            outputs = functional_call(module, patched(problem, change(leaves)), (train.inputs[batch],))
            loss = problem.trainable.loss(outputs, train.labels[batch])
            if distilled:
                loss = _OWN_SHARE * loss + (1 - _OWN_SHARE) * _learned(outputs, problem.taught[batch])
            loss.backward()
            optimizer.step()
            schedule.step()
    return {name: leaf.detach() for name, leaf in leaves.items()}


def _learned(outputs: Tensor, taught: Tensor) -> Tensor:
    ours, theirs = (functional.log_softmax(t / _WARMER, 1) for t in (outputs, taught))
    return _WARMER**2 * functional.kl_div(ours, theirs, log_target=True, reduction="batchmean")
