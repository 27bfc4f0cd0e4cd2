"""Recipes: the user's factory that gives the trainable module, with its loss and metric.

A factory is `package.module:function`. It is called with the recipe's JSON config and returns either a
`torch.nn.Module`, or an object with the attributes

    module  torch.nn.Module: inputs (batch, ...) -> outputs
    loss    optional: (outputs, labels) -> scalar tensor; default cross-entropy
    metric  optional: (outputs, labels) -> (batch,) tensor of scores in [0, 1]; default 1 where the arg max is right

Its code is the user's: it is imported only if its top package is named in `SPRAT_RECIPE_PACKAGES`, and only by
modules that the worker alone imports.
"""

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from sprat_shared.errors import AccessDenied, InvalidInput

_FACTORY: Final = re.compile(r"([A-Za-z_]\w*)((?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)")


class RecipeRefused(AccessDenied):
    """The recipe's package is not among those this server runs."""

    code = "recipe.not-allowed"


class RecipeBroken(InvalidInput):
    """The recipe cannot be imported or does not give a module."""

    code = "recipe.broken"


@dataclass(frozen=True, slots=True)
class Trainable:
    """What a recipe gives.

    Attributes:
        module: the network, in the weights its factory gave it.
        loss: (outputs, labels) -> scalar tensor that training lowers.
        metric: (outputs, labels) -> (batch,) scores in [0, 1]; their mean is reported.
        classifies: loss and metric are the defaults: outputs are logits (batch, classes), labels below classes.
    """

    module: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    metric: Callable[[Tensor, Tensor], Tensor]
    classifies: bool


def build(factory: str, config: Mapping[str, Any], allowed: Sequence[str], *, seed: int = 0) -> Trainable:
    """Import a recipe's factory and call it.

    Args:
        factory: `package.module:function`.
        config: the recipe's JSON config, given as the only argument.
        allowed: the packages that recipes may come from (`SPRAT_RECIPE_PACKAGES`).
        seed: of torch's generator while the factory runs, so that it always gives the same initial weights.

    Raises:
        InvalidInput: `factory` has another form.
        RecipeRefused: its top package is not in `allowed`; nothing was imported.
        RecipeBroken: import or call failed, or what came back is not a module; the message has the cause.
    """
    match = _FACTORY.fullmatch(factory)
    if match is None:
        raise InvalidInput(f"recipe {factory[:200]!r} is not of the form package.module:function")
    package, rest, function = match.groups()
    if package not in allowed:
        named = ", ".join(allowed) or "none"
        raise RecipeRefused(
            f"recipe {factory}: package {package} may not run here; SPRAT_RECIPE_PACKAGES names {named}"
        )
    try:
        make = getattr(importlib.import_module(package + rest), function)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = make(dict(config))
    except Exception as e:  # whatever the user's code raises is an error of the recipe, not of the worker
        raise RecipeBroken(f"recipe {factory} with config {dict(config)!r} failed: {type(e).__name__}: {e}") from e
    return _trainable(factory, made)


def _trainable(factory: str, made: object) -> Trainable:
    module = made if isinstance(made, nn.Module) else getattr(made, "module", None)
    if not isinstance(module, nn.Module):
        raise RecipeBroken(
            f"recipe {factory} returned {type(made).__name__}; return a torch.nn.Module, "
            "or an object with `module` and, where wanted, `loss` and `metric`"
        )
    own = made if made is not module else None
    loss, metric = getattr(own, "loss", None), getattr(own, "metric", None)
    for name, given in (("loss", loss), ("metric", metric)):
        if given is not None and not callable(given):
            raise RecipeBroken(f"recipe {factory}: its {name} is {type(given).__name__}, not a function")
    return Trainable(
        module=module,
        loss=loss or functional.cross_entropy,
        metric=metric or accuracy,
        classifies=loss is None and metric is None,
    )


def accuracy(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return 1 where the largest output is the label's, else 0. outputs (batch, classes), labels (batch,)."""
    return (outputs.argmax(1) == labels).float()
