"""A hashed subspace: a few coefficients that all trained matrices share change every value of them (record kind 5).

Value i changes by one coefficient or its negative, in steps of its tensor; which one and with which sign writer and
reader draw alike (docs/wire-format.md, section 4.1). A coefficient says nothing about *where* it acts, which is what
the factors of a small update spend most of their bytes on. Weight hashing (Chen et al., arXiv 1504.04788) of the
change, as a random subspace of it (Li et al., arXiv 1804.08838).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from sprat_server.training.factors import start_part
from sprat_server.training.grid import Part, integers, rms, rounded
from sprat_server.training.lesson import Lesson
from sprat_server.training.states import tied_names
from sprat_server.training.values import statistics
from sprat_shared.wire.drawn import subspace_of
from sprat_shared.wire.records import Subspace
from sprat_shared.wire.scales import STEPS, nearest_scale

SEED: Final = 0  # of the file: a small number takes few bytes, and the best of several would be luck
_LONGER: Final = 0.178  # measured: 4 at 260,000 values, 2 to 3 at 30,000
_EMBEDDING_RANK: Final = 8


@dataclass(slots=True)
class _Tensor:
    """One tensor of the subspace: its scale, and the slot and sign of each of its values, (size,)."""

    name: str
    scale: int
    slots: Tensor
    signs: Tensor


class Hashed:
    """Real numbers behind the coefficients q (count,), in steps, and the tensors that they change."""

    def __init__(self, lesson: Lesson, names: Sequence[str], count: int) -> None:
        index = {spec.name: position for position, spec in enumerate(lesson.source.table.specs)}
        # A random direction must be longer than the teacher's change to do the same, the more so the more there are.
        longer = _LONGER * sum(lesson.base[name].numel() for name in names) ** 0.25
        self._tensors = []
        for name in names:
            size = rms(lesson.wanted(name))
            if size:
                slots, signs = subspace_of(SEED, index[name], lesson.base[name].numel(), count)
                self._tensors.append(
                    _Tensor(
                        name, nearest_scale(longer * size), torch.from_numpy(slots), torch.from_numpy(signs).float()
                    )
                )
        self._q = torch.zeros(count)

    def latents(self) -> list[Tensor]:
        """Return the real numbers that are trained."""
        return [self._q] if self._tensors else []

    def changes(self, *, on_grid: bool) -> Mapping[str, Tensor]:
        """Return the change of each tensor, flat."""
        q = rounded(self._q) if on_grid else self._q
        return {tensor.name: q[tensor.slots] * (tensor.signs * float(STEPS[tensor.scale])) for tensor in self._tensors}

    def records(self, index: Mapping[str, int]) -> list[Subspace]:
        """Return a record for each tensor; none where all coefficients are zero."""
        q = integers(self._q).astype(np.int16)
        if not q.any():
            return []
        return [Subspace(index=index[tensor.name], scale=tensor.scale, seed=SEED, q=q) for tensor in self._tensors]


def subspace_parts(lesson: Lesson, count: int) -> list[Part]:
    """Return one subspace of all matrices but embeddings, and what `factor_parts` has for the rest.

    Of an embedding only the rows change whose tokens occur; a subspace would change all of them.

    Args:
        lesson: base, teacher, norms.
        count: of the coefficients, 1 to 2**20.
    """
    module = lesson.trainable.module
    tied = tied_names(module)
    looked_up = (name for name, part in module.named_modules() if isinstance(part, nn.Embedding | nn.EmbeddingBag))
    embeddings = {tied.get(name, name) for name in (f"{prefix}.weight".removeprefix(".") for prefix in looked_up)}
    matrices = [
        name
        for name in lesson.learned()
        if lesson.base[name].ndim > 1 and name not in embeddings and name not in lesson.norms
    ]
    rest = (start_part(lesson, name, _EMBEDDING_RANK) for name in lesson.learned() if name not in matrices)
    return [*statistics(lesson), Hashed(lesson, matrices, count), *(part for part in rest if part is not None)]
