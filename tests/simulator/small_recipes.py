"""Recipes of tiny torch modules that train in a second, and data that they can learn: the tests' own recipe package."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

SIDE = 8
CLASSES = 4


class Small(nn.Module):
    """A convolution with batch norm and two linear layers for images (1, 8, 8)."""

    def __init__(self, *, width: int = 8, hidden: int = 24, classes: int = CLASSES) -> None:
        super().__init__()
        self.see = nn.Conv2d(1, width, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.think = nn.Linear(width * 16, hidden)
        self.tell = nn.Linear(hidden, classes)

    def forward(self, images: Tensor) -> Tensor:
        seen = torch.relu(self.norm(self.see(images))).flatten(1)
        logits: Tensor = self.tell(torch.relu(self.think(seen)))
        return logits


class Tied(nn.Module):
    """Token ids (4,) to logits over the vocabulary; input and output share one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 8)
        self.out = nn.Linear(8, 6, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.out(torch.tanh(self.embed(tokens).mean(1)))
        return logits


class Unused(nn.Module):
    """Has a parameter that no output depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = nn.Linear(4, 4)
        self.spare = nn.Parameter(torch.ones(4))

    def forward(self, values: Tensor) -> Tensor:
        logits: Tensor = self.kept(values)
        return logits


class Match(nn.Module):
    """A module of two inputs, and two outputs by name, one that the exporter has for a value inside."""

    def __init__(self) -> None:
        super().__init__()
        self.see, self.read = nn.Linear(6, 4), nn.Embedding(9, 4)

    def forward(self, image: Tensor, ids: Tensor) -> dict[str, Tensor]:
        seen, said = self.see(image), self.read(ids).mean(1)
        return {"score": (seen * said).sum(1), "embedding": seen}


MATCH = {  # in another order than a database would have keys in
    "inputs": [{"name": "image", "shape": [1, 6], "dtype": "F32"}, {"name": "ids", "shape": [1, 3], "dtype": "I64"}]
}


@dataclass
class OwnLoss:
    """A recipe with loss and metric of its own."""

    module: nn.Module

    @staticmethod
    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        return (outputs[:, 0] - labels.float()).square().mean()

    @staticmethod
    def metric(outputs: Tensor, labels: Tensor) -> Tensor:
        return ((outputs[:, 0] - labels.float()).abs() < 0.5).float()


def build(config: Mapping[str, Any]) -> nn.Module:
    return Small(**config)


def build_half(config: Mapping[str, Any]) -> nn.Module:
    return Small(**config).bfloat16()


def build_tied(_config: Mapping[str, Any]) -> nn.Module:
    return Tied()


def build_unused(_config: Mapping[str, Any]) -> nn.Module:
    return Unused()


def build_match(_config: Mapping[str, Any]) -> nn.Module:
    return Match()


def build_own_loss(config: Mapping[str, Any]) -> OwnLoss:
    return OwnLoss(Small(**config))


def build_nothing(_config: Mapping[str, Any]) -> str:
    return "a module"


def build_error(_config: Mapping[str, Any]) -> nn.Module:
    raise KeyError("width")


def images(
    count: int, seed: int, *, dim: float = 0.0, turn: float = 0.0, classes: int = CLASSES
) -> tuple[np.ndarray, np.ndarray]:
    """Return noisy images (count, 1, 8, 8) float32 of a bright quadrant, and its number; drift dims and turns them.

    Classes 4 and 5 are a bright upper and a bright left half.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    inputs = rng.normal(0, 0.6, (count, 1, SIDE, SIDE))
    for position, label in enumerate(labels):
        for part in {4: (0, 1), 5: (0, 2)}.get(int(label), (int(label),)):
            row, column = divmod(part, 2)
            inputs[position, 0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 1
    turned = (1 - turn) * inputs + turn * np.rot90(inputs, axes=(2, 3))
    return (turned - dim).astype(np.float32), labels.astype(np.int64)


def trained(seed: int = 0) -> Small:
    """Return a module that knows undrifted images; under a second."""
    torch.manual_seed(seed)
    module = Small()
    inputs, labels = (torch.from_numpy(a) for a in images(512, seed))
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    module.train()
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(inputs), labels).backward()
        optimizer.step()
    return module.eval()
