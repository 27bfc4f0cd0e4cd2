"""What training is given: the train and the validation split. The test split has a type of its own, in `evaluate`."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sprat_server.training.recipes import Trainable
from sprat_shared.errors import InvalidInput


class DataMismatch(InvalidInput):
    """The dataset does not fit the model."""

    code = "dataset.mismatch"


@dataclass(frozen=True, slots=True)
class Samples:
    """Labelled samples: inputs (n, ...), labels (n,) int64."""

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True)
class TrainingData:
    """All that training code ever sees of a dataset."""

    train: Samples
    validation: Samples


def check_fit(trainable: Trainable, samples: Samples, *, what: str) -> None:
    """Run one sample through the module and compare shapes and labels with what comes out.

    Raises:
        DataMismatch: the module cannot take the inputs, or a label is beyond its outputs.
    """
    module = trainable.module.eval()
    try:
        with torch.no_grad():
            outputs = module(samples.inputs[:1])
    except (RuntimeError, ValueError, IndexError, TypeError) as e:
        shape = list(samples.inputs.shape[1:])
        raise DataMismatch(f"{what}: the model cannot take inputs of shape {shape}: {e}") from e
    if not trainable.classifies:
        return
    if not isinstance(outputs, Tensor) or outputs.ndim != 2:  # noqa: PLR2004 - (batch, classes)
        shown = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise DataMismatch(f"{what}: the model gives {shown} where logits (batch, classes) are needed")
    highest = int(samples.labels.max())
    if highest >= outputs.shape[1]:
        raise DataMismatch(
            f"{what}: label {highest} is beyond the model's {outputs.shape[1]} outputs (labels 0 to "
            f"{outputs.shape[1] - 1}); relabel the dataset or register a model with a larger head"
        )
