"""Applying a whole update, one tensor at a time: what changed is rebuilt and hashed, what did not is only named."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from operator import attrgetter
from typing import Protocol, cast

import numpy as np

from sprat_shared.apply.arithmetic import rebuild_tensor
from sprat_shared.errors import BaseMismatch, DigestMismatch, InvalidInput, MalformedUpdate, TryLater
from sprat_shared.ids import parse_digest
from sprat_shared.wire.descriptions import Limits
from sprat_shared.wire.patch import PatchedTensors
from sprat_shared.wire.records import Edit, Held, Record
from sprat_shared.wire.tensors import (
    LOCAL_SHA256,
    Array,
    ArrayTensors,
    TensorSource,
    TensorSpec,
    TensorTable,
    tensor_sha256,
    weights_digest,
)
from sprat_shared.wire.update import BASE_BYTES, Flag, UpdateReader, read_header


class TensorSink(Protocol):
    """Where the tensors of the new release go, in table order. Nothing counts before `apply_update` returns."""

    def begin(self, table: TensorTable) -> None:
        """Learn which tensors will come."""

    def keep(self, index: int, sha256: bytes) -> None:
        """Take tensor `index` over unchanged from the base, which has it under the same name."""

    def put(self, index: int, array: Array, sha256: bytes) -> None:
        """Take a new tensor: storage dtype, its spec's shape; valid only during the call."""


class HeldTensors(Protocol):
    """The tensors that a device holds, of whatever model and release."""

    def find(self, prefix: bytes, spec: TensorSpec) -> Array | None:
        """Return the tensor of this length whose SHA-256 begins so; None where there is none, or more than one."""


def apply_update(
    data: bytes | memoryview,
    base: TensorSource | None,
    sink: TensorSink,
    *,
    expected: str | None,
    base_digest: str | None = None,
    limits: Limits | None = None,
    local: Collection[int] = (),
    held: HeldTensors | None = None,
) -> str:
    """Rebuild a release and return its weights digest. Call `check_arithmetic` in this process first.

    Args:
        data: the update file.
        base: the release it was made for, `WithoutLocal` where it has local tensors; None for a full update.
        sink: takes the tensors.
        expected: the weights digest that the signed metadata promise; None where the file carries it itself.
        base_digest: weights digest of `base` where it is known already; it is computed otherwise.
        limits: what a full or patched update may declare.
        local: indices of the result's local tensors: the sink gets zeros for them.
        held: what else this device has, for records that name it.

    Raises:
        BaseMismatch: the file was made for other weights, or names tensors that are not held here.
        DigestMismatch: the rebuilt weights are not the promised ones; drop what the sink took.
        MalformedUpdate, WireVersionUnsupported, LimitExceeded: see `UpdateReader`.
        TryLater: there is too little memory.
        InvalidInput: neither the caller nor the file says what the result must be.
    """
    header = read_header(memoryview(data))
    promised = expected or header.result
    if promised is None:
        raise InvalidInput(
            "the update carries no digest of its result and none was given; its result cannot be checked"
        )
    if Flag.FULL in header.flags:
        base = ArrayTensors({})
    elif base is None:
        raise BaseMismatch(f"this update needs the weights that begin with sha256 {header.base.hex()}; none were given")
    sha256s = [base.sha256(i) for i in range(len(base.table))]
    if Flag.FULL not in header.flags:
        has = base_digest or weights_digest(base.table, sha256s)
        if parse_digest(has)[:BASE_BYTES] != header.base:
            raise BaseMismatch(f"this update was made for weights {header.base.hex()}…, these are {has[7:23]}…")
    reader = UpdateReader(memoryview(data), base.table, limits)
    source = PatchedTensors(base, base.table if reader.table is None else reader.table)
    try:
        rebuilt = list(_rebuild(reader, _Given(source, sha256s, held), sink, frozenset(local)))
        actual = weights_digest(source.table, rebuilt)
    except MemoryError:
        largest = max((spec.nbytes for spec in source.table), default=0)
        raise TryLater(
            f"memory ran out; rebuilding takes about three times the largest tensor of {largest} bytes"
        ) from None
    if actual != promised:
        raise DigestMismatch(subject="rebuilt weights", expected=promised, actual=actual)
    return actual


@dataclass(frozen=True, slots=True)
class _Given:
    """What a rebuild begins with: the base under the result's table, its digests, and what else is held."""

    base: PatchedTensors
    sha256s: list[bytes]
    held: HeldTensors | None

    def found(self, record: Held) -> Array:
        """Return the tensor that a record names."""
        spec: TensorSpec = self.base.table[record.index]
        array = None if self.held is None else self.held.find(record.prefix, spec)
        if array is None:
            raise BaseMismatch(
                f"tensor {spec.name!r} is to be one that is held already, sha256 {record.prefix.hex()}…, and none is "
                "here; take the full update"
            )
        return array


def _rebuild(reader: UpdateReader, given: _Given, sink: TensorSink, local: frozenset[int]) -> Iterator[bytes]:
    """Yield what the weights digest takes for each tensor of the result, in table order, as the sink takes it."""
    table = given.base.table
    if not local <= set(range(len(table))):
        raise MalformedUpdate(f"local tensors {sorted(local)}: the release has {len(table)} tensors")
    sink.begin(table)
    done = 0
    for index, records in groupby(reader.records(), key=attrgetter("index")):
        if index in local:
            raise MalformedUpdate(f"a record changes tensor {index}, which each device computes itself")
        yield from _unchanged(given, sink, local, range(done, index))
        yield _put(given, sink, index, records)
        done = index + 1
    yield from _unchanged(given, sink, local, range(done, len(table)))


def _unchanged(given: _Given, sink: TensorSink, local: frozenset[int], indices: range) -> Iterator[bytes]:
    for index in indices:
        kept = given.base.kept(index)
        if index in local:
            spec: TensorSpec = given.base.table[index]
            zeros = np.zeros(spec.shape, spec.storage)
            sink.put(index, zeros, tensor_sha256(zeros))
            yield LOCAL_SHA256
        elif kept is not None and given.sha256s[kept] != LOCAL_SHA256:
            sink.keep(index, given.sha256s[kept])
            yield given.sha256s[kept]
        else:  # new, of another shape, or local until now: what is not named is the patched base
            yield _put(given, sink, index, iter(()))


def _in_turn(taken: list[Record], records: Iterator[Record]) -> Iterator[Edit]:
    """Yield what was taken, and what follows; a record is let go before the next one is read."""
    while taken:
        yield cast("Edit", taken.pop())
    yield from cast("Iterator[Edit]", records)


def _put(given: _Given, sink: TensorSink, index: int, records: Iterator[Record]) -> bytes:
    taken = list(islice(records, 1))
    is_held = bool(taken) and isinstance(taken[0], Held)
    begun = given.found(cast("Held", taken.pop())) if is_held else given.base.read(index)
    array = rebuild_tensor(begun, given.base.table[index], _in_turn(taken, records))
    sha256 = tensor_sha256(array)
    sink.put(index, array, sha256)
    return sha256
