"""Measure a module on samples, and the report: the only code that opens a test split.

`HeldBack` names a test split without giving it; `report` alone opens it, after training has ended. Training code
takes `TrainingData`, which has no room for one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from sprat_server.training.data import Samples
from sprat_server.training.recipes import Trainable

if TYPE_CHECKING:
    from sprat_server.training.local import LocalNorms

BATCH: Final = 256


@dataclass(frozen=True, slots=True)
class TestSamples:
    """The test split, opened. `indices` (n,) are the samples' positions in the dataset file."""

    __test__ = False  # not a test class, whatever its name

    inputs: Tensor
    labels: Tensor
    indices: Sequence[int]


@dataclass(frozen=True, slots=True)
class HeldBack:
    """A test split that is still closed: only `report` calls `open`."""

    open: Callable[[], TestSamples]


@dataclass(frozen=True, slots=True)
class Run:
    """A module with the state that it runs with, and its norms whose statistics are of the inputs that it meets."""

    trainable: Trainable
    state: Mapping[str, Tensor]
    local: "LocalNorms | None" = None


def scores(
    trainable: Trainable, state: Mapping[str, Tensor], samples: Samples, local: "LocalNorms | None" = None
) -> np.ndarray:
    """Return the metric of each sample, float64 (n,), of the module with `state` in evaluation mode.

    With `local`, statistics of those norms are estimated from some of the inputs first, as devices do.
    """
    return _scores(Run(trainable, state, local), samples.inputs, samples.labels)


def _scores(run: Run, inputs: Tensor, labels: Tensor) -> np.ndarray:
    trainable, state = run.trainable, run.state
    if run.local is not None:
        state = run.local.estimated(state, inputs)
    module = trainable.module.eval()
    parts = []
    with torch.no_grad():
        for begin in range(0, len(labels), BATCH):
            outputs = functional_call(module, dict(state), (inputs[begin : begin + BATCH],))
            parts.append(trainable.metric(outputs, labels[begin : begin + BATCH]).double().cpu().numpy())
    return np.concatenate(parts)


@dataclass(frozen=True, slots=True)
class Share:
    """How much of the full retrain's gain a state has: (state - base) / (teacher - base), and its standard error."""

    value: float
    error: float

    def keeps(self, keep: float) -> bool:
        """Say whether this is proof enough of `keep`: above it by a standard error, or by half of what is left.

        The margin is for choosing the smallest of several: the luckiest on the validation split is worse elsewhere.
        The second bound keeps a small split, or a small gain, from asking for more than the teacher has.
        """
        return self.value >= keep + min(self.error, (1 - keep) / 2)


def recovered(base: np.ndarray, teacher: np.ndarray, state: np.ndarray) -> Share:
    """Return the share of the gain from paired scores (n,) of the same samples.

    The error is that of a ratio of means (Cochran, Sampling Techniques, 1977, section 2.11). The teacher's mean must
    be above the base's.
    """
    gain = float((teacher - base).mean())
    share = float((state - base).mean()) / gain
    residual = (state - base) - share * (teacher - base)
    return Share(share, float(np.sqrt((residual**2).mean() / len(residual)) / gain))


@dataclass(frozen=True, slots=True)
class Loss:
    """How much the mean of the metric fell on the old domain (below 0: it rose), and the standard error of that."""

    value: float
    error: float

    def within(self, allowed: float) -> bool:
        """Say whether this is proof enough of a loss of at most `allowed`, with the margin of `Share.keeps`."""
        return self.value <= allowed - min(self.error, allowed / 2)


def lost(before: np.ndarray, state: np.ndarray) -> Loss:
    """Return the loss from paired scores (n,) of the same samples."""
    fall = before - state
    return Loss(float(fall.mean()), float(fall.std() / np.sqrt(len(fall))))


def report(
    trainable: Trainable,
    held_back: HeldBack,
    *,
    retained: HeldBack | None = None,
    deployed: Run | None = None,
    base: Mapping[str, Tensor],
    teacher: Mapping[str, Tensor],
    released: Mapping[str, Tensor],
    local: "LocalNorms | None" = None,
) -> dict[str, Any]:
    """Open the test split and measure base, full retrain and the decoded release on it.

    Args:
        trainable: the module.
        held_back: the test split of the new domain.
        retained: of the old domain, where one is to be kept.
        deployed: the base where it is another module; a label beyond its outputs is wrong there.
        base: state of the base.
        teacher: state of the full retrain.
        released: state of the decoded release.
        local: its norms whose statistics devices compute: they are estimated from inputs of the split that is measured.

    Returns:
        accuracy_base, accuracy_retrained, accuracy_released (means of the metric), recovered_gain (None where the
        retrain gained nothing on the test split) and test_indices; with `retained` also accuracy_old_base,
        accuracy_old_retrained, accuracy_old_released and test_indices_old.
    """
    states = {
        "base": deployed or Run(trainable, base),
        "retrained": Run(trainable, teacher),
        "released": Run(trainable, released, local),
    }
    test = held_back.open()
    mean = _means(states, test)
    gain = mean["retrained"] - mean["base"]
    told = {
        **{f"accuracy_{name}": value for name, value in mean.items()},
        "recovered_gain": (mean["released"] - mean["base"]) / gain if gain > 0 else None,
        "test_indices": [int(index) for index in test.indices],
    }
    if retained is None:
        return told
    old = retained.open()
    return {
        **told,
        **{f"accuracy_old_{name}": value for name, value in _means(states, old).items()},
        "test_indices_old": [int(index) for index in old.indices],
    }


def _means(states: Mapping[str, Run], test: TestSamples) -> dict[str, float]:
    return {name: float(_scores(one, test.inputs, test.labels).mean()) for name, one in states.items()}
