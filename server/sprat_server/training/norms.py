"""Batch norms under a new distribution: statistics re-estimated on new inputs, and put into scale and bias.

In evaluation mode a batch norm computes g * (x - m) / sqrt(v + eps) + b: two numbers per channel decide it, though
it stores four. New statistics (m', v') are the same function as the old ones with

    g' = g * sqrt((v + eps) / (v' + eps))        b' = b + g' * (m - m') / sqrt(v + eps)

so an update leaves m and v as they are and sends the change of g and b only.
"""

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor, nn

from sprat_server.training.data import Samples
from sprat_server.training.teacher import is_batch_norm

_BATCH: Final = 256
_MAX_SAMPLES: Final = 4096


def shifted_norms(module: nn.Module, base: Mapping[str, Tensor], samples: Samples) -> dict[str, Tensor]:
    """Return the tensors of all batch norms after their statistics were re-estimated on `samples`.

    Args:
        module: in the base's weights; it is left as it was.
        base: the base's state by name.
        samples: of the train split; labels are not looked at.

    Returns:
        name -> new value: weight and bias where the norm has them, else running_mean and running_var.
    """
    norms = {name: norm for name, norm in module.named_modules() if is_batch_norm(norm)}
    if not norms:
        return {}
    momenta = {name: norm.momentum for name, norm in norms.items()}
    before = {name: {key: t.clone() for key, t in norm.state_dict().items()} for name, norm in norms.items()}
    module.eval()
    for norm in norms.values():
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
        norm.train()
    try:
        with torch.no_grad():
            for begin in range(0, min(len(samples), _MAX_SAMPLES), _BATCH):
                batch = samples.inputs[begin : begin + _BATCH]
                if len(batch) > 1:
                    module(batch)
        changed: dict[str, Tensor] = {}
        for name, norm in norms.items():
            changed |= _shift(name, norm, base)
    finally:
        for name, norm in norms.items():
            norm.momentum = momenta[name]
            norm.load_state_dict(before[name])
        module.eval()
    return changed


def _shift(name: str, norm: nn.Module, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    dot = f"{name}." if name else ""
    mean, var = base[f"{dot}running_mean"], base[f"{dot}running_var"]
    new_mean, new_var = norm.running_mean.clone(), norm.running_var.clone()  # type: ignore[operator]  # torch types a module's tensors loosely
    if f"{dot}weight" not in base:
        return {f"{dot}running_mean": new_mean, f"{dot}running_var": new_var}
    eps = float(norm.eps)  # type: ignore[arg-type]
    weight = base[f"{dot}weight"] * ((var + eps) / (new_var + eps)).sqrt()
    bias = base[f"{dot}bias"] + weight * (mean - new_mean) / (var + eps).sqrt()
    return {f"{dot}weight": weight, f"{dot}bias": bias}
