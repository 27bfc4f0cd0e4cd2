"""What a method is: settings, and what each of them sends and gives."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torch import Tensor

from sizes import judge as judge_code
from sizes.cases import Problem
from sizes.environments import Environment
from sizes.judge import Judge
from sizes.ledger import Ledger, Point, source_digest
from sizes.store import Store

_JUDGING: Final = Path(judge_code.__file__)
_DIGITS: Final = 6


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
        key: its name in the ledger.
        title: in the table.
        ours: whether it is sprat's.
        settings: all that are tried; the best counts.
        sweep: makes them.
        code: files whose change makes points in the ledger worthless.
        environment: of its own, where it needs one.
    """

    key: str
    title: str
    ours: bool
    settings: tuple[str, ...]
    sweep: Sweep
    code: tuple[Path, ...]
    environment: Environment | None = None

    def missing(self, ledger: Ledger) -> bool:
        """Say whether a setting is not in the ledger."""
        return len(self.kept(ledger)) < len(self.settings)

    def kept(self, ledger: Ledger) -> list[Point]:
        """Return the points that are in the ledger, in the order of the settings."""
        points = ledger.points(self.key, self._code_digest())
        return [points[setting] for setting in self.settings if setting in points]

    def kept_before(self, ledger: Ledger) -> list[Point]:
        """Return the points that code of before made; none where some are missing."""
        points = ledger.before(self.key, self._code_digest())
        return [points[setting] for setting in self.settings] if points.keys() >= set(self.settings) else []

    def points(self, ledger: Ledger, ready: Callable[[], tuple[Problem, Store]]) -> list[Point]:
        """Return the point of each setting, from the ledger where it is there; each new one is kept at once.

        Args:
            ledger: of the problem.
            ready: gives the problem, and its store; called only where a point is to be made.

        Raises:
            Unavailable: the method cannot run here.
            CaseUnavailable: the problem cannot be made here.
        """
        code = self._code_digest()
        points, before = ledger.points(self.key, code), ledger.before(self.key, code)
        if before and not points and before.keys() >= set(self.settings):
            ends = dict.fromkeys([self.settings[0], self.settings[-1]])
            again = dict(self._made(list(ends), ready))
            points = before if all(again[setting].same_as(before[setting]) for setting in ends) else again
            ledger.keep(self.key, code, points)
        wanted = [setting for setting in self.settings if setting not in points]
        for setting, point in self._made(wanted, ready) if wanted else ():
            points[setting] = point
            ledger.keep(self.key, code, points)
        return [points[setting] for setting in self.settings]

    def _made(self, settings: Sequence[str], ready: Callable[[], tuple[Problem, Store]]) -> Iterator[tuple[str, Point]]:
        problem, store = ready()
        judge, begin = Judge(problem), time.perf_counter()
        for sent in self.sweep(problem, settings, store):
            share, test = judge(sent.state)
            end = time.perf_counter()
            yield (
                sent.setting,
                Point(
                    setting=sent.setting,
                    bytes=sent.bytes,
                    validation=round(share.value, _DIGITS),
                    error=round(share.error, _DIGITS),
                    test=None if test is None else round(test, _DIGITS),
                    seconds=round(end - begin, 2),
                ),
            )
            begin = time.perf_counter()

    def _code_digest(self) -> str:
        return source_digest(*self.code, _JUDGING)
