"""sprat's rows: factors and a subspace trained on their grid at several prices, and post-hoc encoding by budget."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from sizes.cases import Problem
from sizes.method import Method, Sent
from sizes.store import Store
from sprat_server.compress import updates
from sprat_server.training import factors, grid, importance, lesson, norms, strategies, student, subspace, values
from sprat_server.training.lesson import Lesson
from sprat_server.training.states import floats, to_source, to_torch
from sprat_server.training.strategies import FACTORS, POST_HOC, SUBSPACE, Pace, Rung, Strategy
from sprat_shared import apply, encode, wire
from sprat_shared.encode import encode_delta

_TRAINED: Final[Mapping[str, Mapping[str, Rung]]] = {
    strategy.method: {str(rung): rung for rung in rungs}
    for strategy, rungs in (
        (FACTORS, (*FACTORS.ladder[:10:2], *FACTORS.ladder[10:-1])),
        (SUBSPACE, (*SUBSPACE.ladder[:6], *SUBSPACE.ladder[6::2])),
        (POST_HOC, POST_HOC.ladder[:-2]),
    )
}
"""The rungs of each strategy by its name and theirs: not all, a retrain walks finer ones."""

_BUDGETS: Final = {f"budget {kb:g} kB": round(1000 * kb) for kb in (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)}
_HERE: Final = Path(__file__)


def _files(*packages: object) -> tuple[Path, ...]:
    """Return the files of modules and packages."""
    paths = [Path(str(getattr(package, "__file__", ""))) for package in packages]
    found = (path.parent.rglob("*.py") if path.name == "__init__.py" else (path,) for path in paths)
    return tuple(sorted(file for files in found for file in files))


def _sweep(strategy: Strategy, problem: Problem, settings: Sequence[str], _store: Store) -> Iterator[Sent]:
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
        updated = strategy.make(taught, _TRAINED[strategy.method][setting], pace, lambda _fraction, _text: None)
        yield Sent(setting, len(updated.data), floats(to_torch(updated.weights)))


def _post_hoc(problem: Problem, settings: Sequence[str], _store: Store) -> Iterator[Sent]:
    # A count of batches seen takes no part in what the network computes; no peer is asked to send it either.
    counters = {name: t for name, t in problem.base.items() if not t.is_floating_point()}
    wished = to_source({**problem.teacher, **counters})
    for setting in settings:
        encoded = encode_delta(problem.source, wished, budget_bytes=_BUDGETS[setting], standalone=False)
        updated = updates.decode(encoded.data, problem.source)
        yield Sent(setting, len(updated.data), floats(to_torch(updated.weights)))


_COMMON: Final = (grid, lesson, norms, strategies, student, values, wire)

METHODS: Final = (
    Method(
        key="factors",
        title="sprat factors (distilled, all sent)",
        ours=True,
        settings=tuple(_TRAINED["factors"]),
        sweep=partial(_sweep, FACTORS),
        code=(_HERE, *_files(factors, *_COMMON)),
    ),
    Method(
        key="subspace",
        title="sprat subspace (distilled, all sent)",
        ours=True,
        settings=tuple(_TRAINED["subspace"]),
        sweep=partial(_sweep, SUBSPACE),
        code=(_HERE, *_files(factors, subspace, *_COMMON)),
    ),
    Method(
        key="full",
        title="sprat full (the full retrain cut by what the loss notices)",
        ours=True,
        settings=tuple(_TRAINED["post-hoc"]),
        sweep=partial(_sweep, POST_HOC),
        code=(_HERE, *_files(importance, lesson, strategies, encode, apply, wire)),
    ),
    Method(
        key="post-hoc",
        title="sprat post-hoc (no data)",
        ours=True,
        settings=tuple(_BUDGETS),
        sweep=_post_hoc,
        code=(_HERE, *_files(encode, apply, wire)),
    ),
)
