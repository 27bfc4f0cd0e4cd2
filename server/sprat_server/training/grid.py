"""The integer grid that updates are trained on: rounding that gradients pass, and what an encoding must do for it.

What is trained are real numbers behind the integers of the records (docs/wire-format.md); the forward pass sees them
rounded, the gradient passes the rounding unchanged (straight-through: Bengio et al., arXiv 1308.3432).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np
import torch
from torch import Tensor

from sprat_shared.wire.records import Record

LIMIT: Final = 127
"""The largest magnitude of a trained integer."""

_MATRIX: Final = 2


class Part(Protocol):
    """A share of the update: some tensors' changes, as integers of one encoding."""

    def latents(self) -> list[Tensor]:
        """Return the real numbers that are trained, in grid steps."""

    def changes(self, *, on_grid: bool) -> Mapping[str, Tensor]:
        """Return the change of each tensor by name; differentiable. On the grid: as decoding the records gives it."""

    def records(self, index: Mapping[str, int]) -> Sequence[Record]:
        """Return what is to be sent; `index` is each tensor's position in the table. Nothing for what is zero."""


def rounded(x: Tensor) -> Tensor:
    """Round to the grid; the gradient passes unchanged."""
    return x + (x.round() - x).detach()


def integers(latent: Tensor) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """Return the integers of a latent, in its shape."""
    return latent.detach().round().to(torch.int64).numpy()


def rms(tensor: Tensor) -> float:
    """Return the root mean square; 0 of an empty tensor."""
    return float(tensor.double().square().mean().sqrt()) if tensor.numel() else 0.0


def matrix_shape(tensor: Tensor) -> tuple[int, int]:
    """Return the matrix view (first dimension, product of the others); a column where there is one dimension."""
    return (tensor.shape[0], tensor[0].numel()) if tensor.ndim >= _MATRIX else (tensor.numel(), 1)
