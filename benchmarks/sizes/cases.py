"""The cases: a base that devices have, new data, and the full retrain whose gain every method is to recover.

A further case is one more function in `CASES`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import torch
from digits_demo import data as digits_data
from digits_demo import model as digits_model
from digits_demo.data import TEST, TRAIN, VALIDATION, Digits, clean, drifted
from torch import Tensor

from sizes.store import Store, source_digest
from sprat_server.training import teacher as teacher_code
from sprat_server.training.data import Samples, TrainingData
from sprat_server.training.evaluate import HeldBack, TestSamples
from sprat_server.training.norms import shifted_norms
from sprat_server.training.recipes import Trainable, build
from sprat_server.training.search import floats
from sprat_server.training.states import to_source
from sprat_server.training.teacher import TeacherPlan, train_teacher
from sprat_shared.wire.tensors import ArrayTensors

OLD_CLASSES: Final = 7
Pair = tuple[Digits, Digits]


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
    """

    name: str
    seed: int
    trainable: Trainable
    data: TrainingData
    test: HeldBack
    base: Mapping[str, Tensor]
    teacher: Mapping[str, Tensor]

    @cached_property
    def source(self) -> ArrayTensors:
        """The base as the wire format's tensors."""
        return to_source(self.base)

    @cached_property
    def norms(self) -> dict[str, Tensor]:
        """Scale and bias of the base's norms after their statistics were re-estimated on the train split."""
        return shifted_norms(self.trainable.module, self.base, self.data.train)


def drift(seed: int) -> Pair:
    """Return clean digits, and the same turned by 25 degrees, blurred, paler and noisy."""
    digits = clean(seed)
    return digits, drifted(digits, seed)


def new_classes(seed: int) -> Pair:
    """Return the digits 0 to 6, and all ten."""
    digits = clean(seed)
    old = digits.labels < OLD_CLASSES
    return Digits(digits.inputs[old], digits.labels[old], digits.split[old]), digits


CASES: Final[Mapping[str, Callable[[int], Pair]]] = {"drift": drift, "new-classes": new_classes}
"""By name: seed -> (data that the base is trained on, data that devices see now)."""


def make_problem(name: str, seed: int, folder: Path) -> tuple[Problem, Store]:
    """Return a case with a seed, base and full retrain out of the store where they are there, and its store.

    Args:
        name: of the case.
        seed: see `Problem`.
        folder: of the cache; a change of the code that makes a problem begins a new store in it.
    """
    code = source_digest(Path(__file__), *(Path(str(m.__file__)) for m in (teacher_code, digits_data, digits_model)))
    store = Store(folder / f"{name}-{seed}-{code}")
    before, now = CASES[name](seed)
    trainable = build("digits_demo.model:build", {}, ["digits_demo"], seed=seed)
    base = store.state("base", lambda: _retrain(trainable, before, seed))
    trainable.module.load_state_dict(dict(base))
    trainable.module.eval()
    teacher = store.state("teacher", lambda: _retrain(trainable, now, seed))
    return Problem(name, seed, trainable, training_data(now), held_back(now), floats(base), floats(teacher)), store


def _retrain(trainable: Trainable, digits: Digits, seed: int) -> dict[str, Tensor]:
    return train_teacher(trainable, training_data(digits), TeacherPlan(seed=seed), lambda _fraction, _text: None)


def training_data(digits: Digits) -> TrainingData:
    """Return the two splits that choices may be made on."""
    return TrainingData(train=_samples(digits.part(TRAIN)), validation=_samples(digits.part(VALIDATION)))


def held_back(digits: Digits) -> HeldBack:
    """Return the test split, closed."""

    def open_test() -> TestSamples:
        samples = _samples(digits.part(TEST))
        return TestSamples(samples.inputs, samples.labels, np.flatnonzero(digits.split == TEST).tolist())

    return HeldBack(open_test)


def _samples(digits: Digits) -> Samples:
    return Samples(torch.from_numpy(digits.inputs), torch.from_numpy(digits.labels))
