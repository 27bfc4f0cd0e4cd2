"""sprat's rows: factors trained on their grid at several prices, and post-hoc encoding at several budgets."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from sizes.cases import Problem
from sizes.method import Method, Sent
from sizes.store import Store
from sprat_server.compress import updates
from sprat_server.training import factors, norms
from sprat_server.training.factors import FactorPlan, GridStudent, teacher_outputs
from sprat_server.training.search import LADDER, floats
from sprat_server.training.states import to_source, to_torch
from sprat_shared import apply, encode, wire
from sprat_shared.encode import encode_delta

_CHEAPER: Final = ((8, 2.3e-3),)
_RUNGS: Final = {f"rank {rank}, price {price:g}": (rank, price) for rank, price in (*_CHEAPER, *LADDER[:-2])}
_BUDGETS: Final = {f"budget {kb:g} kB": round(1000 * kb) for kb in (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)}
_HERE: Final = Path(__file__)


def _files(*packages: object) -> tuple[Path, ...]:
    folders = [Path(str(getattr(package, "__file__", ""))).parent for package in packages]
    return tuple(sorted(file for folder in folders for file in folder.glob("*.py")))


def _factors(problem: Problem, settings: Sequence[str], _store: Store) -> Iterator[Sent]:
    targets = teacher_outputs(problem.trainable, problem.teacher, problem.data.train)
    for setting in settings:
        rank, price = _RUNGS[setting]
        student = GridStudent(
            problem.trainable,
            base=problem.base,
            teacher=problem.teacher,
            norms=problem.norms,
            table=problem.source.table,
            plan=FactorPlan(
                rank=rank, price=price, epochs=problem.epochs, batch=problem.batch, min_steps=0, seed=problem.seed
            ),
        )
        student.train(problem.data.train, targets, lambda _fraction, _text: None)
        updated = updates.from_records(problem.source, student.records())
        yield Sent(setting, len(updated.data), floats(to_torch(updated.weights)))


def _post_hoc(problem: Problem, settings: Sequence[str], _store: Store) -> Iterator[Sent]:
    # A count of batches seen takes no part in what the network computes; no peer is asked to send it either.
    counters = {name: t for name, t in problem.base.items() if not t.is_floating_point()}
    wished = to_source({**problem.teacher, **counters})
    for setting in settings:
        encoded = encode_delta(problem.source, wished, budget_bytes=_BUDGETS[setting], standalone=False)
        updated = updates.decode(encoded.data, problem.source)
        yield Sent(setting, len(updated.data), floats(to_torch(updated.weights)))


METHODS: Final = (
    Method(
        key="factors",
        title="sprat factors (distilled, all sent)",
        ours=True,
        settings=tuple(_RUNGS),
        sweep=_factors,
        code=(_HERE, Path(factors.__file__), Path(norms.__file__), *_files(wire)),
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
