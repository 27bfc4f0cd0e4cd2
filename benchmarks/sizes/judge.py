"""How a state is judged, for every method alike; a change of this file makes all points worthless."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from sizes.cases import Problem
from sprat_server.training.evaluate import Share, recovered, report, scores


class Judge:
    """Says how much of the full retrain's gain a state has."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._bounds = [self._scores(state) for state in (problem.base, problem.teacher)]

    def _scores(self, state: Mapping[str, Tensor]) -> "np.ndarray[Any, np.dtype[np.float64]]":
        return scores(self._problem.trainable, state, self._problem.data.validation)

    def __call__(self, state: Mapping[str, Tensor]) -> tuple[Share, float | None]:
        """Return the share on the validation split, and on the test split (None: nothing was gained there)."""
        problem, (before, full) = self._problem, self._bounds
        test = report(problem.trainable, problem.test, base=problem.base, teacher=problem.teacher, released=state)
        return recovered(before, full, self._scores(state)), test["recovered_gain"]
