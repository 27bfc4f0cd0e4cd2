"""An update file from two finished releases: each change cut to low rank or quantised, whichever takes fewer bytes.

Where there is data, training the update on its grid gives several times smaller files than any cut afterwards.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from sprat_shared.apply import check_arithmetic
from sprat_shared.apply.arithmetic import widen
from sprat_shared.encode.candidates import Change, Options, lossless_only, squares, ways_to_say
from sprat_shared.encode.choice import by_bound, by_budget, by_error
from sprat_shared.encode.report import CurvePoint, TensorReport, curve_of, low_rank_share, report_of, whole_error
from sprat_shared.errors import InvalidInput
from sprat_shared.wire.patch import held_under, under
from sprat_shared.wire.records import Record
from sprat_shared.wire.tensors import (
    LOCAL_SHA256,
    REBUILDABLE,
    Array,
    TensorSource,
    TensorSpec,
    TensorTable,
    tensor_sha256,
    weights_digest,
)
from sprat_shared.wire.update import encode_update

DEFAULT_RELATIVE_ERROR: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """An update file and what became of each tensor that changed.

    Attributes:
        data: the file.
        weights: weights digest of what the file decodes to, which is the release to publish.
        tensors: one row for each changed tensor.
        curve: what files of other sizes would miss, estimated, from a few hundred bytes to exact; empty where all is
            exact anyway.
        low_rank_share: how much of the change's square the 16 strongest directions of its large matrices hold, 0 to 1;
            None where no large matrix changes, or all is exact anyway.
    """

    data: bytes
    weights: str
    tensors: tuple[TensorReport, ...]
    curve: tuple[CurvePoint, ...] = ()
    low_rank_share: float | None = None


def encode_delta(
    base: TensorSource,
    new: TensorSource,
    *,
    lossless: bool = False,
    budget_bytes: int | None = None,
    max_error: float | None = None,
    importance: Mapping[str, float] | None = None,
    standalone: bool = True,
) -> Encoded:
    """Return an update from `base` to (nearly) `new`.

    Args:
        base: the weights that the receiver holds.
        new: the weights wished; either is `WithoutLocal` where it has local tensors.
        lossless: the result is exactly `new`.
        budget_bytes: the file takes at most so many bytes; the error is the least found for that.
        max_error: no value differs by more than this from `new`.
        importance: for each float tensor that changes what a unit of its squared error costs, such as the mean square
            of the loss's gradient by its values; else errors count in sums of squares of the new tensor.
        standalone: the file carries the digest of its result.
        Without lossless, budget_bytes and max_error the error's norm, so weighted, is at most a tenth of the change's.

    Raises:
        InvalidInput: a tensor has another dtype in the two (the message names it), a value is NaN or infinite, more
            than one of the three is asked for, the budget is too small for any file, or an importance is missing.
        LimitExceeded: the new weights have many times the base's bytes.
        UnsafeArithmetic: this process computes other bits.
    """
    check_arithmetic()
    if lossless + (budget_bytes is not None) + (max_error is not None) > 1:
        raise InvalidInput("ask for one of lossless, a budget, and a largest error, not for several")
    if (budget_bytes is not None and budget_bytes < 0) or (max_error is not None and not max_error >= 0):
        raise InvalidInput("a budget and a largest error cannot be negative or NaN")
    base = held_under(base)
    _check_dtypes(base.table, new.table)
    held, base_table = [base.sha256(i) for i in range(len(base.table))], base.table
    base_digest = weights_digest(base_table, held)
    if base_table != new.table:
        base = under(base, new.table)
        held = [base.sha256(i) for i in range(len(base.table))]
    held = _unchanged(base, new, held)

    def file(records: Sequence[Record], weights: str) -> bytes:
        result = weights if standalone else None
        return encode_update(base.table, records, base_digest=base_digest, base_table=base_table, result_digest=result)

    options = [_options(base, change, lossless=lossless) for change in _changes(base, new, held, importance)]
    if budget_bytes is not None:
        said = by_budget(
            options, budget_bytes, lambda records: len(file(records, base_digest))
        )  # any digest is as long
    elif max_error is not None:
        said = by_bound(options, max_error)
    else:
        said = by_error(options, DEFAULT_RELATIVE_ERROR**2 * sum(map(whole_error, options)))
    for one in said:
        held[one.options.change.index] = one.sha256
    weights = weights_digest(base.table, held)
    return Encoded(
        data=file([record for one in said for record in one.records], weights),
        weights=weights,
        tensors=tuple(map(report_of, said)),
        curve=() if lossless else curve_of(options),
        low_rank_share=low_rank_share(options),
    )


def _check_dtypes(base: TensorTable, new: TensorTable) -> None:
    wished = {spec.name: spec for spec in new}
    for spec in base:
        if (other := wished.get(spec.name, spec)).dtype != spec.dtype:
            raise InvalidInput(
                f"tensor {spec.name!r} is {spec.dtype} in the base and {other.dtype} in the new weights; an update "
                f"keeps dtypes: convert the new weights to {spec.dtype}"
            )


def _unchanged(base: TensorSource, new: TensorSource, held: Sequence[bytes]) -> list[bytes]:
    """Return what the digest of the result takes for each tensor that no record changes: what was local is zero."""
    ours = [tensor_sha256(base.read(i)) if sha256 == LOCAL_SHA256 else sha256 for i, sha256 in enumerate(held)]
    return [LOCAL_SHA256 if new.sha256(i) == LOCAL_SHA256 else sha256 for i, sha256 in enumerate(ours)]


def _changes(
    base: TensorSource, new: TensorSource, held: Sequence[bytes], importance: Mapping[str, float] | None
) -> Iterator[Change]:
    for index, spec in enumerate(base.table):
        if new.sha256(index) == held[index]:
            continue
        old, wished = base.read(index), new.read(index)
        weight = 1.0
        if spec.dtype in REBUILDABLE:
            values = widen(wished, spec.dtype)
            _check_finite(spec, widen(old, spec.dtype), "base")
            _check_finite(spec, values, "new weights")
            weight = _weight(spec, values, importance)
        elif spec.dtype == "F64":
            _check_finite(spec, wished, "new weights")
        yield Change(index, spec, old, wished, weight)


def _weight(spec: TensorSpec, values: Array, importance: Mapping[str, float] | None) -> float:
    """Return what a unit of the tensor's squared error counts.

    Without importance it counts relative to the tensor's sum of squares: a layer's answer is off by about as much as
    its weights are, however many there are.
    """
    if importance is None:
        return 1 / (squares(values) or 1.0)
    if not 0 <= (weight := importance.get(spec.name, -1.0)) < np.inf:
        raise InvalidInput(f"tensor {spec.name!r} changes and its importance is {importance.get(spec.name)}; give one")
    return weight


def _check_finite(spec: TensorSpec, values: Array, where: str) -> None:
    if not (finite := np.isfinite(values)).all():
        at = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise InvalidInput(f"tensor {spec.name!r} of the {where} holds {values[at]} at {list(at)}; weights are finite")


def _options(base: TensorSource, change: Change, *, lossless: bool) -> Options:
    if lossless or base.sha256(change.index) == LOCAL_SHA256:  # what was local is not near
        return lossless_only(change)
    return ways_to_say(change)
