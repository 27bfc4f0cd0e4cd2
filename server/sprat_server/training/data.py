"""What training is given: the train and the validation split. The test split has a type of its own, in `evaluate`."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sprat_server.registry.samples import UNLABELLED
from sprat_server.training.recipes import RecipeBroken, Trainable
from sprat_shared.errors import InvalidInput


class DataMismatch(InvalidInput):
    """The dataset does not fit the model."""

    code = "dataset.mismatch"


@dataclass(frozen=True, slots=True)
class Samples:
    """Samples: inputs (n, ...), labels (n,) int64, in a train split `UNLABELLED` where there is none."""

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def labelled(self) -> "Samples":
        """Return those that have a label."""
        known = self.labels != UNLABELLED
        return self if known.all() else Samples(self.inputs[known], self.labels[known])


@dataclass(frozen=True, slots=True)
class TrainingData:
    """All that training code ever sees of a dataset."""

    train: Samples
    validation: Samples


def with_replay(new: Samples, old: Samples, *, seed: int) -> Samples:
    """Return the new samples, each followed by one of the old, so that both domains weigh the same: (2 n, ...).

    The old ones are drawn without repeats as far as they go, then again from the start.

    Args:
        new: train split of the new domain, n samples.
        old: train split of the old domain, at least one sample.
        seed: of the drawing.

    Raises:
        DataMismatch: samples of the two have different shapes.
    """
    if new.inputs.shape[1:] != old.inputs.shape[1:]:
        raise DataMismatch(
            f"samples to retain have shape {list(old.inputs.shape[1:])}, the new ones {list(new.inputs.shape[1:])}; "
            "both must be the same"
        )
    order = torch.Generator().manual_seed(seed)
    rounds = [torch.randperm(len(old), generator=order) for _ in range(math.ceil(len(new) / len(old)))]
    drawn = torch.cat(rounds)[: len(new)]
    return Samples(
        torch.stack((new.inputs, old.inputs[drawn]), 1).flatten(0, 1),
        torch.stack((new.labels, old.labels[drawn]), 1).flatten(0, 1),
    )


def check_fit(trainable: Trainable, inputs: Tensor, labels: Tensor, *, largest: int) -> None:
    """Run a few samples through module, loss and metric, and compare shapes and labels with what comes out.

    Args:
        trainable: its module in evaluation mode.
        inputs: (n, ...).
        labels: (n,) int64.
        largest: the largest label of the dataset.

    Raises:
        DataMismatch: the module cannot take the inputs, or a label is beyond its outputs.
        RecipeBroken: the recipe's own loss or metric fails, or gives another shape than it should.
    """
    try:
        with torch.no_grad():
            outputs = trainable.module.eval()(inputs)
    except (RuntimeError, ValueError, IndexError, TypeError) as e:
        raise DataMismatch(f"the model cannot take inputs of shape {list(inputs.shape[1:])}: {e}") from e
    if not trainable.classifies:
        _check_own(trainable, outputs, labels)
        return
    if not isinstance(outputs, Tensor) or outputs.ndim != 2:  # noqa: PLR2004 - (batch, classes)
        shown = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise DataMismatch(f"the model gives {shown} where logits (batch, classes) are needed")
    if largest >= outputs.shape[1]:
        raise DataMismatch(
            f"label {largest} is beyond the model's {outputs.shape[1]} outputs (labels 0 to {outputs.shape[1] - 1}); "
            f"where the recipe's config says how many, give one that says {largest + 1}, such as --config "
            f"'{{\"classes\": {largest + 1}}}'; else relabel the dataset"
        )


def _check_own(trainable: Trainable, outputs: Tensor, labels: Tensor) -> None:
    for name, function, shape in (("loss", trainable.loss, ()), ("metric", trainable.metric, tuple(labels.shape))):
        try:
            given = function(outputs, labels)
        except Exception as e:  # whatever the user's code raises is an error of the recipe, not of the worker
            raise RecipeBroken(f"the recipe's {name} failed: {type(e).__name__}: {e}") from e
        if not isinstance(given, Tensor) or tuple(given.shape) != shape:
            shown = list(given.shape) if isinstance(given, Tensor) else type(given).__name__
            raise RecipeBroken(f"the recipe's {name} gives {shown}; a tensor of shape {list(shape)} is needed")
