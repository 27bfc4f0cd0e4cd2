"""sprat where a release leaves norm statistics to devices: nothing of them is sent, each computes its own.

What a device sees is played by inputs of the validation split, without their labels: statistics are estimated from 200
of them, and the state with these is measured on both splits. Candidates are trained with statistics of their batches.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from sizes.cases import Problem
from sizes.environments import Unavailable
from sizes.method import Method, Sent
from sizes.store import Store
from sprat_server.training import factors, grid, lesson, local, strategies, student, subspace, values
from sprat_server.training.lesson import Lesson
from sprat_server.training.local import LocalNorms
from sprat_server.training.norms import shifted_norms
from sprat_server.training.states import floats, to_torch
from sprat_server.training.strategies import SUBSPACE, Pace
from sprat_shared import wire

_RUNGS: Final = {str(rung): rung for rung in SUBSPACE.ladder[:8]}
_STATISTICS: Final = ("running_mean", "running_var")


def _sweep(problem: Problem, settings: Sequence[str], _store: Store) -> Iterator[Sent]:
    names = [name for name in problem.base if name.endswith(_STATISTICS)]
    if not names:
        raise Unavailable(f"{problem.name}: no norm of its network keeps statistics that devices could compute")
    own, train = LocalNorms(problem.trainable.module, names), problem.data.train
    base = own.estimated(problem.base, train.inputs)
    norms = shifted_norms(problem.trainable.module, base, train)
    taught = Lesson(
        trainable=problem.trainable,
        source=problem.source,
        base=base,
        teacher=problem.teacher,
        norms={name: value for name, value in norms.items() if not own.owns(name)},
        train=train,
        targets=problem.taught,
        local=own,
    )
    pace = Pace(epochs=problem.epochs, batch=problem.batch, min_steps=0, seed=problem.seed)
    for setting in settings:
        updated = SUBSPACE.make(taught, _RUNGS[setting], pace, lambda _fraction, _text: None)
        received = own.estimated(floats(to_torch(updated.weights)), problem.data.validation.inputs)
        yield Sent(setting, len(updated.data), received)


_CODE: Final = (factors, grid, lesson, local, strategies, student, subspace, values)
METHODS: Final = (
    Method(
        key="subspace-local",
        title="sprat subspace, norm statistics of devices' own inputs",
        ours=True,
        settings=tuple(_RUNGS),
        sweep=_sweep,
        code=(
            Path(__file__),
            *(Path(str(module.__file__)) for module in _CODE),
            *sorted(Path(str(wire.__file__)).parent.rglob("*.py")),
        ),
    ),
)
