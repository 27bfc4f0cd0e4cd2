"""Low-rank factors: a matrix changes by the product of two thin integer matrices (record kind 0).

The matrix view is (m, n), convolutions as out x (in * k * k): W + (U @ V) * step with integers U (m, r), V (r, n).
Components that the price makes zero are not sent: the price, not the rank, decides the bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from sprat_server.training.grid import LIMIT, Part, integers, matrix_shape, rms, rounded
from sprat_server.training.lesson import Lesson
from sprat_server.training.values import start_values, statistics
from sprat_shared.wire.records import LowRank
from sprat_shared.wire.scales import STEPS, nearest_scale

_COARSE: Final = 2.0  # steps per standard deviation at the start: about ternary
_WHOLE_SVD: Final = 512  # above this the leading directions are found at random (Halko et al., arXiv 0909.4061)


@dataclass(slots=True)
class Factors:
    """Real numbers behind the factors u (m, r) and v (r, n), in grid steps; the product is worth a step of `scale`."""

    name: str
    u: Tensor
    v: Tensor
    scale: int

    def latents(self) -> list[Tensor]:
        """Return the real numbers that are trained."""
        return [self.u, self.v]

    def changes(self, *, on_grid: bool) -> Mapping[str, Tensor]:
        """Return the change of the tensor's matrix view."""
        u, v = (rounded(self.u), rounded(self.v)) if on_grid else (self.u, self.v)
        return {self.name: (u @ v) * float(STEPS[self.scale])}

    def records(self, index: Mapping[str, int]) -> list[LowRank]:
        """Return the record, without the components that are zero; none where all are."""
        u, v = integers(self.u), integers(self.v)
        alive = u.any(axis=0) & v.any(axis=1)
        if not alive.any():
            return []
        u, v = np.ascontiguousarray(u[:, alive]), np.ascontiguousarray(v[alive])
        return [LowRank(index=index[self.name], scale=self.scale, u=u.astype(np.int8), v=v.astype(np.int8))]


def factor_parts(lesson: Lesson, rank: int | None) -> list[Part]:
    """Return factors for each matrix that they are smaller than, and values for the rest.

    Args:
        lesson: base, teacher, norms.
        rank: upper bound; None makes values of all.
    """
    parts: list[Part] = [*statistics(lesson)]
    for name in lesson.learned():
        part = start_part(lesson, name, rank)
        if part is not None:
            parts.append(part)
    return parts


def start_part(lesson: Lesson, name: str, rank: int | None) -> Part | None:
    """Return a tensor's factors, or values where factors of this rank are no smaller; None where nothing changes."""
    rows, columns = matrix_shape(lesson.base[name])
    if lesson.base[name].ndim <= 1 or name in lesson.norms:
        return start_values(lesson, name)
    within = min(rank or rows, rows, columns)
    if rank is None or within * (rows + columns) >= rows * columns:
        return start_values(lesson, name, towards_teacher=True)
    return _start_factors(name, lesson.wanted(name).reshape(rows, columns), within)


def _start_factors(name: str, wanted: Tensor, rank: int) -> Factors | None:
    """Start from the leading singular directions of the teacher's change, about ternary on the grid."""
    if min(wanted.shape) > _WHOLE_SVD:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            left, values, right = torch.svd_lowrank(wanted, q=rank + 8, niter=4)
        right = right.T
    else:
        left, values, right = torch.linalg.svd(wanted, full_matrices=False)
    u, v = left[:, :rank] * values[:rank].sqrt(), values[:rank].sqrt()[:, None] * right[:rank]
    unit_u, unit_v = _COARSE * rms(u), _COARSE * rms(v)
    if unit_u * unit_v == 0:
        return None
    return Factors(
        name=name,
        u=(u / unit_u).clamp(-LIMIT, LIMIT).contiguous(),
        v=(v / unit_v).clamp(-LIMIT, LIMIT).contiguous(),
        scale=nearest_scale(unit_u * unit_v),
    )
