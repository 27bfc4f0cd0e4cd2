"""What an encoder tells of its choice: a row for each tensor, a curve of other sizes, and whether low rank helped."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from sprat_shared.encode.allocation import ladder
from sprat_shared.encode.candidates import Options
from sprat_shared.encode.choice import Said
from sprat_shared.wire.records import Coded, Dense, Edit, Exact, Lossless, LowRank
from sprat_shared.wire.tensors import REBUILDABLE

_RANK: Final = 16
_LARGE_SIDE: Final = 64  # rows and columns from which 16 directions are few
_POINTS: Final = 8
_LEAST: Final = 300.0  # bytes of the curve's first point
_NAMES: Final[dict[type[Edit], str]] = {
    LowRank: "low-rank", Dense: "dense", Lossless: "lossless", Coded: "coded",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorReport:
    """How one changed tensor is said.

    Attributes:
        name: of the tensor.
        encoding: `unchanged` (the change is dropped), `low-rank`, `dense`, `low-rank + dense`, and exact: `lossless`
            or `coded`.
        rank: of a low-rank record, else 0.
        bytes: estimated bytes in the file.
        max_error: largest absolute difference between the decoded and the new tensor.
        relative_error: norm of that difference over the norm of the change.
    """

    name: str
    encoding: str
    rank: int
    bytes: int
    max_error: float
    relative_error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """A file that could be made.

    Attributes:
        bytes: about, its tensors together.
        relative_error: about, norm of what is missed over the norm of the change, tensors weighted as in the choice.
    """

    bytes: int
    relative_error: float


def report_of(said: Said) -> TensorReport:
    """Return the row of one tensor."""
    ranks = [record.u.shape[1] for record in said.records if isinstance(record, LowRank)]
    whole = whole_error(said.options)
    exact = [len(record.frame) for record in said.records if isinstance(record, Exact)]
    return TensorReport(
        name=said.options.change.spec.name,
        encoding=" + ".join(_NAMES[type(record)] for record in said.records) or "unchanged",
        rank=sum(ranks),
        bytes=round(sum(exact) or said.way.bytes),
        max_error=said.max_error,
        relative_error=(said.squared_error / whole) ** 0.5 if whole else 0.0,
    )


def whole_error(options: Options) -> float:
    """Return the weighted squared error of leaving a tensor as it is; 0 for tensors that are exact or nothing."""
    return options.change.missed(options.change.old)[0] if options.change.spec.dtype in REBUILDABLE else 0.0


def curve_of(options: Sequence[Options]) -> tuple[CurvePoint, ...]:
    """Return some sizes from a few hundred bytes to exact, by equal factors, and what they miss."""
    steps, whole = ladder([option.ways for option in options]), sum(whole_error(option) for option in options)
    if not whole:
        return ()
    sizes = np.geomspace(min(_LEAST, steps.bytes[-1]), steps.bytes[-1], _POINTS)
    rungs = [*sorted({steps.within_bytes(float(size)) for size in sizes[:-1]} - {0}), len(steps) - 1]
    return tuple(
        CurvePoint(bytes=round(steps.bytes[rung]), relative_error=float((steps.squared_error[rung] / whole) ** 0.5))
        for rung in dict.fromkeys(rungs)
    )


def low_rank_share(options: Sequence[Options]) -> float | None:
    """Return how much of the change's square the 16 strongest directions of its large matrices hold, 0 to 1."""
    large = [
        (option.change.weight * option.spectrum.total, option.spectrum.share(_RANK))
        for option in options
        if option.spectrum is not None and min(option.change.spec.matrix or (0, 0)) >= _LARGE_SIDE
    ]
    total = sum(size for size, _ in large)
    return sum(size * share for size, share in large) / total if total else None
