"""What an answer says: the class on top and how sure the model is of it."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from sprat_client.runtime.ports import Array, InferenceFailed

_SUM_ERROR: Final = 1e-3  # of probabilities as float32 or float16


def check_finite(outputs: Sequence[Array]) -> None:
    """Raise InferenceFailed where a float holds NaN or Inf."""
    for output in outputs:
        if output.dtype.kind == "f" and not np.isfinite(output).all():
            raise InferenceFailed("the answer holds NaN or Inf")


def top(outputs: Sequence[Array]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]] | None:
    """Return the class on top of each sample and its probability, both (batch,).

    The first output must be (batch, classes) and finite: probabilities, or logits whose softmax they are. None: the
    model answers in another shape, which this says nothing of.
    """
    values = outputs[0]
    if values.ndim != 2 or not values.shape[1] or values.dtype.kind != "f":  # noqa: PLR2004  # (batch, classes)
        return None
    rows = values.astype(np.float64)
    if not ((rows >= 0).all() and (np.abs(rows.sum(axis=1) - 1) < _SUM_ERROR).all()):
        rows = np.exp(rows - rows.max(axis=1, keepdims=True))
        rows /= rows.sum(axis=1, keepdims=True)
    return rows.argmax(axis=1), rows.max(axis=1)
