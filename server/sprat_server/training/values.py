"""One integer for each value: norms, biases, and matrices that are too small, or change too much, for less."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from sprat_server.training.grid import LIMIT, integers, rms, rounded
from sprat_server.training.lesson import Lesson
from sprat_shared.wire.records import Dense
from sprat_shared.wire.scales import STEPS, nearest_scale

_STATISTIC_STEPS: Final = 8.0  # steps per root mean square of the change of a norm's statistics


@dataclass(slots=True)
class Values:
    """Real numbers behind the quantised change q of every value of a tensor, in steps; statistics are not trained."""

    name: str
    q: Tensor
    scale: int
    trained: bool = True

    def latents(self) -> list[Tensor]:
        """Return the real numbers that are trained."""
        return [self.q] if self.trained else []

    def changes(self, *, on_grid: bool) -> Mapping[str, Tensor]:
        """Return the tensor's change."""
        return {self.name: (rounded(self.q) if on_grid else self.q) * float(STEPS[self.scale])}

    def records(self, index: Mapping[str, int]) -> list[Dense]:
        """Return the record; none where all is zero."""
        q = integers(self.q).reshape(-1)
        return [Dense(index=index[self.name], scale=self.scale, q=q.astype(np.int32))] if q.any() else []


def start_values(lesson: Lesson, name: str, *, towards_teacher: bool = False) -> Values | None:
    """Start from a norm's re-estimated values, or from no change; a step is about the root mean square of the change.

    Args:
        lesson: base, teacher and norms.
        name: of the tensor.
        towards_teacher: start from the teacher's change, for a matrix.

    Returns:
        None where the teacher changes nothing.
    """
    base, shifted, wanted = lesson.base[name], lesson.norms.get(name), lesson.wanted(name)
    start = torch.zeros_like(base) if shifted is None else shifted - base
    size = rms(start) or rms(wanted)
    if not size:
        return None
    scale = nearest_scale(size)
    start = wanted if towards_teacher and shifted is None else start
    return Values(name, (start / float(STEPS[scale])).clamp(-LIMIT, LIMIT), scale)


def statistics(lesson: Lesson) -> list[Values]:
    """Quantise the statistics of norms that have no scale and bias for them to go into; what was positive stays so."""
    learned = set(lesson.learned())
    names = (spec.name for spec in lesson.source.table.specs if spec.name not in learned)
    found = (_statistic(name, lesson.base[name], lesson.norms[name]) for name in names if name in lesson.norms)
    return [part for part in found if part is not None]


def _statistic(name: str, base: Tensor, measured: Tensor) -> Values | None:
    change = measured - base
    if not (size := rms(change)):
        return None
    scale = nearest_scale(size / _STATISTIC_STEPS)
    step = float(STEPS[scale])
    q = (change / step).round().clamp(-(2**20), 2**20)
    lowest = torch.where((base > 0) & (measured > 0), ((torch.minimum(base, measured) / 2 - base) / step).ceil(), q)
    return Values(name, torch.maximum(q, lowest), scale, trained=False)
