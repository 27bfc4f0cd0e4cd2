"""What a method is: settings, and what each of them sends and gives."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from torch import Tensor

from sizes import store as store_code
from sizes.cases import Problem
from sizes.environments import Environment
from sizes.store import Point, Store, source_digest
from sprat_server.training.evaluate import Share, recovered, report, scores

_JUDGING: Final = (Path(__file__), Path(str(store_code.__file__)))


@dataclass(frozen=True, slots=True)
class Sent:
    """What one setting gives: bytes of the payload, and the state that a receiver has after it."""

    setting: str
    bytes: int
    state: Mapping[str, Tensor]


Sweep = Callable[[Problem, Sequence[str], Store], Iterator[Sent]]
"""(problem, settings that are wanted, store of the problem) -> what each gives, in any order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A row of the table.

    Attributes:
        key: name of its file in the cache.
        title: in the table.
        ours: whether it is sprat's.
        settings: all that are tried; the best counts.
        sweep: makes them.
        code: files whose change makes cached points worthless.
        environment: of its own, where it needs one.
    """

    key: str
    title: str
    ours: bool
    settings: tuple[str, ...]
    sweep: Sweep
    code: tuple[Path, ...]
    environment: Environment | None = None

    def points(self, problem: Problem, store: Store) -> list[Point]:
        """Return the point of each setting, from the cache where it is there; each new one is kept at once.

        Raises:
            Unavailable: the method cannot run here.
        """
        name = f"{self.key}-{source_digest(*self.code, *_JUDGING)}"
        points = store.points(name)
        wanted = [setting for setting in self.settings if setting not in points]
        if wanted:
            judge, begin = Judge(problem), time.perf_counter()
            for sent in self.sweep(problem, wanted, store):
                share, test = judge(sent.state)
                end = time.perf_counter()
                points[sent.setting] = Point(
                    setting=sent.setting,
                    bytes=sent.bytes,
                    validation=share.value,
                    error=share.error,
                    test=test,
                    seconds=round(end - begin, 2),
                )
                store.keep(name, points)
                begin = end
        return [points[setting] for setting in self.settings]


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
