"""What a method is: settings, and what each of them sends and gives."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sizes.cases import Problem
from sizes.store import Point, Store, source_digest
from sprat_server.training.evaluate import recovered, report, scores


class Unavailable(Exception):
    """A peer that cannot run here; its row is left out, and the message says why."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What one setting gives: bytes of the payload, and the state that a receiver has after it."""

    setting: str
    bytes: int
    state: Mapping[str, Tensor]


Sweep = Callable[[Problem, Sequence[str], Path], Iterator[Sent]]
"""(problem, settings that are wanted, folder for files of its own) -> what each gives, in any order."""


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
    """

    key: str
    title: str
    ours: bool
    settings: tuple[str, ...]
    sweep: Sweep
    code: tuple[Path, ...]

    def points(self, problem: Problem, store: Store) -> list[Point]:
        """Return the point of each setting, from the cache where it is there; each new one is kept at once.

        Raises:
            Unavailable: the method cannot run here.
        """
        name = f"{self.key}-{source_digest(*self.code)}"
        points = store.points(name)
        wanted = [setting for setting in self.settings if setting not in points]
        begin = time.perf_counter()
        for sent in self.sweep(problem, wanted, store.scratch(name)) if wanted else ():
            share, test = judge(problem, sent.state)
            end = time.perf_counter()
            points[sent.setting] = Point(
                setting=sent.setting, bytes=sent.bytes, validation=share, test=test, seconds=round(end - begin, 2)
            )
            store.keep(name, points)
            begin = end
        return [points[setting] for setting in self.settings]


def judge(problem: Problem, state: Mapping[str, Tensor]) -> tuple[float, float | None]:
    """Return the recovered share of the gain on the validation and on the test split."""
    trainable, validation = problem.trainable, problem.data.validation
    before, full, now = (scores(trainable, s, validation) for s in (problem.base, problem.teacher, state))
    test = report(trainable, problem.test, base=problem.base, teacher=problem.teacher, released=state)
    return recovered(before, full, now).value, test["recovered_gain"]
