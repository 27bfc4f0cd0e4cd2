"""Small networks of four kinds for 28 x 28 pictures: VGG-like in two widths, ResNet-like, Xception-like.

Simonyan, Zisserman (arXiv 1409.1556); He et al. (arXiv 1512.03385); Chollet (arXiv 1610.02357).
"""

from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor, nn


def _conv(narrow: int, wide: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(narrow, wide, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(wide), nn.ReLU()]


def _head(wide: int, classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(wide, classes)]


def vgg(classes: int, width: int = 16) -> nn.Module:
    """Return convolutions and pools in a row: (batch, 1, 28, 28) -> logits (batch, classes)."""
    w = width
    return nn.Sequential(
        *_conv(1, w, 2),
        *_conv(w, 2 * w),
        nn.MaxPool2d(2),
        *_conv(2 * w, 4 * w),
        *_conv(4 * w, 4 * w),
        nn.MaxPool2d(2),
        *_conv(4 * w, 8 * w),
        *_head(8 * w, classes),
    )


class Residual(nn.Module):
    """Two 3 x 3 convolutions beside a short cut; a stride halves height and width."""

    def __init__(self, narrow: int, wide: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_conv(narrow, wide, stride), nn.Conv2d(wide, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide)
        )
        self.short = nn.Sequential(nn.Conv2d(narrow, wide, 1, stride=stride, bias=False), nn.BatchNorm2d(wide))

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, wide, height / stride, width / stride) of (batch, narrow, height, width)."""
        return torch.relu(self.body(x) + self.short(x))


def resnet(classes: int) -> nn.Module:
    """Return residual blocks in a row."""
    return nn.Sequential(
        *_conv(1, 16, 2), Residual(16, 32, 2), Residual(32, 64, 2), Residual(64, 96, 1), *_head(96, classes)
    )


class Separable(nn.Module):
    """Two depthwise separable convolutions beside a short cut of stride two."""

    def __init__(self, narrow: int, wide: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *self._separable(narrow, wide), nn.ReLU(), *self._separable(wide, wide), nn.MaxPool2d(3, 2, 1)
        )
        self.short = nn.Sequential(nn.Conv2d(narrow, wide, 1, stride=2, bias=False), nn.BatchNorm2d(wide))

    @staticmethod
    def _separable(narrow: int, wide: int) -> list[nn.Module]:
        return [
            nn.Conv2d(narrow, narrow, 3, padding=1, groups=narrow, bias=False),
            nn.Conv2d(narrow, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
        ]

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, wide, height / 2, width / 2) of (batch, narrow, height, width)."""
        return torch.relu(self.body(x) + self.short(x))


def xception(classes: int) -> nn.Module:
    """Return separable blocks in a row."""
    return nn.Sequential(
        *_conv(1, 24, 2), Separable(24, 96), Separable(96, 160), Separable(160, 192), *_head(192, classes)
    )


FAMILIES: Final[Mapping[str, Callable[[int], nn.Module]]] = {
    "vgg": vgg,
    "vgg-wide": lambda classes: vgg(classes, 24),
    "resnet": resnet,
    "xception": xception,
}
