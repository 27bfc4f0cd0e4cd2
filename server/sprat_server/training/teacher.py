"""The full retrain: every weight free, from the base. It is the teacher of the update, and is not released."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from sprat_server.training.data import Samples, TrainingData
from sprat_server.training.evaluate import scores
from sprat_server.training.recipes import Trainable
from sprat_server.training.states import module_tensors
from sprat_shared.errors import InvalidInput

Progress = Callable[[float, str], None]
"""Told the fraction done of the present step, and a sentence. It raises to stop the work (cancel)."""

_SMALLER: Final = 10.0
_TRIES: Final = 3


class NothingToLearn(InvalidInput):
    """The full retrain is not better than the base: there is no gain to send."""

    code = "retrain.no-gain"


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherPlan:
    """How the full retrain runs.

    Attributes:
        epochs: passes over the train split; more, where it is so small that they are fewer than `min_steps`.
        batch: samples a step.
        learning_rate: peak of the one-cycle schedule (AdamW); lowered tenfold, twice, while it does not help.
        weight_decay: decoupled, of AdamW.
        seed: of order and dropout.
        min_steps: see epochs.
    """

    epochs: int = 10
    batch: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    seed: int = 0
    min_steps: int = 300


def train_teacher(
    trainable: Trainable, data: TrainingData, plan: TeacherPlan, progress: Progress, *, old: Samples | None = None
) -> dict[str, Tensor]:
    """Train all weights of the module from where they are and return the new state (float32).

    The module itself is left as it was.

    Args:
        trainable: its module in the base's weights.
        data: train split, with what is replayed in it, and validation split of the new domain.
        plan: how.
        progress: told the fraction done; raises to cancel.
        old: validation split of an old domain that is to be kept: more must be gained than is lost there.

    Raises:
        NothingToLearn: no learning rate tried gives a better validation score than the base.
    """
    module = trainable.module
    base = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    before = float(scores(trainable, {}, data.validation).mean())
    before_old = 0.0 if old is None else float(scores(trainable, {}, old).mean())
    rate, best, lost = plan.learning_rate, before, 0.0
    try:
        for _ in range(_TRIES):
            _fit(trainable, data.train, plan, rate, progress)
            state = {name: tensor.clone() for name, tensor in module_tensors(module).items()}
            after = float(scores(trainable, state, data.validation).mean())
            fall = 0.0 if old is None else before_old - float(scores(trainable, state, old).mean())
            finite = all(bool(t.isfinite().all()) for t in state.values() if t.is_floating_point())
            if after > before and after - before > fall and finite:
                return state
            best, lost = max((best, lost), (after, fall))
            module.load_state_dict(base)
            rate /= _SMALLER
    finally:
        module.load_state_dict(base)
        module.eval()
    if old is not None and best > before:
        raise NothingToLearn(
            f"a full retrain gains {best - before:.4f} on the validation split and loses {lost:.4f} on what is to be "
            "retained; give more data of both, or retrain without what is old"
        )
    raise NothingToLearn(
        f"a full retrain reaches {best:.4f} on the validation split, the base has {before:.4f} already; "
        "there is nothing to send (check the labels, or give more data or epochs)"
    )


def _fit(trainable: Trainable, train: Samples, plan: TeacherPlan, rate: float, progress: Progress) -> None:
    module = trainable.module
    trained = [p for p in module.parameters() if p.requires_grad]
    if not trained:
        raise InvalidInput("every parameter of the recipe's module is frozen; there is nothing to train")
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=plan.weight_decay)
    epochs = epochs_for(len(train), plan.batch, plan.epochs, plan.min_steps)
    steps = epochs * math.ceil(len(train) / plan.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=max(steps, 2))
    order = torch.Generator().manual_seed(plan.seed)
    with torch.random.fork_rng(devices=[]):  # dropout draws from torch's own generator
        torch.manual_seed(plan.seed)
        module.train()
        for epoch in range(epochs):
            progress(epoch / epochs, f"full retrain, epoch {epoch + 1} of {epochs}")
            for batch in batches(len(train), plan.batch, order):
                optimizer.zero_grad()
                trainable.loss(module(train.inputs[batch]), train.labels[batch]).backward()
                optimizer.step()
                schedule.step()
    progress(1.0, f"full retrain, {epochs} epochs done")


def epochs_for(samples: int, batch: int, epochs: int, min_steps: int) -> int:
    """Return `epochs`, or as many as give `min_steps` steps."""
    return max(epochs, math.ceil(min_steps / math.ceil(samples / batch)))


def batches(samples: int, size: int, order: torch.Generator) -> Iterator[Tensor]:
    """Yield the indices 0..samples-1 in random order, `size` at a time; a last batch of one sample is left out.

    Batch norm has no variance to compute from one sample.
    """
    for batch in torch.randperm(samples, generator=order).split(size):
        if len(batch) > 1 or samples == 1:
            yield batch


def is_batch_norm(module: nn.Module) -> bool:
    """Say whether the module is a batch norm that keeps running statistics."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats  # noqa: SLF001 - the common base
