"""A recipe small enough for tests: two linear layers on vectors of 16 values, four classes or as many as are asked."""

from collections.abc import Mapping
from typing import Any

from torch import nn


def build(config: Mapping[str, Any]) -> nn.Module:
    hidden = int(config.get("hidden", 32))
    return nn.Sequential(nn.Linear(16, hidden), nn.ReLU(), nn.Linear(hidden, int(config.get("classes", 4))))


def build_norms(_config: Mapping[str, Any]) -> nn.Module:
    """A convolution along the vector with a batch norm, and one more norm behind a linear layer."""
    see = [nn.Unflatten(1, (1, 16)), nn.Conv1d(1, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*see, nn.Linear(112, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 4))
