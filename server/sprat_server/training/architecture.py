"""A recipe's module under the config of a release: with the base's weights in it, and as the graph that devices run.

Where the config has changed since the base, the module has grown: its tensors begin with the base's values where both
reach. What is new begins as zeros for devices (`wire.patch`), and with the module's own initial values for the full
retrain, which could not learn from a hidden layer of zeros.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sprat_server.training import recipes
from sprat_server.training.evaluate import Run
from sprat_server.training.export import Example, Exported, export, run, verify
from sprat_server.training.recipes import Trainable
from sprat_server.training.states import (
    CODES,
    WeightsMismatch,
    floats,
    load_weights,
    module_tensors,
    tied_names,
    to_torch,
)
from sprat_shared.wire.patch import PatchedTensors, under
from sprat_shared.wire.tensors import TensorSource, TensorSpec, TensorTable


@dataclass(frozen=True, slots=True)
class Start:
    """What a retrain starts from.

    Attributes:
        trainable: its module in the weights that the full retrain starts from, as float32.
        base: the exact weights that devices have, as records of an update see them.
        deployed: the base as devices run it, where the module is another and both classify; else None.
    """

    trainable: Trainable
    base: TensorSource
    deployed: Run | None = None


def begin(
    factory: str,
    config: Mapping[str, Any],
    weights: TensorSource,
    allowed: Sequence[str],
    *,
    before: Mapping[str, Any] | None = None,
) -> Start:
    """Build a recipe's module and put the base's weights into it.

    Args:
        factory: `package.module:function`.
        config: of the module.
        weights: of the base.
        allowed: the packages that recipes may come from.
        before: the base's config, where it is another.

    Raises:
        RecipeRefused, RecipeBroken: the recipe may not run here, or fails.
        WeightsMismatch: the weights are not the module's, or cannot become them; tensors are named.
        LimitExceeded: the module has many times the base's bytes.
    """
    trainable = recipes.build(factory, config, allowed)
    if before is None:
        load_weights(trainable.module, weights)
        _as_float32(trainable)
        return Start(trainable, weights)
    base = _grown(trainable.module, weights)
    _as_float32(trainable)
    if not trainable.classifies:
        return Start(trainable, base)
    old = recipes.build(factory, before, allowed)
    load_weights(old.module, weights)
    _as_float32(old)
    return Start(trainable, base, Run(old, floats(to_torch(weights))))


def export_verified(module: nn.Module, weights: TensorSource, example: Example) -> Exported:
    """Put the weights into a module and return its graphs, verified to compute in onnxruntime what it computes.

    Args:
        module: as its recipe gives it, in the dtypes of the weights.
        weights: of the release.
        example: of one input.

    Raises:
        WeightsMismatch: the weights are not the module's.
        InvalidInput: the module does not take the example.
        GraphRefused: torch cannot export it, or the graph computes something else.
    """
    load_weights(module, weights)
    exported = export(module, weights, example)
    verify_exported(module, weights, exported, example)
    return exported


def verify_exported(module: nn.Module, weights: TensorSource, exported: Exported, example: Example) -> None:
    """Run the graphs of a module, in its weights, in onnxruntime.

    Raises:
        GraphRefused: they compute something else, or do not run.
    """
    verify(module, weights, exported.graph, example)
    run(weights, exported.probe, example.inputs(1))


def _as_float32(trainable: Trainable) -> None:
    trainable.module.float().eval()


def _grown(module: nn.Module, weights: TensorSource) -> TensorSource:
    """Put the weights into the module as far as both reach, and return them as they are under its tensor table."""
    own, tied = module_tensors(module), tied_names(module)
    table = TensorTable((TensorSpec(name, CODES[t.dtype], tuple(t.shape)) for name, t in own.items()), tied)
    _check_dtypes(table, weights.table)
    base = under(weights, table)
    if not isinstance(base, PatchedTensors):
        load_weights(module, weights)
        return base
    begun = to_torch(base)
    with torch.no_grad():
        for name, tensor in module.state_dict(keep_vars=True).items():
            kept = tied.get(name, name)
            if (both := base.overlap(table.index_of(kept))) is not None:
                tensor[both] = begun[kept][both]
    _check_untrained(module, base, begun)
    return base


def _check_dtypes(table: TensorTable, weights: TensorTable) -> None:
    held = {spec.name: spec.dtype for spec in weights}
    changed = [
        f"{spec.name} ({held[spec.name]} to {spec.dtype})"
        for spec in table
        if held.get(spec.name, spec.dtype) != spec.dtype
    ]
    if changed:
        raise WeightsMismatch(f"the config changes the dtype of {', '.join(changed[:20])}; a retrain keeps dtypes")


def _check_untrained(module: nn.Module, base: PatchedTensors, begun: Mapping[str, Tensor]) -> None:
    """Refuse new values that no training would send: of buffers and frozen parameters, where they are not zero."""
    trained = {name for name, p in module.named_parameters(remove_duplicate=False) if p.requires_grad}
    own = module_tensors(module)
    lost = [
        spec.name
        for index, spec in enumerate(base.table)
        if base.kept(index) is None and spec.name not in trained and not torch.equal(own[spec.name], begun[spec.name])
    ]
    if lost:
        raise WeightsMismatch(
            f"under this config {', '.join(lost[:20])} would be new or larger, but no training changes them "
            "(buffers, frozen parameters); let the config grow trained layers only"
        )
