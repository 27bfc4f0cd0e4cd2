"""(a) and (b): 5,000 MNIST digits with the demo's network; they drift, or classes are added."""

from pathlib import Path
from typing import Final

import torch
from digits_demo import data as digits_data
from digits_demo import model as digits_model
from digits_demo.data import TEST, TRAIN, VALIDATION, Digits, clean, drifted

from sizes.cases.case import Case, Domain
from sprat_server.training.data import Samples
from sprat_server.training.teacher import TeacherPlan

OLD_CLASSES: Final = 7


def _drift(seed: int) -> tuple[Domain, Domain]:
    digits = clean(seed)
    return _domain(digits), _domain(drifted(digits, seed))


def _new_classes(seed: int) -> tuple[Domain, Domain]:
    digits = clean(seed)
    old = digits.labels < OLD_CLASSES
    return _domain(Digits(digits.inputs[old], digits.labels[old], digits.split[old])), _domain(digits)


def _domain(digits: Digits) -> Domain:
    return Domain(*(_samples(digits.part(split)) for split in (TRAIN, VALIDATION, TEST)))


def _samples(digits: Digits) -> Samples:
    return Samples(torch.from_numpy(digits.inputs), torch.from_numpy(digits.labels))


_CODE: Final = tuple(Path(str(file)) for file in (__file__, digits_data.__file__, digits_model.__file__))
DRIFT: Final = Case(
    name="drift",
    title="The base knows clean digits; now they are turned by 25 degrees, blurred, paler and noisy.",
    make=_drift,
    factory="digits_demo.model:build",
    base=TeacherPlan(),
    retrain=TeacherPlan(),
    epochs=24,
    batch=64,
    code=_CODE,
)
NEW_CLASSES: Final = Case(
    name="new-classes",
    title="The base knows the digits 0 to 6; now there are all ten.",
    make=_new_classes,
    factory="digits_demo.model:build",
    base=TeacherPlan(),
    retrain=TeacherPlan(),
    epochs=24,
    batch=64,
    code=_CODE,
)
