"""An update file from two finished releases: each change cut to low rank or quantised, whichever takes fewer bytes.

Where there is data, training the update on its grid gives several times smaller files than any cut afterwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from sprat_shared.apply import check_arithmetic, rebuild_tensor
from sprat_shared.apply.arithmetic import widen
from sprat_shared.encode.allocation import cheapest, finest
from sprat_shared.encode.candidates import Candidate, Change, candidates, lossless
from sprat_shared.errors import InvalidInput
from sprat_shared.wire.patch import held_under, under
from sprat_shared.wire.planes import encode_planes
from sprat_shared.wire.records import Dense, Lossless, LowRank, Record
from sprat_shared.wire.tensors import (
    LOCAL_SHA256,
    REBUILDABLE,
    Array,
    TensorSource,
    TensorSpec,
    TensorTable,
    digest_of,
    tensor_sha256,
    weights_digest,
)
from sprat_shared.wire.update import encode_update

DEFAULT_RELATIVE_ERROR: Final = 0.1
_FAST_ABOVE: Final = 32 << 20  # bytes of tensors above which zstd's slowest level would take minutes
_SLOW_LEVEL, _FAST_LEVEL = 19, 9


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorReport:
    """How one changed tensor is said.

    Attributes:
        name: of the tensor.
        encoding: `unchanged` (the change is dropped), `low-rank`, `dense` or `lossless`.
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
class Encoded:
    """An update file and what became of each tensor that changed.

    Attributes:
        data: the file.
        weights: weights digest of what the file decodes to, which is the release to publish.
        tensors: one row for each changed tensor.
    """

    data: bytes
    weights: str
    tensors: tuple[TensorReport, ...]


def encode_delta(
    base: TensorSource,
    new: TensorSource,
    *,
    lossless: bool = False,
    budget_bytes: int | None = None,
    max_error: float | None = None,
    standalone: bool = True,
) -> Encoded:
    """Return an update from `base` to (nearly) `new`.

    Args:
        base: the weights that the receiver holds.
        new: the weights wished; either is `WithoutLocal` where it has local tensors.
        lossless: the result is exactly `new`.
        budget_bytes: the file takes at most so many bytes; the error is the least found for that.
        max_error: no value differs by more than this from `new`.
        standalone: the file carries the digest of its result.
        Without lossless, budget_bytes and max_error the error's norm is at most a tenth of the change's norm.

    Raises:
        InvalidInput: a tensor has another dtype in the two (the message names it), a value is NaN or infinite, more
            than one of the three is asked for, or the budget is too small for any file.
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
    changes = list(_changes(base, new, held))
    exact = [lossless or base.sha256(change.index) == LOCAL_SHA256 for change in changes]  # what was local is not near
    options = [_options(change, exact=e, max_error=max_error) for change, e in zip(changes, exact, strict=True)]
    allowance = budget_bytes
    while True:
        choice = _choose(options, changes, allowance, max_error)
        data, digest = _write(base, held, base_digest, changes, choice, base_table=base_table, standalone=standalone)
        if budget_bytes is None or len(data) <= budget_bytes:
            break
        if not allowance or not any(candidate.records for candidate in choice):
            raise InvalidInput(f"no update fits {budget_bytes} bytes; the smallest found takes {len(data)}")
        allowance = max(0, min(allowance - 1, int(allowance * budget_bytes / len(data)) - 1))  # the estimate was low
    rows = (_report(change, way) for change, way in zip(changes, choice, strict=True))
    return Encoded(data=data, weights=digest, tensors=tuple(rows))


def encode_full(source: TensorSource, *, standalone: bool = False) -> bytes:
    """Return a full update: `source` exactly, from nothing."""
    level = _FAST_LEVEL if source.table.nbytes > _FAST_ABOVE else _SLOW_LEVEL
    records = [
        Lossless(i, encode_planes(spec, np.zeros(spec.shape, spec.storage), source.read(i), level=level))
        for i, spec in enumerate(source.table)
        if spec.size and source.sha256(i) != LOCAL_SHA256
    ]
    digest = digest_of(source) if standalone else None
    return encode_update(source.table, records, base_digest=None, result_digest=digest)


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


def _changes(base: TensorSource, new: TensorSource, held: Sequence[bytes]) -> list[Change]:
    changes = []
    for index, spec in enumerate(base.table):
        if new.sha256(index) == held[index]:
            continue
        old, wished = base.read(index), new.read(index)
        mean_square = 1.0
        if spec.dtype in REBUILDABLE:
            values = widen(wished, spec.dtype)
            _check_finite(spec, widen(old, spec.dtype), "base")
            _check_finite(spec, values, "new weights")
            mean_square = float(np.square(values, dtype=np.float64).mean()) or 1.0
        elif spec.dtype == "F64":
            _check_finite(spec, wished, "new weights")
        changes.append(Change(index, spec, old, wished, mean_square))
    return changes


def _check_finite(spec: TensorSpec, values: Array, where: str) -> None:
    if not (finite := np.isfinite(values)).all():
        at = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise InvalidInput(f"tensor {spec.name!r} of the {where} holds {values[at]} at {list(at)}; weights are finite")


def _options(change: Change, *, exact: bool, max_error: float | None) -> list[Candidate]:
    level = _FAST_LEVEL if change.spec.nbytes > _FAST_ABOVE else _SLOW_LEVEL
    if exact or change.spec.dtype not in REBUILDABLE:
        return [lossless(change, level)]
    ways = [way for way in candidates(change) if max_error is None or way.max_error <= max_error]
    return [*ways, lossless(change, level)]


def _choose(
    options: Sequence[Sequence[Candidate]],
    changes: Sequence[Change],
    budget_bytes: int | None,
    max_error: float | None,
) -> list[Candidate]:
    if max_error is not None:  # every option is within it
        return [min(ways, key=lambda way: way.bytes) for ways in options]
    if budget_bytes is not None:
        return finest(options, budget_bytes)
    total = sum(change.missed(change.old)[0] for change in changes if change.spec.dtype in REBUILDABLE)
    allowed = DEFAULT_RELATIVE_ERROR**2 * total
    return cheapest(options, lambda choice: sum(way.squared_error for way in choice) <= allowed)


def _write(
    base: TensorSource,
    held: Sequence[bytes],
    base_digest: str,
    changes: Sequence[Change],
    choice: Sequence[Candidate],
    *,
    base_table: TensorTable,
    standalone: bool,
) -> tuple[bytes, str]:
    sha256s, records = list(held), list[Record]()
    for change, way in zip(changes, choice, strict=True):
        if way.records:
            records += way.records
            sha256s[change.index] = tensor_sha256(rebuild_tensor(change.old, change.spec, way.records))
    digest = weights_digest(base.table, sha256s)
    result = digest if standalone else None
    data = encode_update(base.table, records, base_digest=base_digest, base_table=base_table, result_digest=result)
    return data, digest


def _report(change: Change, way: Candidate) -> TensorReport:
    match way.records:
        case ():
            encoding, rank = "unchanged", 0
        case (LowRank() as record,):
            encoding, rank = "low-rank", record.u.shape[1]
        case (Dense(),):
            encoding, rank = "dense", 0
        case _:
            encoding, rank = "lossless", 0
    whole = change.missed(change.old)[0] if change.spec.dtype in REBUILDABLE else 0.0
    return TensorReport(
        name=change.spec.name,
        encoding=encoding,
        rank=rank,
        bytes=round(way.bytes),
        max_error=way.max_error,
        relative_error=(way.squared_error / whole) ** 0.5 if whole else 0.0,
    )
