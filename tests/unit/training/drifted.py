"""A trained network, and data that drifted since."""

from dataclasses import dataclass

import torch
from small_recipes import images

from sprat_server.training.data import Samples, TrainingData
from sprat_server.training.recipes import Trainable
from sprat_shared.wire.tensors import ArrayTensors


@dataclass
class Drifted:
    """A trained base, its exact weights, and drifted data to retrain on."""

    trainable: Trainable
    base: ArrayTensors
    data: TrainingData


def samples(count: int, seed: int) -> Samples:
    inputs, labels = images(count, seed, dim=1.0, turn=0.55)
    return Samples(torch.from_numpy(inputs.copy()), torch.from_numpy(labels))
