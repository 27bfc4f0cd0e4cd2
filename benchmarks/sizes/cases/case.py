"""What a case is: data before and now, a network, and how base, full retrain and every student are trained."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sprat_server.training import teacher as teacher_code
from sprat_server.training.data import Samples
from sprat_server.training.teacher import TeacherPlan


class CaseUnavailable(Exception):
    """A case whose data are not on this machine; it is left out, and the message says what to install."""


@dataclass(frozen=True, slots=True)
class Domain:
    """The three splits of what a network sees at one time. Inputs are (n, ...) of any dtype, labels (n,) int64."""

    train: Samples
    validation: Samples
    test: Samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """All that a method is not told but in the shape of a `Problem`.

    Attributes:
        name: of the case, on the command line and in file names.
        title: one sentence: what the base knows, and what devices see now.
        make: seed -> (data that the base is trained on, data that devices see now).
        factory: of the network, `package.module:function`, as a recipe names it.
        config: that the factory is called with.
        base: how the base is trained from the factory's weights, on what was before.
        retrain: how the full retrain is trained from the base, on what is now.
        epochs: passes over the train split that every trained row gets, sprat's and peers'.
        batch: samples a step of these.
        code: files whose change makes another problem.
        data: files and folders on the machine that the data are made of; another name or size makes another problem.
    """

    name: str
    title: str
    make: Callable[[int], tuple[Domain, Domain]]
    factory: str
    base: TeacherPlan
    retrain: TeacherPlan
    epochs: int
    batch: int
    code: tuple[Path, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    data: tuple[Path, ...] = ()

    def digest(self) -> str:
        """Return eight hex digits that change with the case's code, the teacher's code and the data."""
        whole = hashlib.sha256()
        for file in (*self.code, Path(teacher_code.__file__)):
            whole.update(file.read_bytes())
        for path in self.data:
            for file in sorted(path.rglob("*")) if path.is_dir() else (path,):
                size = file.stat().st_size if file.exists() else 0
                whole.update(f"{file.relative_to(path.parent)} {size}\n".encode())
        return whole.hexdigest()[:8]


def splits(count: int, seed: int, sizes: tuple[int, int, int]) -> tuple["np.ndarray[Any, np.dtype[np.int64]]", ...]:
    """Return the indices of train, validation and test split: disjoint, drawn from `count` samples with the seed."""
    order = np.random.default_rng(seed).permutation(count)
    first, second, third = np.cumsum(sizes)
    return order[:first], order[first:second], order[second:third]
