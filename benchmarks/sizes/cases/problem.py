"""One case with one seed, as every method is given it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from sizes.cases.case import Case, Domain
from sizes.store import Store
from sprat_server.training.data import Samples, TrainingData
from sprat_server.training.evaluate import HeldBack, TestSamples, report, scores
from sprat_server.training.lesson import teacher_outputs
from sprat_server.training.norms import shifted_norms
from sprat_server.training.recipes import Trainable, build
from sprat_server.training.states import floats, to_source
from sprat_server.training.teacher import TeacherPlan, train_teacher
from sprat_shared.wire.tensors import ArrayTensors


@dataclass(frozen=True)
class Problem:
    """One case with one seed.

    Attributes:
        name: of the case.
        seed: of split, initial weights, order of samples and drift.
        trainable: its module in the base's weights, evaluation mode.
        data: train and validation split of the new data.
        test: the test split of it, closed.
        base: state that devices have.
        teacher: state of the full retrain on the new data.
        epochs: passes over the train split that whatever is trained gets.
        batch: samples a step of these.
    """

    name: str
    seed: int
    trainable: Trainable
    data: TrainingData
    test: HeldBack
    base: Mapping[str, Tensor]
    teacher: Mapping[str, Tensor]
    epochs: int
    batch: int

    @cached_property
    def source(self) -> ArrayTensors:
        """The base as the wire format's tensors."""
        return to_source(self.base)

    @cached_property
    def norms(self) -> dict[str, Tensor]:
        """Scale and bias of the base's norms after their statistics were re-estimated on the train split."""
        return shifted_norms(self.trainable.module, self.base, self.data.train)

    @cached_property
    def taught(self) -> Tensor:
        """What the full retrain says to the train split, (n, classes): the lesson of every distilled row."""
        return teacher_outputs(self.trainable, self.teacher, self.data.train)

    def states_digest(self) -> str:
        """Return sixteen hex digits of base and full retrain."""
        whole = hashlib.sha256()
        for state in (self.base, self.teacher):
            for name, tensor in state.items():
                whole.update(name.encode() + tensor.contiguous().numpy().tobytes())
        return whole.hexdigest()[:16]

    def gains(self) -> dict[str, Any]:
        """Return the network's values and the accuracies of base and full retrain on validation and test split."""
        states = (self.base, self.teacher)
        validation = [float(scores(self.trainable, state, self.data.validation).mean()) for state in states]
        test = report(self.trainable, self.test, base=self.base, teacher=self.teacher, released=self.teacher)
        return {
            "values": sum(tensor.numel() for tensor in self.base.values() if tensor.is_floating_point()),
            "validation": [round(share, 4) for share in validation],
            "test": [round(test[f"accuracy_{state}"], 4) for state in ("base", "retrained")],
        }


def make_problem(case: Case, seed: int, folder: Path) -> tuple[Problem, Store]:
    """Return a case with a seed, base and full retrain out of the store where they are there, and its store.

    Args:
        case: which.
        seed: see `Problem`.
        folder: of the cache; a change of the code that makes a problem begins a new store in it.

    Raises:
        CaseUnavailable: its data are not on this machine.
    """
    store = Store(folder / f"{case.name}-{seed}-{case.digest()}")
    before, now = case.make(seed)
    trainable = build(case.factory, case.config, [case.factory.partition(".")[0]], seed=seed)
    base = store.state("base", lambda: _retrain(trainable, before, case.base, seed))
    trainable.module.load_state_dict(dict(base))
    trainable.module.eval()
    teacher = store.state("teacher", lambda: _retrain(trainable, now, case.retrain, seed))
    problem = Problem(
        name=case.name,
        seed=seed,
        trainable=trainable,
        data=_for_training(now),
        test=_held_back(now.test),
        base=floats(base),
        teacher=floats(teacher),
        epochs=case.epochs,
        batch=case.batch,
    )
    return problem, store


def _retrain(trainable: Trainable, domain: Domain, plan: TeacherPlan, seed: int) -> dict[str, Tensor]:
    data = _for_training(domain)
    return train_teacher(trainable, data, replace(plan, seed=seed), lambda _fraction, _text: None)


def _for_training(domain: Domain) -> TrainingData:
    return TrainingData(train=domain.train, validation=domain.validation)


def _held_back(test: Samples) -> HeldBack:
    return HeldBack(lambda: TestSamples(test.inputs, test.labels, range(len(test))))
