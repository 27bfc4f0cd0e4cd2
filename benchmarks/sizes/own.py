"""sprat's rows: factors trained on their grid at several prices, and post-hoc encoding at several budgets."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from sizes.cases import Problem
from sizes.method import Method, Sent
from sizes.store import Store
from sprat_server.compress import updates
from sprat_server.training import factors, grid, norms, strategies, student, values
from sprat_server.training.lesson import Lesson
from sprat_server.training.states import floats, to_source, to_torch
from sprat_server.training.strategies import FACTORS, Pace
from sprat_shared import apply, encode, wire
from sprat_shared.encode import encode_delta

_RUNGS: Final = {str(rung): rung for rung in FACTORS.ladder[:-2]}
_BUDGETS: Final = {f"budget {kb:g} kB": round(1000 * kb) for kb in (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)}
_HERE: Final = Path(__file__)


def _files(*packages: object) -> tuple[Path, ...]:
    folders = [Path(str(getattr(package, "__file__", ""))).parent for package in packages]
    return tuple(sorted(file for folder in folders for file in folder.glob("*.py")))


def _factors(problem: Problem, settings: Sequence[str], _store: Store) -> Iterator[Sent]:
    lesson = Lesson(
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
        updated = FACTORS.make(lesson, _RUNGS[setting], pace, lambda _fraction, _text: None)
        yield Sent(setting, len(updated.data), floats(to_torch(updated.weights)))


def _post_hoc(problem: Problem, settings: Sequence[str], _store: Store) -> Iterator[Sent]:
    # A count of batches seen takes no part in what the network computes; no peer is asked to send it either.
    counters = {name: t for name, t in problem.base.items() if not t.is_floating_point()}
    wished = to_source({**problem.teacher, **counters})
    for setting in settings:
        encoded = encode_delta(problem.source, wished, budget_bytes=_BUDGETS[setting], standalone=False)
        updated = updates.decode(encoded.data, problem.source)
        yield Sent(setting, len(updated.data), floats(to_torch(updated.weights)))


_MADE_BY: Final = tuple(Path(str(module.__file__)) for module in (factors, grid, norms, strategies, student, values))

METHODS: Final = (
    Method(
        key="factors",
        title="sprat factors (distilled, all sent)",
        ours=True,
        settings=tuple(_RUNGS),
        sweep=_factors,
        code=(_HERE, *_MADE_BY, *_files(wire)),
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
