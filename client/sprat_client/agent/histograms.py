"""Labelled samples as counts and histograms: of their classes, and of how sure a release is of its answers to them."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from sprat_client.agent.answers import check_finite, top
from sprat_client.agent.samples import Holdout
from sprat_client.runtime.ports import InferenceFailed, ModelHost
from sprat_shared.protocol.holdout_report import BINS, CLASSES_SAID

_BATCH: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """What `HoldoutReport` says of samples; see there."""

    classes: tuple[tuple[int, int], ...]
    others: int
    confidences: tuple[int, ...]
    correct: tuple[int, ...]


def counted(host: ModelHost, holdout: Holdout) -> Counted | None:
    """Return the counts; None where an answer is not finite, or names no class.

    Args:
        host: the release that serves, a model of one input.
        holdout: the samples.

    Raises:
        InferenceFailed: the model failed.
    """
    sure, right = [], []
    for start in range(0, len(holdout.labels), _BATCH):
        outputs = host.run({host.inputs[0].name: holdout.inputs[start : start + _BATCH]})
        try:
            check_finite(outputs)
        except InferenceFailed:
            return None
        if (answer := top(outputs)) is None:
            return None
        sure.append(answer[1])
        right.append(answer[0] == holdout.labels[start : start + _BATCH])
    bins = np.minimum((np.concatenate(sure) * BINS).astype(int), BINS - 1)
    labels, counts = np.unique(holdout.labels, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:CLASSES_SAID]
    classes = tuple((int(labels[at]), int(counts[at])) for at in order)
    return Counted(
        classes=classes,
        others=len(holdout.labels) - sum(count for _, count in classes),
        confidences=tuple(np.bincount(bins, minlength=BINS).tolist()),
        correct=tuple(np.bincount(bins[np.concatenate(right)], minlength=BINS).tolist()),
    )
