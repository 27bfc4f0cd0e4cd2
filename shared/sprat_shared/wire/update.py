"""The update file: what turns release a into release b (docs/wire-format.md, sections 4 to 6).

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

import numpy as np
import numpy.typing as npt
import zstandard

from sprat_shared.errors import InvalidInput, LimitExceeded, MalformedUpdate, WireVersionUnsupported
from sprat_shared.ids import digest_text, parse_digest
from sprat_shared.wire.integers import MAX_LOG2_LANES, Family, IntegerDecoder, IntegerEncoder
from sprat_shared.wire.planes import stated_bytes, unpack_frame
from sprat_shared.wire.tensors import ALIAS_MARK, DTYPES, REBUILDABLE, TensorSpec, TensorTable, describe

VERSION: Final = 1
MAGIC: Final = b"SPR"
BASE_BYTES: Final = 8
SCALES: Final = 256
MAX_TERMS: Final = 8
MAX_TABLE_BYTES: Final = 1 << 25
_HEAD: Final = struct.Struct("<3sBBB8s")
_FIRST_SCALE: Final = 128
_LOW_RANK, _DENSE, _LOSSLESS = 0, 1, 2
_OCTAVE: Final = np.array(  # 2**(k/8) rounded to float32, k = 0..7; section 4 gives the bits
    [0x3F800000, 0x3F8B95C2, 0x3F9837F0, 0x3FA5FED7, 0x3FB504F3, 0x3FC5672A, 0x3FD744FD, 0x3FEAC0C7], dtype=np.uint32
).view(np.float32)
STEPS: Final[npt.NDArray[np.float32]] = np.ldexp(np.tile(_OCTAVE, SCALES // 8), np.arange(SCALES) // 8 - 24).astype(
    np.float32
)
STEPS.flags.writeable = False


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


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """Tensor `index` changes by (u @ v) * STEPS[scale] in its matrix view (m, n).

    Attributes:
        u: int8 (m, r) in [-127, 127].
        v: int8 (r, n) in [-127, 127].
    """

    index: int
    scale: int
    u: npt.NDArray[np.int8]
    v: npt.NDArray[np.int8]


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """Tensor `index` changes by q * STEPS[scale].

    Attributes:
        q: int32 (size,), row-major, magnitudes below 2**24.
    """

    index: int
    scale: int
    q: npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Lossless:
    """Tensor `index` gets exactly the bits that `frame` gives from its bits so far (`wire.planes`)."""

    index: int
    frame: bytes | memoryview


Record = LowRank | Dense | Lossless


def nearest_scale(step: float) -> int:
    """Return the scale whose step is nearest to `step` on a log axis; steps beyond the table give its ends."""
    if not step > 0:
        return 0
    return int(np.clip(np.rint(8 * np.log2(step)) + 192, 0, SCALES - 1))


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
    log2_lanes = _lanes_for(sum(_integers_in(record) for record in records))
    integers, frames = IntegerEncoder(log2_lanes), []
    flags = Flag(0)
    if base_digest is None:
        flags |= Flag.FULL
        frames.append(_pack_table(table))
        integers.put(Family.LENGTH, [len(frames[0])])
    integers.put(Family.COUNT, [len(records)])
    at, scale = 0, _FIRST_SCALE
    for record in records:
        integers.put(Family.GAP, [record.index - at])
        at = record.index
        match record:
            case LowRank():
                integers.put(Family.KIND, [_LOW_RANK])
                integers.put(Family.RANK, [record.u.shape[1]])
                integers.put(Family.SCALE, [record.scale - scale])
                integers.put(Family.U, record.u)
                integers.put(Family.V, record.v)
                scale = record.scale
            case Dense():
                integers.put(Family.KIND, [_DENSE])
                integers.put(Family.SCALE, [record.scale - scale])
                integers.put(Family.DENSE, record.q)
                scale = record.scale
            case Lossless():
                integers.put(Family.KIND, [_LOSSLESS])
                integers.put(Family.LENGTH, [len(record.frame)])
                frames.append(bytes(record.frame))
    if result_digest is not None:
        flags |= Flag.RESULT
    stream = integers.finish()
    base = bytes(BASE_BYTES) if base_digest is None else parse_digest(base_digest)[:BASE_BYTES]
    result = b"" if result_digest is None else parse_digest(result_digest)
    head = _HEAD.pack(MAGIC, VERSION, flags, log2_lanes, base)
    return b"".join([head, result, _leb128(len(stream)), stream, *frames])


def _integers_in(record: Record) -> int:
    match record:
        case LowRank():
            return record.u.size + record.v.size
        case Dense():
            return record.q.size
        case Lossless():
            return 0


def _lanes_for(integers: int) -> int:
    """Return log2 of the lanes: one until 2**17 integers, then one (4 bytes) for every 512 to 1,024 of them."""
    return 0 if integers < 1 << 17 else min(MAX_LOG2_LANES, (integers >> 9).bit_length() - 1)


def _check_order(table: TensorTable, records: Sequence[Record]) -> None:
    last, terms, closed = 0, 0, -1
    for record in records:
        if not last <= record.index < len(table) or record.index == closed:
            raise InvalidInput(f"record of tensor {record.index}: records are sorted by index, a lossless one is last")
        terms = terms + 1 if record.index == last else 1
        last = record.index
        if terms > MAX_TERMS:
            raise InvalidInput(f"tensor {table[last].name!r}: more than {MAX_TERMS} records")
        if isinstance(record, Lossless):
            if not table[record.index].size:
                raise InvalidInput(f"tensor {table[record.index].name!r} has no values that a record could change")
            closed = record.index
        else:
            _check_fit(table[record.index], record)


def _check_fit(spec: TensorSpec, record: LowRank | Dense) -> None:
    if spec.dtype not in REBUILDABLE:
        raise InvalidInput(f"tensor {spec.name!r}: {spec.dtype} can change only by a lossless record")
    if not 0 <= record.scale < SCALES:
        raise InvalidInput(f"tensor {spec.name!r}: scale {record.scale} is not 0 to {SCALES - 1}")
    if isinstance(record, Dense):
        if record.q.size != spec.size:
            raise InvalidInput(f"tensor {spec.name!r} has {spec.size} values, the record {record.q.size}")
        return
    m, n = spec.matrix or (0, 0)
    r = record.u.shape[1]
    if record.u.shape != (m, r) or record.v.shape != (r, n) or not 0 < r <= min(m, n):
        raise InvalidInput(
            f"tensor {spec.name!r} {spec.shape}: factors {record.u.shape} and {record.v.shape} don't fit"
        )


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
        self._integers = IntegerDecoder(data[at : at + length], self.header.log2_lanes)
        self._frames = data[at + length :]
        self.integer_bytes = length
        if Flag.FULL in self.header.flags:
            frame = self._frame(self._integers.take_one(Family.LENGTH))
            self.table: TensorTable | None = _unpack_table(frame, self._limits)
        else:
            self.table = base_table

    @property
    def integer_bytes_read(self) -> int:
        """Return how many bytes of the integer stream were read so far; what a record took is known within a few."""
        return self._integers.bytes_read

    def records(self) -> Iterator[Record]:
        """Yield the records in order, then check that the file ends where they do. Can be iterated once.

        Raises:
            MalformedUpdate: the bytes do not follow the format, or do not fit the table.
        """
        if self.table is None:
            raise MalformedUpdate("this update needs the tensor table of its base")
        take = self._integers.take_one
        count, at, terms, scale, closed = take(Family.COUNT), 0, 0, _FIRST_SCALE, -1
        for ordinal in range(count):
            gap = take(Family.GAP)
            terms = terms + 1 if ordinal and not gap else 1
            at += gap
            if at >= len(self.table) or at == closed or terms > MAX_TERMS:
                raise MalformedUpdate(f"record {ordinal} is for tensor {at} of {len(self.table)}, out of place there")
            spec: TensorSpec = self.table[at]
            kind = take(Family.KIND)
            if kind == _LOSSLESS:
                if not spec.size:
                    raise MalformedUpdate(f"tensor {spec.name!r} has no values that a record could change")
                closed = at
                yield Lossless(at, self._frame(take(Family.LENGTH)))
                continue
            if kind not in {_LOW_RANK, _DENSE}:
                raise WireVersionUnsupported(f"tensor {spec.name!r}: encoding {kind} is not known; update sprat")
            if spec.dtype not in REBUILDABLE:
                raise MalformedUpdate(f"tensor {spec.name!r}: {spec.dtype} can change only by a lossless record")
            rank = self._rank(spec) if kind == _LOW_RANK else 0
            scale += take(Family.SCALE)
            if not 0 <= scale < SCALES:
                raise MalformedUpdate(f"tensor {spec.name!r}: scale {scale} is not 0 to {SCALES - 1}")
            yield self._low_rank(at, spec, rank, scale) if rank else self._dense(at, spec, scale)
        self._integers.finish()
        if self._frames:
            raise MalformedUpdate(f"{len(self._frames)} bytes after the last record")

    def _frame(self, length: int) -> memoryview:
        if length > len(self._frames):
            raise MalformedUpdate(f"a frame takes {length} bytes, {len(self._frames)} are there; the file is cut")
        frame, self._frames = self._frames[:length], self._frames[length:]
        return frame

    def _rank(self, spec: TensorSpec) -> int:
        rank = self._integers.take_one(Family.RANK)
        if not 0 < rank <= min(spec.matrix or (0, 0)):
            raise MalformedUpdate(f"tensor {spec.name!r}: rank {rank} is impossible for shape {spec.shape}")
        return rank

    def _low_rank(self, index: int, spec: TensorSpec, rank: int, scale: int) -> LowRank:
        m, n = spec.matrix or (0, 0)
        u, v = self._take(Family.U, m * rank, np.int8), self._take(Family.V, rank * n, np.int8)
        return LowRank(index, scale, u.reshape(m, rank), v.reshape(rank, n))

    def _dense(self, index: int, spec: TensorSpec, scale: int) -> Dense:
        return Dense(index, scale, self._take(Family.DENSE, spec.size, np.int32))

    def _take(self, family: Family, count: int, dtype: type[np.signedinteger]) -> npt.NDArray[np.signedinteger]:
        out, at = np.empty(count, dtype), 0
        for chunk in self._integers.chunks(family, count):
            out[at : at + chunk.size] = chunk
            at += chunk.size
        return out


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
