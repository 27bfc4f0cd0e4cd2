"""How alike two representations are: debiased linear CKA over random batches, least-squares R2, agreement of answers.

Similarity proposes where to share, agreement decides. CKA is the debiased form with the unbiased HSIC_1 of Song et al.
(JMLR 13, 2012), summed over batches (Nguyen, Raghu, Kornblith, arXiv 2010.15327); of few samples with many features
the biased form comes out near 1 for unrelated ones, and is not offered. All in float64.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sprat_shared.errors import InvalidInput

_FEWEST: Final = 4  # samples of a batch for which HSIC_1 is defined
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Similarity:
    """CKA of two representations.

    Attributes:
        cka: over all batches together; about 0 of unrelated ones, 1 of those that are equal up to turns and scale.
        spread: standard deviation of the batches' own values; 0 of a single batch.
        batches: how many.
    """

    cka: float
    spread: float
    batches: int


def pooled(activations: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return feature maps (n, channels, height, width) averaged over positions: (n, channels); others as they are."""
    return activations.mean(axis=(2, 3)) if activations.ndim == 4 else activations  # noqa: PLR2004 - a feature map


def gram(activations: npt.NDArray[Any]) -> Floats:
    """Return the products of all pairs of samples (n, ...), with zeros in the diagonal: (n, n)."""
    flat = activations.reshape(len(activations), -1).astype(np.float64)
    products: Floats = flat @ flat.T
    np.fill_diagonal(products, 0.0)
    return products


def hsic(left: Floats, right: Floats) -> float:
    """Return the unbiased HSIC_1 of two representations of the same samples, from their `gram` matrices.

    Raises:
        InvalidInput: there are fewer than four samples, or not as many in both.
    """
    n = len(left)
    if n < _FEWEST or left.shape != right.shape:
        raise InvalidInput(f"HSIC takes four samples or more, as many of both; got {len(left)} and {len(right)}")
    trace = float(np.vdot(left, right))
    sums = float(left.sum()) * float(right.sum()) / ((n - 1) * (n - 2))
    crossed = 2 * float(left.sum(axis=0) @ right.sum(axis=0)) / (n - 2)
    return (trace + sums - crossed) / (n * (n - 3))


def similarity(batches: Iterable[tuple[Floats, Floats]]) -> Similarity:
    """Return the debiased CKA over batches, each given as the `gram` matrices of both representations.

    Raises:
        InvalidInput: there is no batch, or one has fewer than four samples.
    """
    parts = np.array([(hsic(a, b), hsic(a, a), hsic(b, b)) for a, b in batches])
    if not len(parts):
        raise InvalidInput("similarity is measured on one batch at least")
    return Similarity(
        cka=_ratio(*parts.mean(axis=0)),
        spread=float(np.std([_ratio(*part) for part in parts])),
        batches=len(parts),
    )


def _ratio(both: float, left: float, right: float) -> float:
    return float(both / np.sqrt(left * right)) if left > 0 and right > 0 else 0.0


def random_batches(count: int, *, size: int, batches: int, seed: int = 0) -> list[npt.NDArray[np.int64]]:
    """Return so many batches of different samples out of `count`, drawn with the seed, each without repetition."""
    draw = np.random.default_rng(seed)
    return [draw.permutation(count)[:size] for _ in range(batches)]


def agreement(left: Sequence[Any] | npt.NDArray[Any], right: Sequence[Any] | npt.NDArray[Any]) -> float:
    """Return the share of samples that both give the same class, of answers (n, classes)."""
    return float((np.argmax(left, axis=1) == np.argmax(right, axis=1)).mean())


def correlation(scores: Sequence[float], drops: Sequence[float]) -> float:
    """Return Pearson's r of a score and what sharing cost; NaN where either never changes."""
    if len(scores) < 2 or np.ptp(scores) == 0 or np.ptp(drops) == 0:  # noqa: PLR2004 - a line takes two points
        return float("nan")
    return float(np.corrcoef(scores, drops)[0, 1])
