"""The demo's recipe: a small convolutional network with batch norm for 28 x 28 digits, about 260,000 values."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class Digits(nn.Module):
    """Two strided convolutions and two linear layers.

    Args:
        channels: of the first convolution; the second has three times as many.
        hidden: width of the first linear layer.
        classes: number of outputs.
    """

    def __init__(self, *, channels: int = 16, hidden: int = 107, classes: int = 10) -> None:
        super().__init__()
        wide = 3 * channels
        self.see = nn.Sequential(
            nn.Conv2d(1, channels, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, wide, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
        )
        self.tell = nn.Sequential(
            nn.Flatten(),
            nn.Linear(wide * 7 * 7, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (batch, classes) of images (batch, 1, 28, 28) in [0, 1]."""
        logits: Tensor = self.tell(self.see(images))
        return logits


def build(config: Mapping[str, Any]) -> nn.Module:
    """Return the network; `config` may set channels, hidden and classes."""
    return Digits(**config)
