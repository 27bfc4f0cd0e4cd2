"""LoRA-XS (Bałazy et al., arXiv 2405.17604): a small trained core between the base's leading singular vectors.

W + U S R V with U S (m, r) and V (r, n) from the base's singular value decomposition, frozen, and the core R (r, r)
trained from zero and sent in fp16. The peer is given the singular vectors for free: no two machines derive them with
the same bits, so a real one would have to send them or fix how they are computed. Larger settings train norms and
biases too, from where trained low rank starts them.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from sizes import low_rank
from sizes.cases import Problem
from sizes.fitting import Leaves, fit
from sizes.low_rank import small_changes
from sizes.method import Method, Sent
from sizes.post_hoc import halves, patched, squeezed
from sizes.store import Store

_CORES: Final = {
    **{f"core {rank} alone": (rank, False) for rank in (5, 10, 20)},
    **{f"core {rank}, norms and biases": (rank, True) for rank in (3, 8, 16, 32, 100)},
}
_MATRIX: Final = 2
RATE: Final = 4e-2  # found on validation data: cores like it higher than factors do


class _Cores:
    """The frozen sides of each matrix's core.

    Args:
        problem: of the base.
        rank: of the cores; less where a matrix has less.
    """

    def __init__(self, problem: Problem, rank: int) -> None:
        self.sides: dict[str, tuple[Tensor, Tensor]] = {}
        for name, _ in problem.trainable.module.named_parameters():
            base = problem.base[name]
            if base.ndim >= _MATRIX:
                left, values, right = torch.linalg.svd(base.flatten(1), full_matrices=False)
                # The paper scales by the singular values; their mean square is taken out, so that one rate fits all.
                sizes = values[:rank] / values[:rank].square().mean().sqrt()
                self.sides[name] = left[:, :rank] * sizes, right[:rank]

    def start(self) -> Leaves:
        return {name: torch.zeros(left.shape[1], len(right)) for name, (left, right) in self.sides.items()}

    def change(self, leaves: Leaves) -> Leaves:
        return {n: self.sides[n][0] @ t @ self.sides[n][1] if n in self.sides else t for n, t in leaves.items()}


def _sweep(problem: Problem, settings: Sequence[str], _store: Store, *, distilled: bool) -> Iterator[Sent]:
    for setting in settings:
        rank, others = _CORES[setting]
        cores = _Cores(problem, rank)
        leaves = cores.start() | (small_changes(problem) if others else {})
        trained = fit(problem, leaves, cores.change, distilled=distilled, rate=RATE)
        rounded, data = halves(trained)
        yield Sent(setting, squeezed(data), patched(problem, cores.change(rounded)))


def _method(key: str, title: str, *, distilled: bool) -> Method:
    def sweep(problem: Problem, settings: Sequence[str], store: Store) -> Iterator[Sent]:
        return _sweep(problem, settings, store, distilled=distilled)

    code = (Path(__file__), *low_rank.CODE)
    return Method(key=key, title=title, ours=False, settings=tuple(_CORES), sweep=sweep, code=code)


METHODS: Final = (
    _method("core", "core between the base's singular vectors fp16 (LoRA-XS)", distilled=False),
    _method("core-distilled", "core between the base's singular vectors fp16 (LoRA-XS), distilled", distilled=True),
)
