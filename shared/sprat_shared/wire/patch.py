"""A patch of the tensor table: the base's tensors under the names and shapes of a release that has grown.

docs/wire-format.md, section 4, is normative. In the integer stream stand what is removed and the change of each
dimension of what is reshaped; only what is added takes text, in a frame. The content that records then refer to
follows from the two tables alone: where the base has a tensor of the same name, dtype and number of dimensions, its
values at the same indices as far as both reach, zeros elsewhere.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from sprat_shared.errors import InvalidInput, LimitExceeded, MalformedUpdate
from sprat_shared.wire.descriptions import Limits, pack_descriptions, unpack_descriptions
from sprat_shared.wire.integers import Family
from sprat_shared.wire.records.stream import RecordReader, RecordWriter
from sprat_shared.wire.tensors import Array, TensorSource, TensorSpec, TensorTable, tensor_sha256

MAX_GROWTH: Final = 4  # the result takes at most so many times the base's bytes, and
MAX_GROWTH_BYTES: Final = 1 << 24  # so many more


@dataclass(frozen=True, slots=True)
class TablePatch:
    """What turns the base's tensor table into the result's.

    Attributes:
        removed: positions in the base's tensors, followed by its aliases; rising.
        reshaped: index in the base's table and the change of each of its dimensions; rising.
        added: tensors, in byte order of their names.
        aliases: added names of tied tensors, each to its tensor; in byte order.
    """

    removed: tuple[int, ...]
    reshaped: tuple[tuple[int, tuple[int, ...]], ...]
    added: tuple[TensorSpec, ...]
    aliases: Mapping[str, str]


def are_kin(old: TensorSpec, new: TensorSpec) -> bool:
    """Say whether the values of `old` live on in `new`: both have the name, dtype and number of dimensions."""
    return (old.name, old.dtype, len(old.shape)) == (new.name, new.dtype, len(new.shape))


def patch_between(base: TensorTable, new: TensorTable) -> TablePatch:
    """Return the patch that turns `base` into `new`."""
    wished = {spec.name: spec for spec in new}
    kin = {spec.name: wished[spec.name] for spec in base if spec.name in wished and are_kin(spec, wished[spec.name])}
    removed = [index for index, spec in enumerate(base) if spec.name not in kin]
    removed += [len(base) + i for i, (alias, name) in enumerate(base.aliases.items()) if new.aliases.get(alias) != name]
    return TablePatch(
        removed=tuple(removed),
        reshaped=tuple(
            (index, tuple(b - a for a, b in zip(spec.shape, kin[spec.name].shape, strict=True)))
            for index, spec in enumerate(base)
            if kin.get(spec.name, spec) != spec
        ),
        added=tuple(spec for spec in new if spec.name not in kin),
        aliases={alias: name for alias, name in new.aliases.items() if base.aliases.get(alias) != name},
    )


def patched_table(base: TensorTable, patch: TablePatch) -> TensorTable:
    """Return the result's table.

    Raises:
        InvalidInput: a tensor or alias of the patch is twice there, or of an impossible shape, or an alias of nothing.
        LimitExceeded: the result has many times the base's bytes.
    """
    gone, changes = set(patch.removed), dict(patch.reshaped)
    if gone & changes.keys():
        raise InvalidInput("a tensor is removed and reshaped")
    specs = [
        TensorSpec(spec.name, spec.dtype, tuple(map(sum, zip(spec.shape, changes[index], strict=True))))
        if index in changes
        else spec
        for index, spec in enumerate(base)
        if index not in gone
    ]
    aliases = dict(pair for i, pair in enumerate(base.aliases.items()) if len(base) + i not in gone)
    if aliases.keys() & patch.aliases.keys():
        raise InvalidInput("an alias is added that is there")
    table = TensorTable([*specs, *patch.added], aliases | dict(patch.aliases))
    most = MAX_GROWTH * base.nbytes + MAX_GROWTH_BYTES
    if table.nbytes > most:
        raise LimitExceeded(
            f"the update grows {base.nbytes} bytes of tensors to {table.nbytes}, more than the {most} that may be; "
            "only a full update can"
        )
    return table


def put_patch(out: RecordWriter, patch: TablePatch) -> None:
    """Write a patch, before the number of records.

    Raises:
        InvalidInput: it adds more than a reader takes.
    """
    out.put(Family.COUNT, [len(patch.removed)])
    for before, position in pairwise((0, *patch.removed)):
        out.put(Family.GAP, [position - before])
    out.put(Family.COUNT, [len(patch.reshaped)])
    before = 0
    for index, changes in patch.reshaped:
        out.put(Family.GAP, [index - before])
        before = index
        for change in changes:
            out.put(Family.DIMENSION, [change])
    adds = patch.added or patch.aliases
    out.put_frame(pack_descriptions(patch.added, patch.aliases) if adds else b"")


def take_patch(source: RecordReader, base: TensorTable, limits: Limits) -> TensorTable:
    """Read a patch and return the result's table.

    Raises:
        MalformedUpdate: it is no patch of this base.
        LimitExceeded: the result would have more than `limits`, or many times the base's bytes.
    """
    removed = tuple(_positions(source, len(base) + len(base.aliases)))
    reshaped = tuple(
        (index, tuple(source.take_one(Family.DIMENSION) for _ in base[index].shape))
        for index in _positions(source, len(base))
    )
    added, aliases = list[TensorSpec](), dict[str, str]()
    if frame := source.take_frame():
        added, aliases = unpack_descriptions(frame, limits)
    try:
        table = patched_table(base, TablePatch(removed, reshaped, tuple(added), aliases))
    except InvalidInput as bad:
        raise MalformedUpdate(f"the patch of the tensor table does not fit its base ({bad})") from None
    limits.check(table)
    return table


def _positions(source: RecordReader, end: int) -> Iterator[int]:
    """Yield rising positions below `end`, as many as the stream says."""
    at = 0
    for ordinal in range(source.take_one(Family.COUNT)):
        gap = source.take_one(Family.GAP)
        at += gap
        if at >= end or (ordinal and not gap):
            raise MalformedUpdate(f"the patch of the tensor table names position {at} of {end}, out of place there")
        yield at


class PatchedTensors:
    """A base as records of a patched update see it (`TensorSource`).

    Args:
        held: the base.
        table: the result's; it may be the base's own.
    """

    def __init__(self, held: TensorSource, table: TensorTable) -> None:
        self.held, self.table = held, table
        index = {spec.name: i for i, spec in enumerate(held.table)}
        at = (index.get(spec.name) for spec in table)
        self._from = [
            i if i is not None and are_kin(held.table[i], spec) else None for i, spec in zip(at, table, strict=True)
        ]

    def kept(self, index: int) -> int | None:
        """Return which of the base's tensors `index` is, bit for bit; None: none of them."""
        at = self._from[index]
        return at if at is not None and self.held.table[at] == self.table[index] else None

    def overlap(self, index: int) -> tuple[slice, ...] | None:
        """Return where tensor `index` has values of the base's tensor, at the same indices; None: nowhere."""
        at = self._from[index]
        if at is None:
            return None
        return tuple(slice(min(pair)) for pair in zip(self.held.table[at].shape, self.table[index].shape, strict=True))

    def read(self, index: int) -> Array:
        """Return tensor `index` in its storage dtype and shape; a copy where it is not the base's own."""
        spec, at, both = self.table[index], self._from[index], self.overlap(index)
        if (kept := self.kept(index)) is not None:
            return self.held.read(kept)
        array = np.zeros(spec.shape, spec.storage)
        if at is not None and both is not None:
            array[both] = self.held.read(at)[both]
        return array

    def sha256(self, index: int) -> bytes:
        """Return the SHA-256 of the tensor's raw bytes."""
        kept = self.kept(index)
        return tensor_sha256(self.read(index)) if kept is None else self.held.sha256(kept)


def held_under(source: TensorSource) -> TensorSource:
    """Return the tensors that devices hold: the base of a `PatchedTensors`, anything else as it is."""
    return source.held if isinstance(source, PatchedTensors) else source


def under(base: TensorSource, table: TensorTable) -> TensorSource:
    """Return `base` as records see it in an update to `table`: itself, where it has that table.

    Raises:
        LimitExceeded: the table has many times the base's bytes.
    """
    held = held_under(base)
    if held.table == table:
        return held
    patched_table(held.table, patch_between(held.table, table))
    return PatchedTensors(held, table)
