"""sprat's row of where a retrain goes on when neither factors nor a subspace prove enough: more rank, then dense.

It stands apart from `sizes.own`, a change of which has all rows of that file looked at again.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from sizes.cases import Problem
from sizes.method import Method, Sent
from sizes.store import Store
from sprat_server.training import factors, grid, lesson, norms, strategies, student, values
from sprat_server.training.lesson import Lesson
from sprat_server.training.states import floats, to_torch
from sprat_server.training.strategies import DENSE, FACTORS, Pace, Rung, Strategy
from sprat_shared import wire

_RUNGS: Final[Mapping[str, tuple[Strategy, Rung]]] = {
    f"{strategy.method}, {rung}": (strategy, rung)
    for strategy, rung in (
        (FACTORS, FACTORS.rung(len(FACTORS.ladder) - 1.5)),
        (FACTORS, FACTORS.ladder[-1]),
        (DENSE, DENSE.ladder[0]),
    )
}
_FILES: Final = tuple(Path(str(one.__file__)) for one in (factors, grid, lesson, norms, strategies, student, values))


def _sweep(problem: Problem, settings: Sequence[str], _store: Store) -> Iterator[Sent]:
    taught = Lesson(
        trainable=problem.trainable,
        source=problem.source,
        base=problem.base,
        teacher=problem.teacher,
        norms=problem.norms,
        train=problem.data.train,
        targets=problem.taught,
    )
    pace = Pace(epochs=problem.epochs, batch=problem.batch, min_steps=0, seed=problem.seed)
    for setting in settings:
        strategy, rung = _RUNGS[setting]
        updated = strategy.make(taught, rung, pace, lambda _fraction, _text: None)
        yield Sent(setting, len(updated.data), floats(to_torch(updated.weights)))


METHODS: Final = (
    Method(
        key="dense",
        title="sprat factors of more rank, and dense (distilled, all sent)",
        ours=True,
        settings=tuple(_RUNGS),
        sweep=_sweep,
        code=(Path(__file__), *_FILES, *sorted(Path(str(wire.__file__)).parent.rglob("*.py"))),
    ),
)
