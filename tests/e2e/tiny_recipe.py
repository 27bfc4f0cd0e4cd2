"""A recipe small enough for tests: two linear layers on vectors of 16 values, four classes or as many as are asked."""

from collections.abc import Mapping
from typing import Any

from torch import nn


def build(config: Mapping[str, Any]) -> nn.Module:
    hidden = int(config.get("hidden", 32))
    return nn.Sequential(nn.Linear(16, hidden), nn.ReLU(), nn.Linear(hidden, int(config.get("classes", 4))))
