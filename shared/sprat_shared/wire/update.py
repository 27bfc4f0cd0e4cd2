"""The update file: what turns release a into release b (docs/wire-format.md, sections 1 and 4).

Layout, little-endian:
    "SPR" | u8 version | u8 flags | u8 log2 of lanes | 8 bytes of the base's weights digest (zero in a full update)
    [32 bytes: the result's weights digest, where flagged]
    LEB128: bytes of the integer stream | the integer stream | frames of the lossless records, one after the other
Everything but the frames is integers in one stream: how many records there are, what each is, and its factors.
"""

import io
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntFlag
from typing import Final

import zstandard

from sprat_shared.errors import InvalidInput, LimitExceeded, MalformedUpdate, WireVersionUnsupported
from sprat_shared.ids import digest_text, parse_digest
from sprat_shared.wire.integers import MAX_LOG2_LANES, Family
from sprat_shared.wire.planes import stated_bytes, unpack_frame
from sprat_shared.wire.records import KINDS, Record
from sprat_shared.wire.records.stream import RecordReader, RecordWriter
from sprat_shared.wire.tensors import ALIAS_MARK, DTYPES, TensorSpec, TensorTable, describe

VERSION: Final = 1
MAGIC: Final = b"SPR"
BASE_BYTES: Final = 8
MAX_TERMS: Final = 8
MAX_TABLE_BYTES: Final = 1 << 25
_HEAD: Final = struct.Struct("<3sBBB8s")


class Flag(IntFlag):
    """Bits of the header; others must be zero."""

    RESULT = 1  # the result's weights digest follows the header
    FULL = 2  # no base: the first frame is the tensor table, and all tensors start as zeros
    PATCH = 4  # reserved: a patch of the tensor table and a new graph digest; this version refuses it


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a reader accepts before it takes memory.

    Attributes:
        max_tensors: tensors in the table of a full update.
        max_bytes: of all tensors together.
    """

    max_tensors: int = 1 << 16
    max_bytes: int = 64 << 30


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
    table: TensorTable, records: Sequence[Record], *, base_digest: str | None, result_digest: str | None = None
) -> bytes:
    """Return an update file.

    Args:
        table: the tensors, of base and result alike.
        records: sorted by index; several for one tensor are applied in order, a lossless one last.
        base_digest: weights digest of the base; None makes a full update that carries its table.
        result_digest: weights digest of the result, for a file that travels without signed metadata.

    Raises:
        InvalidInput: a record does not fit its tensor.
    """
    _check_order(table, records)
    writer, flags = RecordWriter(), Flag(0)
    if base_digest is None:
        flags |= Flag.FULL
        writer.put_frame(_pack_table(table))
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
    return b"".join([head, result, _leb128(len(stream)), stream, *writer.frames])


def _check_order(table: TensorTable, records: Sequence[Record]) -> None:
    last, terms, closed = 0, 0, -1
    for record in records:
        if not last <= record.index < len(table) or record.index == closed:
            raise InvalidInput(f"record of tensor {record.index}: records are sorted by index, a lossless one is last")
        terms = terms + 1 if record.index == last else 1
        last = record.index
        if terms > MAX_TERMS:
            raise InvalidInput(f"tensor {table[last].name!r}: more than {MAX_TERMS} records")
        record.check(table[record.index])
        if record.CLOSES:
            closed = record.index


def _pack_table(table: TensorTable) -> bytes:
    plain = struct.pack("<I", len(table)) + b"".join(map(describe, table))
    for names in table.aliases.items():
        plain += ALIAS_MARK + b"".join(struct.pack("<H", len(name.encode())) + name.encode() for name in names)
    if len(table) > Limits().max_tensors or len(plain) > MAX_TABLE_BYTES:
        raise InvalidInput(f"a full update of {len(table)} tensors, {len(plain)} bytes of names, is more than is read")
    return zstandard.ZstdCompressor(level=19).compress(plain)


def _leb128(value: int) -> bytes:
    out = bytearray()
    while value >> 7:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


# ------------------------------------------------------------------------------------------------ reading


class UpdateReader:
    """Reads an update file, one record at a time; nothing is trusted, and memory follows what was read, not declared.

    Args:
        data: the whole file.
        base_table: the tensors of the base; None reads a full update, or only the header of another.
        limits: what is accepted.

    Raises:
        WireVersionUnsupported: a newer version, or a part of it that this reader does not know.
        MalformedUpdate: the bytes do not follow the format.
        LimitExceeded: the file declares more than `limits`.
    """

    def __init__(self, data: memoryview, base_table: TensorTable | None, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self.header, at = _read_header(data)
        length, at = _read_leb128(data, at)
        if length > len(data) - at:
            raise MalformedUpdate(f"the integers take {length} bytes, {len(data) - at} are there; the file is cut")
        self.integer_bytes = length
        self._source = RecordReader(data[at : at + length], self.header.log2_lanes, data[at + length :])
        if Flag.FULL in self.header.flags:
            self.table: TensorTable | None = _unpack_table(self._source.take_frame(), self._limits)
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
            yield (record := self._record(at, self.table[at]))
            if record.CLOSES:
                closed = at
        self._source.finish()

    def _record(self, index: int, spec: TensorSpec) -> Record:
        kind = KINDS.get(number := self._source.take_one(Family.KIND))
        if kind is None:
            raise WireVersionUnsupported(f"tensor {spec.name!r}: encoding {number} is not known; update sprat")
        try:
            return kind.read(index, spec, self._source)
        except InvalidInput as misfit:
            raise MalformedUpdate(str(misfit)) from None


def _read_header(data: memoryview) -> tuple[Header, int]:
    if len(data) < _HEAD.size or bytes(data[:3]) != MAGIC:
        raise MalformedUpdate("this is not a sprat update file (it does not begin with 'SPR')")
    _, version, flags, log2_lanes, base = _HEAD.unpack_from(data)
    if version != VERSION:
        raise WireVersionUnsupported(f"wire version {version}: this sprat reads version {VERSION}; update it")
    if flags & ~int(Flag.RESULT | Flag.FULL):
        raise WireVersionUnsupported(f"header flags {flags:#04x}: this sprat reads 0x01 and 0x02; update it")
    if log2_lanes > MAX_LOG2_LANES:
        raise MalformedUpdate(f"2**{log2_lanes} lanes; at most 2**{MAX_LOG2_LANES} are allowed")
    if Flag.FULL in Flag(flags) and any(base):
        raise MalformedUpdate("a full update names a base")
    at, result = _HEAD.size, None
    if Flag.RESULT in Flag(flags):
        if len(data) < at + 32:
            raise MalformedUpdate("the file is cut within the result's digest")
        result, at = digest_text(bytes(data[at : at + 32])), at + 32
    return Header(flags=Flag(flags), log2_lanes=log2_lanes, base=base, result=result), at


def _read_leb128(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for i, byte in enumerate(data[at : at + 6]):
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:  # noqa: PLR2004  # the continuation bit
            return value, at + i + 1
    raise MalformedUpdate("the length of the integers does not end; the file is cut or corrupted")


def _unpack_table(frame: memoryview, limits: Limits) -> TensorTable:
    if (size := stated_bytes(frame, "the tensor table")) > MAX_TABLE_BYTES:
        raise LimitExceeded(f"the tensor table takes {size} bytes, at most {MAX_TABLE_BYTES} are read")
    cursor = io.BytesIO(unpack_frame(frame, "the tensor table"))
    try:
        (count,) = struct.unpack("<I", cursor.read(4))
        if count > limits.max_tensors:
            raise LimitExceeded(f"the update declares {count} tensors, at most {limits.max_tensors} are read")
        specs = [_read_spec(cursor) for _ in range(count)]
        aliases = list(_read_aliases(cursor))
        table = TensorTable(specs, dict(aliases))
    except (struct.error, UnicodeDecodeError, IndexError, InvalidInput) as bad:
        raise MalformedUpdate(f"the tensor table cannot be read ({bad})") from None
    if table.nbytes > limits.max_bytes:
        raise LimitExceeded(f"the update declares {table.nbytes} bytes of tensors, at most {limits.max_bytes} are read")
    if list(table) != specs or list(table.aliases.items()) != aliases:
        raise MalformedUpdate("the tensor table is not sorted by name")
    return table


def _read_name(cursor: io.BytesIO) -> str:
    (length,) = struct.unpack("<H", cursor.read(2))
    name = cursor.read(length)
    if len(name) != length:
        raise struct.error(f"a name of {length} bytes is cut")
    return name.decode()


def _read_spec(cursor: io.BytesIO) -> TensorSpec:
    name = _read_name(cursor)
    dtype, dims = struct.unpack("<BB", cursor.read(2))
    return TensorSpec(name, DTYPES[dtype], struct.unpack(f"<{dims}Q", cursor.read(8 * dims)))


def _read_aliases(cursor: io.BytesIO) -> Iterator[tuple[str, str]]:
    while mark := cursor.read(2):
        if mark != ALIAS_MARK:
            raise struct.error("bytes after the last tensor")
        yield _read_name(cursor), _read_name(cursor)
