"""The update as what is trained: integer factors on their grid, from the base, towards the teacher.

Every trained tensor W gets one record of the wire format (docs/wire-format.md): for a matrix view (m, n), convolutions
as out x (in * k * k), W + (U @ V) * step with integers U (m, r), V (r, n); for the rest W + q * step. What is trained
are real numbers behind U, V and q; the forward pass sees them rounded, the gradient passes the rounding unchanged
(straight-through: Bengio et al., arXiv 1308.3432). A price on their magnitude makes most of them zero, and the
entropy coder pays by what is left: the price, not the rank, decides the bytes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from sprat_server.training.data import Samples
from sprat_server.training.recipes import Trainable
from sprat_server.training.teacher import Progress, batches, epochs_for
from sprat_shared.wire.records import Dense, LowRank
from sprat_shared.wire.scales import STEPS, nearest_scale
from sprat_shared.wire.tensors import TensorTable

LIMIT: Final = 127
_COARSE: Final = 2.0  # steps per standard deviation at the start: about ternary
_STATISTIC_STEPS: Final = 8.0  # steps per root mean square of the change of a norm's statistics
_MATRIX: Final = 2
_WHOLE_SVD: Final = 512  # above this the leading directions are found at random (Halko et al., arXiv 0909.4061)


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorPlan:
    """How one candidate is trained.

    Attributes:
        rank: upper bound of each matrix's rank; components that end at zero are not sent.
        price: weight of the sum of magnitudes (in grid steps) in the loss.
        epochs: passes over the train split; more, where it is so small that they are fewer than `min_steps`.
        batch: samples a step.
        learning_rate: peak of the one-cycle schedule (Adam), in grid steps.
        distillation: share of the teacher's part in the loss; the rest is the recipe's own loss.
        temperature: of the distillation.
        seed: of the order.
        min_steps: see epochs.
    """

    rank: int
    price: float
    epochs: int = 24
    batch: int = 64
    learning_rate: float = 0.03
    distillation: float = 0.7
    temperature: float = 3.0
    seed: int = 0
    min_steps: int = 600


def _round(x: Tensor) -> Tensor:
    """Round to the grid; the gradient passes unchanged."""
    return x + (x.round() - x).detach()


@dataclass(slots=True)
class _Matrix:
    """Real numbers behind the factors u (m, r) and v (r, n), in grid steps; the product is worth `step`."""

    u: Tensor
    v: Tensor
    scale: int

    def latents(self) -> list[Tensor]:
        return [self.u, self.v]

    def change(self, like: Tensor) -> Tensor:
        return ((_round(self.u) @ _round(self.v)) * float(STEPS[self.scale])).view_as(like)

    def record(self, index: int) -> LowRank | None:
        u, v = _integers(self.u), _integers(self.v)
        alive = u.any(axis=0) & v.any(axis=1)
        if not alive.any():
            return None
        u, v = np.ascontiguousarray(u[:, alive]), np.ascontiguousarray(v[alive])
        return LowRank(index=index, scale=self.scale, u=u.astype(np.int8), v=v.astype(np.int8))


@dataclass(slots=True)
class _Values:
    """Real numbers behind the quantised change q of every element, in steps; statistics are not trained."""

    q: Tensor
    scale: int
    trained: bool = True

    def latents(self) -> list[Tensor]:
        return [self.q] if self.trained else []

    def change(self, like: Tensor) -> Tensor:
        return (_round(self.q) * float(STEPS[self.scale])).view_as(like)

    def record(self, index: int) -> Dense | None:
        q = _integers(self.q).reshape(-1)
        return Dense(index=index, scale=self.scale, q=q.astype(np.int32)) if q.any() else None


class GridStudent:
    """The base plus a trained update on its integer grid.

    Args:
        trainable: the module in the base's weights (float32), evaluation mode.
        base: its state by name (float32 where the release's tensor is a float of any width).
        teacher: the full retrain's state.
        norms: new values of batch norm tensors (`norms.shifted_norms`): where their records start.
        table: the tensor table; a tensor of 16 bits is rounded to them in the forward pass, as the device will.
        plan: rank and price.
    """

    def __init__(
        self,
        trainable: Trainable,
        *,
        base: Mapping[str, Tensor],
        teacher: Mapping[str, Tensor],
        norms: Mapping[str, Tensor],
        table: TensorTable,
        plan: FactorPlan,
    ) -> None:
        self._trainable, self._base, self._teacher, self._plan = trainable, base, teacher, plan
        self._half = {
            spec.name: {"F16": torch.float16, "BF16": torch.bfloat16}[spec.dtype]
            for spec in table.specs
            if spec.dtype in {"F16", "BF16"}
        }
        self._index = {spec.name: index for index, spec in enumerate(table.specs)}
        self._parts: dict[str, _Matrix | _Values] = {}
        learned = {name for name, p in trainable.module.named_parameters(remove_duplicate=False) if p.requires_grad}
        for name in self._index:
            if name in learned or name in norms:
                measured = None if name in learned else norms.get(name)
                part = (
                    self._start(name, norms.get(name)) if measured is None else _statistics(self._base[name], measured)
                )
                if part is not None:
                    self._parts[name] = part
        for latent in self._latents():
            latent.requires_grad_()

    def _start(self, name: str, shifted: Tensor | None) -> _Matrix | _Values | None:
        base, wanted = self._base[name], self._teacher[name] - self._base[name]
        if base.numel() == 0:
            return None
        rank = min(self._plan.rank, *_matrix_shape(base)) if base.ndim >= _MATRIX else 0
        rows, columns = _matrix_shape(base)
        if base.ndim >= _MATRIX and rank * (rows + columns) < rows * columns:
            return _start_matrix(wanted.reshape(rows, columns), rank)
        start = torch.zeros_like(base) if shifted is None else shifted - base
        size = _rms(start) or _rms(wanted)
        if size == 0:
            return None
        scale = nearest_scale(size)
        return _Values(q=(start / float(STEPS[scale])).clamp(-LIMIT, LIMIT), scale=scale)

    def _latents(self) -> list[Tensor]:
        return [latent for part in self._parts.values() for latent in part.latents()]

    def weights(self) -> dict[str, Tensor]:
        """Return the whole state with the update on the grid, as the device computes it; differentiable."""
        state = dict(self._base)
        for name, part in self._parts.items():
            new = state[name] + part.change(state[name])
            if name in self._half:
                new = new + (new.to(self._half[name]).float() - new).detach()
            state[name] = new
        return state

    def train(self, train: Samples, targets: Tensor, progress: Progress) -> None:
        """Train the update.

        Args:
            train: the train split.
            targets: the teacher's outputs on it, (n, ...).
            progress: told after each epoch; raises to cancel.
        """
        plan, latents = self._plan, self._latents()
        if not latents:
            return
        optimizer = torch.optim.Adam(latents, lr=plan.learning_rate)
        epochs = epochs_for(len(train), plan.batch, plan.epochs, plan.min_steps)
        steps = epochs * math.ceil(len(train) / plan.batch)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, plan.learning_rate, total_steps=max(steps, 2))
        order = torch.Generator().manual_seed(plan.seed)
        module = self._trainable.module.eval()
        for epoch in range(epochs):
            progress(epoch / epochs, f"epoch {epoch + 1} of {epochs}")
            for batch in batches(len(train), plan.batch, order):
                optimizer.zero_grad()
                outputs = functional_call(module, self.weights(), (train.inputs[batch],))
                loss = self._loss(outputs, train.labels[batch], targets[batch])
                magnitude = torch.stack([latent.abs().sum() for latent in latents]).sum()
                (loss + plan.price * magnitude).backward()
                gradients = [latent.grad for latent in latents if latent.grad is not None]
                if torch.nn.utils.get_total_norm(gradients).isfinite():  # else the step would end everything
                    optimizer.step()
                schedule.step()
                with torch.no_grad():
                    for latent in latents:
                        latent.clamp_(-LIMIT, LIMIT)

    def _loss(self, outputs: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
        own = self._trainable.loss(outputs, labels)
        share, t = self._plan.distillation, self._plan.temperature
        if not self._trainable.classifies:
            return (1 - share) * own + share * functional.mse_loss(outputs, targets)
        taught = functional.kl_div(
            functional.log_softmax(outputs / t, 1),
            functional.log_softmax(targets / t, 1),
            log_target=True,
            reduction="batchmean",
        )
        return (1 - share) * own + share * t * t * taught

    def records(self) -> list[LowRank | Dense]:
        """Return what is to be sent, in the order of the tensor table; a tensor that did not change has no record."""
        found = (self._parts[name].record(index) for name, index in self._index.items() if name in self._parts)
        return [record for record in found if record is not None]


def teacher_outputs(trainable: Trainable, teacher: Mapping[str, Tensor], train: Samples) -> Tensor:
    """Return the teacher's outputs on the train split, (n, ...)."""
    module = trainable.module.eval()
    with torch.no_grad():
        return torch.cat([functional_call(module, dict(teacher), (part,)) for part in train.inputs.split(256)])


def _start_matrix(wanted: Tensor, rank: int) -> _Matrix | None:
    """Start from the leading singular directions of the teacher's change, about ternary on the grid."""
    if min(wanted.shape) > _WHOLE_SVD:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            left, values, right = torch.svd_lowrank(wanted, q=rank + 8, niter=4)
        right = right.T
    else:
        left, values, right = torch.linalg.svd(wanted, full_matrices=False)
    u, v = left[:, :rank] * values[:rank].sqrt(), values[:rank].sqrt()[:, None] * right[:rank]
    unit_u, unit_v = _COARSE * _rms(u), _COARSE * _rms(v)
    if unit_u * unit_v == 0:
        return None
    scale = nearest_scale(unit_u * unit_v)
    return _Matrix(
        u=(u / unit_u).clamp(-LIMIT, LIMIT).contiguous(), v=(v / unit_v).clamp(-LIMIT, LIMIT).contiguous(), scale=scale
    )


def _statistics(base: Tensor, measured: Tensor) -> _Values | None:
    """Quantise a norm's own statistics, which have no scale and bias to go into; what was positive stays so."""
    change = measured - base
    if not (size := _rms(change)):
        return None
    scale = nearest_scale(size / _STATISTIC_STEPS)
    step = float(STEPS[scale])
    q = (change / step).round().clamp(-(2**20), 2**20)
    lowest = torch.where((base > 0) & (measured > 0), ((torch.minimum(base, measured) / 2 - base) / step).ceil(), q)
    return _Values(q=torch.maximum(q, lowest), scale=scale, trained=False)


def _matrix_shape(tensor: Tensor) -> tuple[int, int]:
    return (tensor.shape[0], tensor[0].numel()) if tensor.ndim >= _MATRIX else (tensor.numel(), 1)


def _rms(tensor: Tensor) -> float:
    return float(tensor.double().square().mean().sqrt())


def _integers(latent: Tensor) -> "np.ndarray[Any, np.dtype[np.int64]]":
    return latent.detach().round().to(torch.int64).numpy()
