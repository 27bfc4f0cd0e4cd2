"""Where a torch module computes what a cut of its graph gives, and another tensor put there.

A cut is a tensor of an ONNX graph; a module calls torch's functions. The two meet where a call gives the cut's values.
A place is the number of that call in a forward pass, whether a layer makes it or the module's own code.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

CLOSE: Final = 1e-3
"""Of the largest number of a tensor: so far may torch and onnxruntime be from each other in float32."""


def close(one: Tensor, other: Tensor) -> bool:
    """Say whether two tensors are one computed twice in float32."""
    if one.shape != other.shape or not one.is_floating_point():
        return False
    return bool((one - other).abs().max() <= CLOSE * other.abs().max())


def places(module: nn.Module, inputs: Tensor, wished: Tensor) -> list[int]:
    """Return the calls of a forward pass that give a tensor, in their order.

    Args:
        module: is run once.
        inputs: (n, ...).
        wished: what it computes of these.
    """
    found = []

    def note(call: int, output: Any) -> Any:
        if isinstance(output, Tensor) and close(output, wished):
            found.append(call)
        return output

    with torch.no_grad(), _Calls(note):
        module(inputs)
    return found


@contextmanager
def put(place: int, tensor: Tensor) -> Iterator[None]:
    """Have the forward pass of a module go on from a tensor at a place."""
    with _Calls(lambda call, output: tensor if call == place else output):
        yield


class _Calls(TorchFunctionMode):
    """Numbers the calls of torch's functions, and lets each output be replaced by what `told` makes of it."""

    def __init__(self, told: Callable[[int, Any], Any]) -> None:
        super().__init__()
        self._told, self._calls = told, 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Collection[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Carry out one call; those that it makes in turn are not seen."""
        output, call = func(*args, **(kwargs or {})), self._calls
        self._calls += 1
        return self._told(call, output)


def last_linear(module: nn.Module, inputs: Tensor) -> str | None:
    """Return the name of the linear layer that is called last, None where none is."""
    called: list[str] = []
    with ExitStack() as hooks, torch.no_grad():
        for name, layer in module.named_modules():
            if isinstance(layer, nn.Linear):
                hook = layer.register_forward_hook(lambda *_, name=name: called.append(name))
                hooks.callback(hook.remove)
        module(inputs)
    return called[-1] if called else None
