"""A base that knows clean images, and data that drifted: shared by the training tests, made once."""

import pytest
import torch
from drifted import Drifted, samples
from small_recipes import Small, trained

from sprat_server.training.data import TrainingData
from sprat_server.training.recipes import Trainable, accuracy
from sprat_server.training.states import module_tensors, to_source


@pytest.fixture(scope="session")
def _base_state() -> dict[str, torch.Tensor]:
    torch.set_num_threads(1)
    return {name: tensor.clone() for name, tensor in trained().state_dict().items()}


@pytest.fixture
def drifted(_base_state: dict[str, torch.Tensor]) -> Drifted:
    """A fresh copy of the base with 384 drifted samples to train on and 256 to choose by."""
    module = Small()
    module.load_state_dict(_base_state)
    module.eval()
    trainable = Trainable(module, torch.nn.functional.cross_entropy, accuracy, classifies=True)
    return Drifted(trainable, to_source(module_tensors(module)), TrainingData(samples(384, 1), samples(256, 2)))
