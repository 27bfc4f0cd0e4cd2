"""Local statistics: a module measured and trained as devices run it, its batch norms on statistics of their own inputs.

A device computes the running statistics of some norms from its inputs (`sprat_client.agent.estimate`); no update sends
them. Training sees the statistics of each batch instead, which is what they are estimates of, and gradients pass
through them. To measure a state on samples, they are estimated on as few of these inputs as a device might have.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sprat_server.training.teacher import is_batch_norm

SAMPLES: Final = 200
"""Inputs from which statistics are estimated when a state is measured."""

_MEAN, _VARIANCE, _COUNT = "running_mean", "running_var", "num_batches_tracked"


class LocalNorms:
    """The norms of a module whose statistics are local.

    Args:
        module: evaluation mode; it is left as it was after every call.
        tensors: names of the local tensors.
    """

    def __init__(self, module: nn.Module, tensors: Collection[str]) -> None:
        self._module, self.tensors = module, frozenset(tensors)
        self._norms = {
            name: norm
            for name, norm in module.named_modules()
            if is_batch_norm(norm) and {_in(name, _MEAN), _in(name, _VARIANCE)} <= self.tensors
        }

    def outputs(self, state: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Return the outputs of a batch of two or more with its own statistics in local norms; differentiable."""
        with self._counting():
            outputs: Tensor = functional_call(self._module, self._with_room(state), (inputs,))
        return outputs

    def estimated(self, state: Mapping[str, Tensor], inputs: Tensor) -> dict[str, Tensor]:
        """Return the state with local statistics of up to `SAMPLES` of the inputs, evenly spread, in one batch."""
        used = min(len(inputs), SAMPLES)
        chosen = inputs[torch.arange(used) * len(inputs) // used]
        given = self._with_room(state)
        with self._counting(), torch.no_grad():
            functional_call(self._module, given, (chosen,))
        return {**state, **{name: given[name] for name in self.tensors}}

    def owns(self, tensor: str) -> bool:
        """Say whether a tensor is one of these norms', its scale and bias among them."""
        return tensor.rpartition(".")[0] in self._norms

    @contextmanager
    def _counting(self) -> Iterator[None]:
        """Let the local norms use and keep the statistics of the batch."""
        momenta = {name: norm.momentum for name, norm in self._norms.items()}
        self._module.eval()
        try:
            for norm in self._norms.values():
                norm.momentum = 1.0
                norm.train()
            yield
        finally:
            for name, norm in self._norms.items():
                norm.momentum = momenta[name]
            self._module.eval()

    def _with_room(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the state with tensors of its own where a norm that counts writes."""
        own = dict(state)
        for name, norm in self._norms.items():
            features = int(norm.num_features)
            own[_in(name, _MEAN)], own[_in(name, _VARIANCE)] = torch.zeros(features), torch.ones(features)
            own[_in(name, _COUNT)] = torch.zeros((), dtype=torch.int64)
        return own


def _in(norm: str, tensor: str) -> str:
    return f"{norm}.{tensor}" if norm else tensor
