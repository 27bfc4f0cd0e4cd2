"""One update from any base to any target, exactly, out of the updates that lie between them.

Records of one tensor are applied in order with a rounding after each for F32, so the records of a chain in one file
give the bits that the chain gives. Where they do not (F16 and BF16 are rounded once, at the end; an update that was
undone is gone but for the rounding), a lossless record corrects what little is off, or says the whole change. Nothing
is assumed: each tensor is compared, and the file is applied as devices apply it.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from sprat_shared.apply import apply_update, check_arithmetic, rebuild_tensor
from sprat_shared.encode.exact import exact_bytes, exact_record
from sprat_shared.wire.patch import PatchedTensors
from sprat_shared.wire.records import (
    Dense,
    Drawn,
    Edit,
    Exact,
    Held,
    LowRank,
    Record,
    Rows,
    Subspace,
    Sum,
    ThreeFactors,
)
from sprat_shared.wire.tensors import Array, TensorSource, TensorSpec, TensorTable, digest_of
from sprat_shared.wire.update import MAX_TERMS, UpdateReader, encode_update


@dataclass(frozen=True, slots=True)
class Step:
    """An update between base and target.

    Attributes:
        data: the file.
        table: the tensors of the release that it needs.
        undone: it is taken back, from what it gives to what it needs.
    """

    data: bytes
    table: TensorTable
    undone: bool = False


def direct_update(
    base: TensorSource,
    target: TensorSource,
    steps: Sequence[Step],
    *,
    local: Collection[int] = (),
    most_bytes: int | None = None,
) -> bytes | None:
    """Return an update that gives exactly `target` from `base`; None where it would take more than `most_bytes`.

    Each tensor's change is said by the records of the steps, by those and a lossless record, or by a lossless record
    alone, whichever takes fewest bytes.

    Args:
        base: the exact weights that devices have, `WithoutLocal` where they compute tensors themselves.
        target: the exact weights that they shall have, likewise.
        steps: updates that lead from the one to the other, in order; without any, all is lossless.
        local: indices of the tensors of `target` that each device computes itself: no record is for them.
        most_bytes: of the file; what is longer is given up soon, largest tensors first.

    Raises:
        LimitExceeded: the target has many times the base's bytes.
        UnsafeArithmetic: this process does not compute the format's bits.
        DigestMismatch: the file gives other weights, which no file made here does.
    """
    check_arithmetic()
    old, said = PatchedTensors(base, target.table), _said_by(steps, target.table)
    changed = [index for index, spec in enumerate(target.table) if spec.size and index not in local]
    records: list[Record] = []
    spent = 0
    for index in sorted(changed, key=lambda index: target.table[index].nbytes, reverse=True):
        kept = old.kept(index)
        if kept is not None and base.sha256(kept) == target.sha256(index):
            continue
        terms = [replace(record, index=index) for record in said.get(target.table[index], ())]
        ways = _fewest_bytes(target.table, index, old.read(index), target.read(index), terms)
        records += ways
        spent += sum(len(record.frame) for record in ways if isinstance(record, Exact))
        if most_bytes is not None and spent > most_bytes:
            return None
    records.sort(key=lambda record: record.index)  # stable: those of one tensor keep their order
    data = encode_update(target.table, records, base_digest=digest_of(base), base_table=base.table)
    if most_bytes is not None and len(data) > most_bytes:
        return None
    apply_update(memoryview(data), base, Nowhere(), expected=digest_of(target), local=local)
    return data


def _said_by(steps: Sequence[Step], table: TensorTable) -> dict[TensorSpec, list[Sum]]:
    """Return, for each tensor that all steps have under one name and shape, what they add to it, in order.

    What a lossless record changed is said by a new one. A tensor of which a step says something that cannot be said
    again in a file for `table` is left out.
    """
    said: dict[TensorSpec, list[Sum]] = defaultdict(list)
    unsayable: set[TensorSpec] = set()
    for step in steps:
        reader = UpdateReader(memoryview(step.data), step.table)
        theirs = step.table if reader.table is None else reader.table
        unsayable |= set(step.table) ^ set(theirs)
        additions: dict[TensorSpec, list[Sum]] = defaultdict(list)
        for record in reader.records():
            if isinstance(record, Held):
                unsayable.add(theirs[record.index])
            elif not isinstance(record, Exact):
                additions[theirs[record.index]].append(record)
        for spec, added in additions.items():
            said[spec] += [_undone(record) for record in reversed(added)] if step.undone else added
    drawn = {spec: [record for record in records if _is_drawn(record)] for spec, records in said.items()}
    if _differ(record for records in drawn.values() for record in records):  # a file has one seed and one vector
        unsayable |= {spec for spec, records in drawn.items() if records}
    here = {spec: index for index, spec in enumerate(table)}
    unsayable |= {spec for spec, records in drawn.items() if any(here.get(spec) != record.index for record in records)}
    return {spec: records for spec, records in said.items() if spec not in unsayable}


def _is_drawn(record: Sum) -> bool:
    """Return whether what a record gives hangs on the file's seed and on its tensor's index."""
    return isinstance(record, Subspace) or (
        isinstance(record, ThreeFactors) and (isinstance(record.u, Drawn) or isinstance(record.v, Drawn))
    )


def _differ(records: Iterable[Sum]) -> bool:
    """Return whether these records, which are drawn, cannot stand in one file."""
    seeds, vectors = set[int](), set[bytes]()
    for record in records:
        match record:
            case Subspace():
                seeds.add(record.seed)
                vectors.add(record.q.tobytes())
            case ThreeFactors():
                seeds |= {side.seed for side in (record.u, record.v) if isinstance(side, Drawn)}
    return len(seeds) > 1 or len(vectors) > 1


def _undone(record: Sum) -> Sum:
    """Return the record that takes this one back but for the rounding."""
    match record:
        case LowRank():
            return replace(record, u=-record.u)
        case Dense() | Rows():
            return replace(record, q=-record.q)
        case Subspace():
            return replace(record, q=-record.q)
        case ThreeFactors():
            return replace(record, core=-record.core)
        case _:
            raise AssertionError(f"{type(record).__name__} adds nothing that could be taken back")


def _fewest_bytes(table: TensorTable, index: int, old: Array, new: Array, terms: Sequence[Sum]) -> Sequence[Edit]:
    """Return the records that turn a tensor into another exactly, with the fewest bytes of the ways known.

    Args:
        table: of the file.
        index: of the tensor in it.
        old: its bits so far.
        new: what they shall be.
        terms: records that give `new`, or nearly; none where there are none.
    """
    spec: TensorSpec = table[index]
    if _same_bits(old, new):
        return ()
    if not terms or len(terms) > MAX_TERMS:
        return (exact_record(index, spec, old, new),)
    middle = rebuild_tensor(old, spec, terms)
    if _same_bits(middle, new):
        return terms
    of_terms = len(encode_update(table, terms, base_digest=_ANY_BASE))
    if len(terms) == MAX_TERMS or exact_bytes(spec, old, new) <= of_terms + exact_bytes(spec, middle, new):
        return (exact_record(index, spec, old, new),)
    return (*terms, exact_record(index, spec, middle, new))


_ANY_BASE: Final = "sha256:" + "0" * 64


def _same_bits(a: Array, b: Array) -> bool:
    width = a.dtype.itemsize
    return bool(np.array_equal(a.reshape(-1).view(f"u{width}"), b.reshape(-1).view(f"u{width}")))


class Nowhere:
    """Takes the tensors of an update that is applied for the sake of its digest."""

    def begin(self, table: TensorTable) -> None:
        """Take it."""

    def keep(self, index: int, sha256: bytes) -> None:
        """Take it."""

    def put(self, index: int, array: Array, sha256: bytes) -> None:
        """Take it."""
