"""What every candidate of a retrain is trained from: base, teacher, and samples with the teacher's answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.func import functional_call

from sprat_server.training.data import Samples
from sprat_server.training.local import LocalNorms
from sprat_server.training.recipes import Trainable
from sprat_shared.wire.tensors import REBUILDABLE, TensorSource

_BATCH: Final = 256
_JUDGED: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """What a candidate is trained from.

    Attributes:
        trainable: its module in the base's weights (float32), evaluation mode.
        source: the exact weights that devices have.
        base: their state by name (float32 where the release's tensor is a float of any width).
        teacher: the full retrain's state.
        norms: new values of batch norm tensors (`norms.shifted_norms`): where their records start.
        train: the train split, samples without a label (-1) among it.
        targets: the teacher's outputs on it, (n, ...).
        local: the norms whose statistics each device computes; None where all are sent.
    """

    trainable: Trainable
    source: TensorSource
    base: Mapping[str, Tensor]
    teacher: Mapping[str, Tensor]
    norms: Mapping[str, Tensor]
    train: Samples
    targets: Tensor
    local: LocalNorms | None = None

    def outputs(self, state: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Return the outputs of the module with this state as devices compute them; differentiable."""
        if self.local is not None:
            return self.local.outputs(state, inputs)
        outputs: Tensor = functional_call(self.trainable.module.eval(), dict(state), (inputs,))
        return outputs

    def learned(self) -> list[str]:
        """Return the tensors of the table that training changes: not frozen, not empty, of a dtype that has a grid."""
        parameters = self.trainable.module.named_parameters(remove_duplicate=False)
        free = {name for name, parameter in parameters if parameter.requires_grad and parameter.numel()}
        return [spec.name for spec in self.source.table.specs if spec.name in free and spec.dtype in REBUILDABLE]

    def distance(self, state: Mapping[str, Tensor]) -> float:
        """Return how far the outputs with this state are from the teacher's: mean square over at most 1,024 inputs."""
        inputs, targets = self.train.inputs[:_JUDGED], self.targets[:_JUDGED]
        with torch.no_grad():
            parts = max(1, len(inputs) // _BATCH)  # of about equal length: a batch norm takes no batch of one
            pairs = zip(inputs.tensor_split(parts), targets.tensor_split(parts), strict=True)
            missed = sum(float((self.outputs(state, x) - y).double().square().sum()) for x, y in pairs)
        return missed / targets.numel()

    def wanted(self, name: str) -> Tensor:
        """Return the teacher's change of a tensor."""
        return self.teacher[name] - self.base[name]


def teacher_outputs(trainable: Trainable, teacher: Mapping[str, Tensor], train: Samples) -> Tensor:
    """Return the teacher's outputs on the train split, (n, ...)."""
    module = trainable.module.eval()
    with torch.no_grad():
        return torch.cat([functional_call(module, dict(teacher), (part,)) for part in train.inputs.split(_BATCH)])
