"""The update file: what turns release a into release b (docs/wire-format.md, sections 1 and 4).

Layout, little-endian:
    "SPR" | u8 version | u8 flags | u8 log2 of lanes | 8 bytes of the base's weights digest (zero in a full update)
    [32 bytes: the result's weights digest, where flagged]
    LEB128: bytes of the integer stream | the integer stream | frames of the lossless records, one after the other
Everything but the frames is integers in one stream: how many records there are, what each is, and its factors.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntFlag
from typing import Final

from sprat_shared.errors import InvalidInput, MalformedUpdate, WireVersionUnsupported
from sprat_shared.ids import digest_text, parse_digest
from sprat_shared.wire.descriptions import Limits, pack_descriptions, unpack_descriptions
from sprat_shared.wire.integers import MAX_LOG2_LANES, Family
from sprat_shared.wire.leb128 import pack_leb128, read_leb128
from sprat_shared.wire.patch import patch_between, patched_table, put_patch, take_patch
from sprat_shared.wire.records import KINDS, Held, Record
from sprat_shared.wire.records.stream import RecordReader, RecordWriter
from sprat_shared.wire.tensors import TensorSpec, TensorTable

VERSION: Final = 1
MAGIC: Final = b"SPR"
BASE_BYTES: Final = 8
MAX_TERMS: Final = 8
_HEAD: Final = struct.Struct("<3sBBB8s")


class Flag(IntFlag):
    """Bits of the header; others must be zero."""

    RESULT = 1  # the result's weights digest follows the header
    FULL = 2  # no base: the first frame is the tensor table, and all tensors start as zeros
    PATCH = 4  # the base's tensor table is patched before the first record (`wire.patch`)


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The file's first bytes.

    Attributes:
        flags: see `Flag`.
        log2_lanes: lanes of the integer stream.
        base: first 8 bytes of the base's weights digest; zeros in a full update.
        result: weights digest of the result, where the file carries it.
    """

    flags: Flag
    log2_lanes: int
    base: bytes
    result: str | None


# ------------------------------------------------------------------------------------------------ writing


def encode_update(
    table: TensorTable,
    records: Sequence[Record],
    *,
    base_digest: str | None,
    base_table: TensorTable | None = None,
    result_digest: str | None = None,
) -> bytes:
    """Return an update file.

    Args:
        table: the tensors of the result.
        records: sorted by index; several for one tensor are applied in order, a lossless one last.
        base_digest: weights digest of the base; None makes a full update that carries its table.
        base_table: the tensors of the base where they are others: the file then patches them to those of the result.
        result_digest: weights digest of the result, for a file that travels without signed metadata.

    Raises:
        InvalidInput: a record does not fit its tensor.
        LimitExceeded: the result has many times the bytes of the base that is patched.
    """
    _check_order(table, records)
    writer, flags = RecordWriter(), Flag(0)
    if base_digest is None:
        flags |= Flag.FULL
        writer.put_frame(pack_descriptions(table.specs, table.aliases))
    elif base_table is not None and base_table != table:
        flags |= Flag.PATCH
        patch = patch_between(base_table, table)
        patched_table(base_table, patch)  # no file that readers refuse
        put_patch(writer, patch)
    writer.put(Family.COUNT, [len(records)])
    at = 0
    for record in records:
        writer.put(Family.GAP, [record.index - at])
        writer.put(Family.KIND, [record.KIND])
        record.write(writer)
        at = record.index
    log2_lanes, stream = writer.finish()
    if result_digest is not None:
        flags |= Flag.RESULT
    base = bytes(BASE_BYTES) if base_digest is None else parse_digest(base_digest)[:BASE_BYTES]
    result = b"" if result_digest is None else parse_digest(result_digest)
    head = _HEAD.pack(MAGIC, VERSION, flags, log2_lanes, base)
    return b"".join([head, result, pack_leb128(len(stream)), stream, *writer.frames])


def _check_order(table: TensorTable, records: Sequence[Record]) -> None:
    last, terms, closed = 0, 0, -1
    for record in records:
        if not last <= record.index < len(table) or record.index == closed:
            raise InvalidInput(f"record of tensor {record.index}: records are sorted by index, a lossless one is last")
        terms = terms + 1 if terms and record.index == last else 1
        last = record.index
        if terms > MAX_TERMS or (terms > 1 and isinstance(record, Held)):
            raise InvalidInput(f"tensor {table[last].name!r}: more than {MAX_TERMS} records, or a held one not first")
        record.check(table[record.index])
        if record.CLOSES:
            closed = record.index


# ------------------------------------------------------------------------------------------------ reading


class UpdateReader:
    """Reads an update file, one record at a time; nothing is trusted, and memory follows what was read, not declared.

    Args:
        data: the whole file.
        base_table: the tensors of the base; None reads a full update, or only the header of another.
        limits: what is accepted.

    Attributes:
        header: the file's first bytes.
        table: the tensors of the result; None where they depend on a base that was not given.

    Raises:
        WireVersionUnsupported: a newer version, or a part of it that this reader does not know.
        MalformedUpdate: the bytes do not follow the format.
        LimitExceeded: the file declares more than `limits`.
    """

    def __init__(self, data: memoryview, base_table: TensorTable | None, limits: Limits | None = None) -> None:
        limits = limits or Limits()
        self.header, at = _read_header(data)
        try:
            length, at = read_leb128(data, at)
        except ValueError:
            raise MalformedUpdate("the length of the integers does not end; the file is cut or corrupted") from None
        if length > len(data) - at:
            raise MalformedUpdate(f"the integers take {length} bytes, {len(data) - at} are there; the file is cut")
        self.integer_bytes = length
        self._source = RecordReader(data[at : at + length], self.header.log2_lanes, data[at + length :])
        if Flag.FULL in self.header.flags:
            self.table: TensorTable | None = _unpack_table(self._source.take_frame(), limits)
        elif Flag.PATCH in self.header.flags and base_table is not None:
            self.table = take_patch(self._source, base_table, limits)
        else:
            self.table = base_table

    @property
    def integer_bytes_read(self) -> int:
        """Return how many bytes of the integer stream were read so far; what a record took is known within a few."""
        return self._source.integer_bytes_read

    def records(self) -> Iterator[Record]:
        """Yield the records in order, then check that the file ends where they do. Can be iterated once.

        Raises:
            MalformedUpdate: the bytes do not follow the format, or do not fit the table.
            WireVersionUnsupported: a record is of a kind that this reader does not know.
        """
        if self.table is None:
            raise MalformedUpdate("this update needs the tensor table of its base")
        take = self._source.take_one
        count, at, terms, closed = take(Family.COUNT), 0, 0, -1
        for ordinal in range(count):
            gap = take(Family.GAP)
            terms = terms + 1 if ordinal and not gap else 1
            at += gap
            if at >= len(self.table) or at == closed or terms > MAX_TERMS:
                raise MalformedUpdate(f"record {ordinal} is for tensor {at} of {len(self.table)}, out of place there")
            kind = self._kind(spec := self.table[at])
            if terms > 1 and kind is Held:
                raise MalformedUpdate(f"tensor {spec.name!r}: what is held stands after another record")
            if kind.CLOSES:
                closed = at
            try:
                yield kind.read(at, spec, self._source)  # not kept here: the caller lets go of it before the next
            except InvalidInput as misfit:
                raise MalformedUpdate(str(misfit)) from None
        self._source.finish()

    def _kind(self, spec: TensorSpec) -> type[Record]:
        kind = KINDS.get(number := self._source.take_one(Family.KIND))
        if kind is None:
            raise WireVersionUnsupported(f"tensor {spec.name!r}: encoding {number} is not known; update sprat")
        return kind


def read_header(data: memoryview) -> Header:
    """Return the first bytes of an update file.

    Raises:
        WireVersionUnsupported: a newer version, or a part of it that this reader does not know.
        MalformedUpdate: it is no update file.
    """
    return _read_header(data)[0]


def _read_header(data: memoryview) -> tuple[Header, int]:
    if len(data) < _HEAD.size or bytes(data[:3]) != MAGIC:
        raise MalformedUpdate("this is not a sprat update file (it does not begin with 'SPR')")
    _, version, flags, log2_lanes, base = _HEAD.unpack_from(data)
    if version != VERSION:
        raise WireVersionUnsupported(f"wire version {version}: this sprat reads version {VERSION}; update it")
    if flags & ~sum(Flag):
        raise WireVersionUnsupported(f"header flags {flags:#04x}: this sprat reads 0x01, 0x02 and 0x04; update it")
    if log2_lanes > MAX_LOG2_LANES:
        raise MalformedUpdate(f"2**{log2_lanes} lanes; at most 2**{MAX_LOG2_LANES} are allowed")
    if Flag.FULL in Flag(flags) and (any(base) or Flag.PATCH in Flag(flags)):
        raise MalformedUpdate("a full update names a base or patches one")
    at, result = _HEAD.size, None
    if Flag.RESULT in Flag(flags):
        if len(data) < at + 32:
            raise MalformedUpdate("the file is cut within the result's digest")
        result, at = digest_text(bytes(data[at : at + 32])), at + 32
    return Header(flags=Flag(flags), log2_lanes=log2_lanes, base=base, result=result), at


def _unpack_table(frame: memoryview, limits: Limits) -> TensorTable:
    specs, aliases = unpack_descriptions(frame, limits)
    try:
        table = TensorTable(specs, aliases)
    except InvalidInput as bad:
        raise MalformedUpdate(f"the tensor table cannot be read ({bad})") from None
    limits.check(table)
    return table
