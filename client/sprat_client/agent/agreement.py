"""Old and new release on inputs without labels: weaker than the paired comparison, and a certificate all the same.

Wherever both releases name the same class, both are right or both are wrong. So accuracy cannot have fallen by more
than the share of inputs on which they disagree, whatever the labels are; its upper bound by Clopper and Pearson holds
for the inputs that these were drawn from.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sprat_client.agent.answers import top
from sprat_client.runtime.ports import Array
from sprat_shared.evidence.bounds import highest_share

Answers = Callable[[Array], list[Array]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How two releases agreed.

    Attributes:
        compared: inputs.
        agreed: inputs with the same class on top.
        max_drop: by which accuracy can have fallen at most, at 95 %.
        old_confidence: mean top probability of the old release, and
        new_confidence: of the new one.
        input_drift: distance of the newer half of the inputs from the older one, in their means, 0 to 1, and
        confidence_drift: in the old release's confidence.
    """

    compared: int
    agreed: int
    max_drop: float
    old_confidence: float
    new_confidence: float
    input_drift: float
    confidence_drift: float


def compare_unlabelled(new: Answers, old: Answers, inputs: Array, batch: int) -> Agreement | None:
    """Compare two releases on inputs (n, ...), in the order in which they were taken; None: they name no classes.

    Args:
        new: answers a batch, and raises where the new release fails,
        old: likewise.
        inputs: (n, ...).
        batch: inputs per inference.
    """
    agreed = 0
    sure: tuple[list[npt.NDArray[np.float64]], list[npt.NDArray[np.float64]]] = ([], [])
    for start in range(0, len(inputs), batch):
        values = inputs[start : start + batch]
        new_top, old_top = top(new(values)), top(old(values))
        if new_top is None or old_top is None or len(new_top[0]) != len(values):
            return None
        agreed += int((new_top[0] == old_top[0]).sum())
        sure[0].append(new_top[1])
        sure[1].append(old_top[1])
    new_sure, old_sure = (np.concatenate(one) for one in sure)
    return Agreement(
        compared=len(inputs),
        agreed=agreed,
        max_drop=highest_share(len(inputs) - agreed, len(inputs)),
        old_confidence=float(old_sure.mean()),
        new_confidence=float(new_sure.mean()),
        input_drift=_drift(inputs.reshape(len(inputs), -1).mean(axis=1, dtype=np.float64)),
        confidence_drift=_drift(old_sure),
    )


def _drift(values: npt.NDArray[np.float64]) -> float:
    """Return the largest distance between the distributions of the older and the newer half (Kolmogorov, Smirnov)."""
    older, newer = np.sort(values[: len(values) // 2]), np.sort(values[len(values) // 2 :])
    if not len(older):
        return 0.0
    below = [np.searchsorted(half, values, side="right") / len(half) for half in (older, newer)]
    return float(np.abs(below[0] - below[1]).max())
