"""The update as what is trained: integers of several encodings on their grid, from the base, towards the teacher.

A price on their magnitude makes most of them zero, and the entropy coder pays by what is left: the price decides the
bytes. The loss is the recipe's own and the distance to the teacher's outputs (distillation: Hinton et al., arXiv
1503.02531); a sample without a label has only the second.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from sprat_server.registry.samples import UNLABELLED
from sprat_server.training.grid import LIMIT, Part
from sprat_server.training.lesson import Lesson
from sprat_server.training.teacher import Progress, batches, epochs_for
from sprat_shared.wire.records import Record

_HALVES: Final = {"F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentPlan:
    """How one candidate is trained.

    Attributes:
        price: weight of the sum of magnitudes (in grid steps) in the loss.
        learning_rate: peak of the one-cycle schedule (Adam), in grid steps.
        real: share of the steps that are taken in real numbers, before the forward pass sees them rounded.
        epochs: passes over the train split; more, where it is so small that they are fewer than `min_steps`.
        batch: samples a step.
        distillation: share of the teacher's part in the loss; the rest is the recipe's own loss.
        temperature: of the distillation.
        seed: of the order.
        min_steps: see epochs.
    """

    price: float
    learning_rate: float = 0.03
    real: float = 0.0
    epochs: int = 24
    batch: int = 64
    distillation: float = 0.7
    temperature: float = 3.0
    seed: int = 0
    min_steps: int = 600


class GridStudent:
    """The base plus a trained update on its integer grid.

    Args:
        lesson: what it learns from; a tensor of 16 bits is rounded to them in the forward pass, as the device will.
        parts: of the update; no two change the same tensor.
        plan: how it learns.
    """

    def __init__(self, lesson: Lesson, parts: Sequence[Part], plan: StudentPlan) -> None:
        self._lesson, self._parts, self._plan = lesson, parts, plan
        specs = lesson.source.table.specs
        self._half = {spec.name: _HALVES[spec.dtype] for spec in specs if spec.dtype in _HALVES}
        self._latents = [latent.requires_grad_() for part in parts for latent in part.latents()]

    def weights(self, *, on_grid: bool = True) -> dict[str, Tensor]:
        """Return the whole state with the update, on the grid as the device computes it; differentiable."""
        state = dict(self._lesson.base)
        for part in self._parts:
            for name, change in part.changes(on_grid=on_grid).items():
                new = state[name] + change.view_as(state[name])
                if name in self._half:
                    new = new + (new.to(self._half[name]).float() - new).detach()
                state[name] = new
        return state

    def train(self, progress: Progress) -> None:
        """Train the update; `progress` is told after each epoch and raises to cancel."""
        plan, latents, train = self._plan, self._latents, self._lesson.train
        if not latents:
            return
        optimizer = torch.optim.Adam(latents, lr=plan.learning_rate)
        epochs = epochs_for(len(train), plan.batch, plan.epochs, plan.min_steps)
        steps = epochs * math.ceil(len(train) / plan.batch)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, plan.learning_rate, total_steps=max(steps, 2))
        order = torch.Generator().manual_seed(plan.seed)
        done = 0
        for epoch in range(epochs):
            progress(epoch / epochs, f"epoch {epoch + 1} of {epochs}")
            for batch in batches(len(train), plan.batch, order):
                optimizer.zero_grad()
                loss = self._loss(batch, on_grid=done >= plan.real * steps)
                magnitude = torch.stack([latent.abs().sum() for latent in latents]).sum()
                (loss + plan.price * magnitude).backward()
                gradients = [latent.grad for latent in latents if latent.grad is not None]
                if torch.nn.utils.get_total_norm(gradients).isfinite():  # else the step would end everything
                    optimizer.step()
                schedule.step()
                with torch.no_grad():
                    for latent in latents:
                        latent.clamp_(-LIMIT, LIMIT)
                done += 1

    def _loss(self, batch: Tensor, *, on_grid: bool) -> Tensor:
        lesson, share, t = self._lesson, self._plan.distillation, self._plan.temperature
        labels, targets = lesson.train.labels[batch], lesson.targets[batch]
        outputs = lesson.outputs(self.weights(on_grid=on_grid), lesson.train.inputs[batch])
        labelled = labels != UNLABELLED
        own = lesson.trainable.loss(outputs[labelled], labels[labelled]) if labelled.any() else outputs.new_zeros(())
        if not lesson.trainable.classifies:
            return (1 - share) * own + share * functional.mse_loss(outputs, targets)
        taught = functional.kl_div(
            functional.log_softmax(outputs / t, 1),
            functional.log_softmax(targets / t, 1),
            log_target=True,
            reduction="batchmean",
        )
        return (1 - share) * own + share * t * t * taught

    def records(self) -> list[Record]:
        """Return what is to be sent, in the order of the tensor table; a tensor that did not change has no record."""
        index = {spec.name: position for position, spec in enumerate(self._lesson.source.table.specs)}
        found = [record for part in self._parts for record in part.records(index)]
        return sorted(found, key=lambda record: record.index)
