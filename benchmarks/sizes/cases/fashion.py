"""(c): Fashion-MNIST with a small residual network; now the pictures are turned, blurred, pale and noisy.

Xiao, Rasul, Vollgraf, "Fashion-MNIST", arXiv 1708.07747; the files are those of Debian's dataset-fashion-mnist.
"""

import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor, nn

from sizes.cases.case import Case, CaseUnavailable, Domain, splits
from sprat_server.training.data import Samples
from sprat_server.training.teacher import TeacherPlan

FOLDER: Final = Path("/usr/share/datasets/fashion-mnist")
_TRAIN, _VALIDATION, _TEST = 4000, 1000, 2000
_SIDE: Final = 28
_TILT_DEGREES, _BLUR, _CONTRAST, _NOISE = 20, 0.7, 1.0, 0.08


class Block(nn.Module):
    """Two 3 x 3 convolutions beside a short cut, each with its batch norm; a stride halves height and width."""

    def __init__(self, narrow: int, wide: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(narrow, wide, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
            nn.Conv2d(wide, wide, 3, padding=1, bias=False),
            nn.BatchNorm2d(wide),
        )
        short = (nn.Conv2d(narrow, wide, 1, stride=stride, bias=False), nn.BatchNorm2d(wide))
        self.short = nn.Identity() if stride == 1 and narrow == wide else nn.Sequential(*short)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, wide, height / stride, width / stride) of (batch, narrow, height, width)."""
        return torch.relu(self.body(x) + self.short(x))


def build(config: Mapping[str, Any]) -> nn.Module:
    """Return the network: images (batch, 1, 28, 28) in [0, 1] -> logits (batch, 10); `config` takes nothing."""
    if config:
        raise ValueError(f"this network takes no config, not {dict(config)!r}")
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        Block(16, 32, 2),
        Block(32, 64, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def _read(name: str, header: int) -> npt.NDArray[np.uint8]:
    path = FOLDER / f"{name}-ubyte.gz"
    if not path.exists():
        raise CaseUnavailable(f"{path} is not there; install Debian's package dataset-fashion-mnist")
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)


def _make(seed: int) -> tuple[Domain, Domain]:
    images = _read("train-images-idx3", 16).reshape(-1, _SIDE, _SIDE)
    labels = _read("train-labels-idx1", 8)
    sizes = (_TRAIN, _VALIDATION, _TEST)
    drawn = splits(len(images), seed, (sum(sizes), sum(sizes), 0))
    domains = []
    for indices, drifts in zip(drawn[:2], (False, True), strict=True):
        clean = images[indices].astype(np.float32) / 255
        seen = _drifted(clean, seed) if drifts else clean
        parts = np.split(np.arange(len(indices)), np.cumsum(sizes)[:2])
        domains.append(Domain(*(_samples(seen[part], labels[indices[part]]) for part in parts)))
    return domains[0], domains[1]


def _drifted(images: npt.NDArray[np.float32], seed: int) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng((seed, 1))
    turned = ndimage.rotate(images, _TILT_DEGREES, axes=(2, 1), reshape=False, order=1)
    blurred = ndimage.gaussian_filter(turned, (0, _BLUR, _BLUR))
    grey = 0.5 + _CONTRAST * (blurred - 0.5) + rng.normal(0, _NOISE, blurred.shape)
    seen: npt.NDArray[np.float32] = np.clip(grey, 0, 1).astype(np.float32)
    return seen


def _samples(images: npt.NDArray[np.float32], labels: npt.NDArray[np.uint8]) -> Samples:
    return Samples(torch.from_numpy(images[:, None]), torch.from_numpy(labels.astype(np.int64)))


FASHION: Final = Case(
    name="fashion",
    title="The base knows clean pictures of clothes; now they are turned by 20 degrees, blurred, pale and noisy.",
    make=_make,
    factory="sizes.cases.fashion:build",
    base=TeacherPlan(epochs=12),
    retrain=TeacherPlan(epochs=12),
    epochs=20,
    batch=64,
    code=(Path(__file__),),
    data=(FOLDER,),
)
