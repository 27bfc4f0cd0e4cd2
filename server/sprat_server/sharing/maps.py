"""Affine maps from one model's activations to another's, in closed form: ridge least squares from streamed moments.

A map goes between feature maps (one matrix over channels, at every position), between vectors, from a feature map to a
vector (after averaging over a grid of positions), or between tokens. Where heights and widths differ, the donor's are
brought to the recipient's: averaged over what a position covers where they shrink, interpolated where they grow.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sprat_server.sharing.cuts import Shape
from sprat_shared.errors import InvalidInput

RIDGES: Final = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Ridge penalties that are tried, in units of a feature's mean variance."""

Floats = npt.NDArray[np.float64]
_IMAGE: Final = 3  # dimensions of one sample's feature map


class Form(StrEnum):
    """What a map goes between."""

    CHANNELS = "channels"
    DENSE = "dense"
    POOLED = "pooled"
    TOKENS = "tokens"


def form_of(donor: Shape, recipient: Shape) -> Form | None:
    """Return the form of a map between activations of these shapes, None where there is none."""
    match len(donor), len(recipient):
        case (3, 3):
            return Form.CHANNELS
        case (1, 1):
            return Form.DENSE
        case (3, 1):
            return Form.POOLED
        case (2, 2) if donor[0] == recipient[0]:
            return Form.TOKENS
    return None


@dataclass(frozen=True, slots=True, eq=False)
class AffineMap:
    """y = W x + b for each position, after positions were brought to the recipient's.

    Attributes:
        form: what it goes between.
        donor: shape of the activations it takes.
        recipient: shape of what it gives.
        weight: float32 (features of the recipient, features of the donor).
        bias: float32 (features of the recipient,).
        r2: share of the recipient's variance that it explains on samples it was not fitted on; at most 1.
        grid: rows and columns to which a feature map is averaged on the way to a vector.
    """

    form: Form
    donor: Shape
    recipient: Shape
    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    r2: float
    grid: int = 1

    @property
    def nbytes(self) -> int:
        """Return the bytes of its two tensors."""
        return int(self.weight.nbytes + self.bias.nbytes)

    def apply(self, activations: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return what it makes of a donor's activations (n, *donor): (n, *recipient)."""
        rows = prepared(activations, self.recipient, self.grid)
        flat = rows.reshape(-1, rows.shape[-1]) @ self.weight.T + self.bias
        shaped = flat.reshape(*rows.shape[:-1], len(self.bias))
        if self.form is Form.CHANNELS:
            shaped = np.moveaxis(shaped, -1, 1)
        return np.ascontiguousarray(shaped, dtype=np.float32)


def resampling(before: int, after: int) -> npt.NDArray[np.float32]:
    """Return the matrix (after, before) that brings one axis to another length.

    It averages over the part of the axis that a position covers where the axis shrinks, and interpolates between the
    middles of two positions where it grows; rows sum to one.
    """
    if after <= before:
        edges = np.linspace(0, before, after + 1)
        low, high = np.maximum(edges[:-1, None], np.arange(before)), np.minimum(edges[1:, None], np.arange(before) + 1)
        weights = np.maximum(high - low, 0)
    else:
        middles = (np.arange(after) + 0.5) * before / after - 0.5
        weights = np.maximum(1 - np.abs(np.clip(middles, 0, before - 1)[:, None] - np.arange(before)), 0)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def resampled(activations: npt.NDArray[Any], positions: tuple[int, ...]) -> npt.NDArray[Any]:
    """Return feature maps (n, channels, height, width) brought to another height and width."""
    for axis, (before, after) in enumerate(zip(activations.shape[2:], positions, strict=True), start=2):
        if before != after:
            moved = np.moveaxis(activations, axis, -1) @ resampling(before, after).T
            activations = np.moveaxis(moved, -1, axis)
    return activations


def prepared(activations: npt.NDArray[Any], recipient: Shape, grid: int = 1) -> npt.NDArray[np.float32]:
    """Return a donor's activations (n, *donor) as rows for a map: (n, [positions ...,] features of the donor's row).

    Args:
        activations: of the donor.
        recipient: shape of what the map gives.
        grid: rows and columns to which a feature map is averaged on the way to a vector.

    Raises:
        InvalidInput: there is no map between these shapes.
    """
    shape = activations.shape[1:]
    form = form_of(shape, recipient)
    if form is None:
        raise InvalidInput(f"there is no map from activations of shape {shape} to {recipient}")
    if form is Form.POOLED:
        activations = resampled(activations, (grid, grid)).reshape(len(activations), -1)
    elif form is Form.CHANNELS:
        activations = np.moveaxis(resampled(activations, recipient[1:]), 1, -1)
    return np.ascontiguousarray(activations, dtype=np.float32)


def as_rows(activations: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return a recipient's activations (n, *recipient) as `prepared` lays out the donor's."""
    if activations.ndim - 1 == _IMAGE:
        activations = np.moveaxis(activations, 1, -1)
    return np.ascontiguousarray(activations, dtype=np.float32)


class Moments:
    """Sums over rows, from which a map is solved and judged: nothing of the samples is kept. float64.

    Args:
        donor: features of a donor's row.
        recipient: features of a recipient's row.
    """

    def __init__(self, donor: int, recipient: int) -> None:
        self.rows = 0
        self._x, self._y = np.zeros(donor), np.zeros(recipient)
        self._xx, self._xy = np.zeros((donor, donor)), np.zeros((donor, recipient))
        self._yy = np.zeros(recipient)

    def add(self, donor: npt.NDArray[Any], recipient: npt.NDArray[Any]) -> None:
        """Take in rows (..., features) of both, row by row of the same sample and position."""
        x = donor.reshape(-1, donor.shape[-1]).astype(np.float64)
        y = recipient.reshape(-1, recipient.shape[-1]).astype(np.float64)
        if len(x) != len(y):
            raise InvalidInput(f"{len(x)} rows of the donor and {len(y)} of the recipient; give the same samples")
        self.rows += len(x)
        self._x += x.sum(axis=0)
        self._y += y.sum(axis=0)
        self._xx += x.T @ x
        self._xy += x.T @ y
        self._yy += np.square(y).sum(axis=0)

    def solve(self, *ridges: float) -> list[tuple[Floats, Floats]]:
        """Return weight (recipient, donor) and bias of the least squares with each of some penalties.

        Args:
            ridges: penalties, in units of the donor's mean variance of a feature; the bias has none.

        Raises:
            InvalidInput: no rows were taken in.
        """
        if not self.rows:
            raise InvalidInput("a map is fitted on one sample at least")
        mean_x, mean_y = self._x / self.rows, self._y / self.rows
        covariance = self._xx / self.rows - np.outer(mean_x, mean_x)
        crossed = self._xy / self.rows - np.outer(mean_x, mean_y)
        unit = float(np.trace(covariance)) / len(mean_x) or 1.0
        values, vectors = np.linalg.eigh(covariance)
        turned = vectors.T @ crossed
        solved = []
        for ridge in ridges:
            weight = (vectors @ (turned / (np.maximum(values, 0.0) + ridge * unit)[:, None])).T
            solved.append((weight, mean_y - weight @ mean_x))
        return solved

    def r2(self, weight: Floats, bias: Floats) -> float:
        """Return the share of the recipient's variance, all features together, that a map explains on these rows."""
        mean_y = self._y / self.rows
        total = float((self._yy / self.rows - np.square(mean_y)).sum())
        with_bias = weight @ self._x / self.rows  # (recipient,)
        error = (
            float(self._yy.sum()) / self.rows
            - 2 * float((weight * self._xy.T).sum()) / self.rows
            - 2 * float(bias @ mean_y)
            + float(((weight @ self._xx) * weight).sum()) / self.rows
            + 2 * float(bias @ with_bias)
            + float(bias @ bias)
        )
        return 1 - error / total if total > 0 else 0.0


def fit(donor: Shape, recipient: Shape, fitted: Moments, held_out: Moments, *, grid: int = 1) -> AffineMap:
    """Return the map of the ridge that explains most on samples that it was not fitted on.

    Args:
        donor: shape of the donor's activations.
        recipient: shape of the recipient's.
        fitted: of the samples to fit on.
        held_out: of other ones.
        grid: that the rows were `prepared` with.

    Raises:
        InvalidInput: there is no map between these shapes, or no sample.
    """
    form = form_of(donor, recipient)
    if form is None:
        raise InvalidInput(f"there is no map from activations of shape {donor} to {recipient}")
    weight, bias = max(fitted.solve(*RIDGES), key=lambda one: held_out.r2(*one))
    r2 = held_out.r2(weight, bias)
    return AffineMap(form, donor, recipient, weight.astype(np.float32), bias.astype(np.float32), r2, grid)


def features(shape: Shape) -> int:
    """Return the number of features of a row of activations of this shape: channels of a feature map, else the last."""
    return shape[0] if len(shape) == _IMAGE else shape[-1]


def moments(donor: Shape, recipient: Shape, grid: int = 1) -> Moments:
    """Return empty sums for a map between activations of these shapes."""
    pooled = form_of(donor, recipient) is Form.POOLED
    return Moments(features(donor) * (grid * grid if pooled else 1), features(recipient))
