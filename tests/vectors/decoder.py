"""A second decoder of update files, written from docs/wire-format.md alone.

It imports nothing of sprat and prefers plain Python to speed: what the text says is what stands here, section by
section. numpy serves for float32 arithmetic only, zstandard for the frames.
"""

import hashlib
import struct
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any

import numpy as np
import zstandard
from coded import EXPONENT_BITS, uncoded
from integer_stream import IntegerStream, Refused, need
from sums import SumReader

DTYPES = (
    *("F32", "F16", "BF16", "F64", "I64", "I32", "I16", "I8"),
    *("U64", "U32", "U16", "U8", "BOOL", "F8_E4M3", "F8_E5M2"),
)
WIDTHS = dict(zip(DTYPES, (4, 2, 2, 8, 8, 4, 2, 1, 8, 4, 2, 1, 1, 1, 1), strict=True))
FLOATS = ("F32", "F16", "BF16")
ORDERED_AS_FLOATS = ("F32", "F16", "BF16", "F64")
OCTAVE = (0x3F800000, 0x3F8B95C2, 0x3F9837F0, 0x3FA5FED7, 0x3FB504F3, 0x3FC5672A, 0x3FD744FD, 0x3FEAC0C7)
LOSSLESS, CODED, HELD = 2, 6, 7
SUMS = (0, 1, 3, 4, 5)
RESULT, FULL, PATCH = 1, 2, 4
WINDOW_BYTES = 8 << 20


@dataclass
class Tensor:
    """One tensor of a release: raw little-endian bytes; of a local one whatever the device has."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes = b""
    local: bool = False

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * WIDTHS[self.dtype]

    def description(self) -> bytes:
        """Section 2."""
        name = self.name.encode()
        head = struct.pack("<H", len(name)) + name + bytes([DTYPES.index(self.dtype), len(self.shape)])
        return head + b"".join(struct.pack("<Q", dimension) for dimension in self.shape)


@dataclass
class Release:
    """Tensors in table order, and aliases (alias, tensor's name) in order of the alias."""

    tensors: list[Tensor]
    aliases: list[tuple[str, str]]

    def digest(self) -> bytes:
        """Section 3."""
        sha = hashlib.sha256(b"sprat-weights-1\x00")
        for tensor in self.tensors:
            sha.update(tensor.description())
            sha.update(bytes(32) if tensor.local else hashlib.sha256(tensor.data).digest())
        for alias, name in self.aliases:
            sha.update(b"\xff\xff")
            for text in (alias.encode(), name.encode()):
                sha.update(struct.pack("<H", len(text)) + text)
        return sha.digest()


class Cursor:
    """Reads bytes in order and refuses to read past their end."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        need(self.at + count <= len(self.data), "the file ends too early")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, code: str) -> int:
        (value,) = struct.unpack("<" + code, self.take(struct.calcsize(code)))
        return int(value)

    def leb128(self, most: int) -> int:
        value = 0
        for place in range(most):
            byte = self.number("B")
            value |= (byte & 127) << (7 * place)
            if byte < 128:
                return value
        raise Refused("a length of too many bytes")

    def name(self, length: int) -> str:
        need(1 <= length <= 1024, "a name of 0 or more than 1,024 bytes")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError as error:
            raise Refused("a name is not UTF-8") from error


def unzstd(frame: bytes, most: int) -> bytes:
    """One zstd frame, whole and nothing after it, of at most so many bytes unpacked."""
    try:
        parameters = zstandard.get_frame_parameters(frame)
        need(parameters.window_size <= WINDOW_BYTES, "a zstd window of more than 8 MiB")
        need(parameters.content_size not in (-1, zstandard.CONTENTSIZE_UNKNOWN), "a zstd frame that states no size")
        need(parameters.dict_id == 0, "a zstd frame with a dictionary")
        need(parameters.content_size <= most, "a frame states more than it may hold")
        unpacker = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES).decompressobj()
        data: bytes = unpacker.decompress(frame)
    except zstandard.ZstdError as error:
        raise Refused("not a zstd frame") from error
    need(unpacker.eof and not unpacker.unused_data, "not exactly one zstd frame")
    return data


def read_descriptions(data: bytes) -> Release:
    """Section 4, items 1 and 2: tensors and aliases as a frame describes them."""
    cursor = Cursor(data)
    tensors = []
    for _ in range(cursor.number("I")):
        name = cursor.name(cursor.number("H"))
        code, dimensions = cursor.number("B"), cursor.number("B")
        need(code < len(DTYPES), "an unknown dtype")
        need(dimensions <= 32, "more than 32 dimensions")
        shape = tuple(cursor.number("Q") for _ in range(dimensions))
        tensors.append(Tensor(name, DTYPES[code], shape))
    aliases = []
    while cursor.at < len(data):
        need(cursor.take(2) == b"\xff\xff", "an alias does not begin with ff ff")
        alias = cursor.name(cursor.number("H"))
        aliases.append((alias, cursor.name(cursor.number("H"))))
    release = Release(tensors, aliases)
    need(release == in_order(release), "tensors or aliases out of order")
    return release


def in_order(release: Release) -> Release:
    """Section 2: the order of a table."""
    tensors = sorted(release.tensors, key=lambda tensor: tensor.name.encode())
    return Release(tensors, sorted(release.aliases, key=lambda pair: pair[0].encode()))


def checked(release: Release) -> Release:
    """Section 2: what a table must be."""
    names = [tensor.name for tensor in release.tensors] + [alias for alias, _ in release.aliases]
    need(len(set(names)) == len(names), "two tensors or aliases of one name")
    need({name for _, name in release.aliases} <= {tensor.name for tensor in release.tensors}, "an alias of nothing")
    for tensor in release.tensors:
        need(all(0 <= dimension < 1 << 48 for dimension in tensor.shape), "an impossible dimension")
    return release


def positions(stream: IntegerStream, end: int) -> Iterator[int]:
    """Section 4, item 2: positions that rise."""
    at = -1
    for _ in range(stream.one("COUNT")):
        gap = stream.one("GAP")
        need(at == -1 or gap > 0, "a position twice")
        at = max(at, 0) + gap
        need(at < end, "no such position")
        yield at


def patched(base: Release, stream: IntegerStream, cursor: Cursor) -> Release:
    """Section 4, item 2: the base under the result's table."""
    removed = set(positions(stream, len(base.tensors) + len(base.aliases)))
    changes = {}
    for index in positions(stream, len(base.tensors)):
        changes[index] = [stream.one("DIMENSION") for _ in base.tensors[index].shape]
    need(not removed & set(changes), "a tensor is removed and reshaped")
    length = stream.one("LENGTH")
    result = read_descriptions(unzstd(cursor.take(length), 1 << 25)) if length else Release([], [])
    for index, tensor in enumerate(base.tensors):
        change = changes.get(index, [0] * len(tensor.shape))
        if index not in removed:
            shape = tuple(old + more for old, more in zip(tensor.shape, change, strict=True))
            result.tensors.append(replace(tensor, shape=shape))
    result.aliases += [pair for place, pair in enumerate(base.aliases, len(base.tensors)) if place not in removed]
    result = checked(in_order(result))
    need(
        sum(tensor.nbytes for tensor in result.tensors)
        <= 4 * sum(tensor.nbytes for tensor in base.tensors) + (1 << 24),
        "the result has many times the base's bytes",
    )
    held = {(tensor.name, tensor.dtype, len(tensor.shape)): tensor for tensor in base.tensors}
    for tensor in result.tensors:
        tensor.data = begun(tensor, held.get((tensor.name, tensor.dtype, len(tensor.shape))))
    return result


def begun(tensor: Tensor, old: Tensor | None) -> bytes:
    """Zero bytes, and the old values at all indices that both have."""
    data, width = bytearray(tensor.nbytes), WIDTHS[tensor.dtype]
    if old is None:
        return bytes(data)
    for indices in product(*(range(min(pair)) for pair in zip(tensor.shape, old.shape, strict=True))):
        to, where = (flat(indices, side.shape) * width for side in (tensor, old))
        data[to : to + width] = old.data[where : where + width]
    return bytes(data)


def flat(indices: Sequence[int], shape: Sequence[int]) -> int:
    """The row-major position of an index."""
    at = 0
    for index, dimension in zip(indices, shape, strict=True):
        at = at * dimension + index
    return at


def step_of(scale: int) -> np.float32:
    """Section 4: the step of a scale."""
    octave = np.array([OCTAVE[scale % 8]], np.uint32).view(np.float32)[0]
    return np.float32(octave * np.float32(2.0 ** (scale // 8 - 24)))


def to_float32(tensor: Tensor) -> np.ndarray[Any, Any]:
    """Section 7, item 1; flat."""
    if tensor.dtype == "F32":
        return np.frombuffer(tensor.data, "<f4").copy()
    if tensor.dtype == "F16":
        return np.frombuffer(tensor.data, "<f2").astype(np.float32)
    return (np.frombuffer(tensor.data, "<u2").astype(np.uint32) << 16).view(np.float32)


def from_float32(values: np.ndarray[Any, Any], dtype: str) -> bytes:
    """Section 7, item 3."""
    if dtype == "F32":
        return values.astype("<f4").tobytes()
    if dtype == "F16":
        with np.errstate(over="ignore"):  # beyond the range is infinity
            return values.astype("<f2").tobytes()
    bits = values.view(np.uint32).astype(np.uint64)
    half, odd = bits & 0xFFFF, (bits >> 16) & 1
    up = (half > 0x8000) | ((half == 0x8000) & (odd == 1))
    rounded: bytes = ((bits >> 16) + up).astype("<u2").tobytes()
    return rounded


def unlossless(tensor: Tensor, frame: bytes) -> bytes:
    """Section 6."""
    width = WIDTHS[tensor.dtype]
    planes = unzstd(frame, tensor.nbytes)
    need(len(planes) == tensor.nbytes, "a frame unpacks to another length than its tensor's")
    bits, whole = 8 * width, (1 << 8 * width) - 1
    top = 1 << bits - 1
    is_float = tensor.dtype in ORDERED_AS_FLOATS
    new = bytearray()
    for item in range(tensor.size):
        z = sum(planes[place * tensor.size + item] << 8 * place for place in range(width))
        o = int.from_bytes(tensor.data[item * width : (item + 1) * width], "little")
        d = (z >> 1) ^ -(z % 2) & whole
        if is_float:
            ordered = ((~o if o & top else o | top) + d) & whole
            result = ordered & ~top if ordered & top else ~ordered & whole
        else:
            result = (o + d) & whole
        new += result.to_bytes(width, "little")
    return bytes(new)


class Rebuild:
    """A tensor under its records: float32 while records that add last, then its dtype again."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.records, self.closed = tensor, 0, False
        self.weights: np.ndarray[Any, Any] | None = None

    def begin(self, kind: int) -> None:
        self.records += 1
        need(self.records <= 8, "more than 8 records for one tensor")
        need(not self.closed, "a record after a tensor's lossless one")
        need(
            kind in (LOSSLESS, CODED, HELD) or self.tensor.dtype in FLOATS,
            "a record that adds for a tensor without floats",
        )

    def add(self, product: np.ndarray[Any, Any], scale: int) -> None:
        """Section 7, item 2. product: exact int64, flat."""
        if self.weights is None:
            self.weights = to_float32(self.tensor)
        p = product.astype(np.float32)
        t = p * step_of(scale)
        self.weights = self.weights + t

    def settle(self) -> None:
        if self.weights is not None:
            self.tensor.data = from_float32(self.weights, self.tensor.dtype)
            self.weights = None


@dataclass
class Header:
    """Section 1."""

    flags: int
    lanes: int
    base: bytes
    result: bytes | None
    stream: bytes


def read_header(cursor: Cursor) -> Header:
    """Section 1, up to the frames."""
    need(cursor.take(3) == b"SPR", "not an update")
    need(cursor.number("B") == 1, "another version")
    flags = cursor.number("B")
    need(flags & ~(RESULT | FULL | PATCH) == 0 and flags & (FULL | PATCH) != FULL | PATCH, "unknown flags")
    log2_lanes = cursor.number("B")
    need(log2_lanes <= 12, "too many lanes")
    base = cursor.take(8)
    result = cursor.take(32) if flags & RESULT else None
    return Header(flags, 1 << log2_lanes, base, result, cursor.take(cursor.leb128(6)))


def begin(header: Header, base: Release | None, stream: IntegerStream, cursor: Cursor) -> Release:
    """The release before the first record."""
    if header.flags & FULL:
        need(header.base == bytes(8), "a full update names a base")
        release = checked(read_descriptions(unzstd(cursor.take(stream.one("LENGTH")), 1 << 25)))
        for tensor in release.tensors:
            tensor.data = bytes(tensor.nbytes)
        return release
    if base is None or header.base != base.digest()[:8]:
        raise Refused("it was made for another base")
    if header.flags & PATCH:
        return patched(base, stream, cursor)
    return Release([replace(tensor) for tensor in base.tensors], list(base.aliases))


def with_zeros(release: Release) -> Release:
    """Section 3: to updates a local tensor is zero bytes."""
    tensors = [replace(one, data=bytes(one.nbytes)) if one.local else one for one in release.tensors]
    return Release(tensors, release.aliases)


def one_held(held: Sequence[bytes], prefix: bytes, tensor: Tensor) -> bytes:
    """Section 4, held: the one tensor that the device has whose digest begins so."""
    need(len(prefix) == 8, "a held record that is not 8 bytes")
    need(tensor.size > 0, "a held record for a tensor without values")
    found = {data for data in held if len(data) == tensor.nbytes and hashlib.sha256(data).digest().startswith(prefix)}
    need(len(found) == 1, "a tensor that is not held")
    return found.pop()


def settle(
    rebuilds: Collection[Rebuild],
    added: Sequence[tuple[Rebuild, np.ndarray[Any, Any], int]],
    frames: Sequence[tuple[Rebuild, bytes, int]],
    held: Sequence[bytes],
) -> None:
    """Give each tensor the data that its records say: what is held, what is added, what is exact."""
    for rebuild, frame, kind in frames:
        if kind == HELD:
            rebuild.tensor.data = one_held(held, frame, rebuild.tensor)
    for rebuild, integers, scale in added:
        rebuild.add(integers, scale)
    for rebuild in rebuilds:
        rebuild.settle()
    for rebuild, frame, kind in frames:
        tensor = rebuild.tensor
        if kind == LOSSLESS:
            tensor.data = unlossless(tensor, frame)
        elif kind == CODED:
            tensor.data = uncoded(tensor.dtype, tensor.data, WIDTHS[tensor.dtype], frame)


def decode(
    data: bytes,
    base: Release | None,
    promised: bytes | None = None,
    local: Sequence[int] = (),
    held: Sequence[bytes] = (),
) -> Release:
    """The release that this update makes of its base.

    `promised` and `local`: its weights digest and the indices of its local tensors, out of signed metadata. `held`: the
    raw data of the tensors that the device has, of any model.
    """
    cursor = Cursor(data)
    header = read_header(cursor)
    stream = IntegerStream(header.stream, header.lanes)
    release = begin(header, None if base is None else with_zeros(base), stream, cursor)
    for index, tensor in enumerate(release.tensors):
        tensor.local = index in local
    release = with_zeros(release)
    rebuilds: dict[int, Rebuild] = {}
    index, sums = 0, SumReader(stream)
    lengths: list[tuple[Rebuild, int, int]] = []
    added: list[tuple[Rebuild, np.ndarray[Any, Any], int]] = []
    for _ in range(stream.one("COUNT")):
        index += stream.one("GAP")
        need(index < len(release.tensors), "no such tensor")
        kind = stream.one("KIND")
        need(kind in (*SUMS, LOSSLESS, CODED, HELD), "an unknown kind")
        tensor = release.tensors[index]
        need(not tensor.local, "a record of a local tensor")
        rebuild = rebuilds.setdefault(index, Rebuild(tensor))
        rebuild.begin(kind)
        if kind == HELD:
            need(rebuild.records == 1, "a held record after another of its tensor")
            lengths.append((rebuild, stream.one("LENGTH"), kind))
            continue
        if kind in (LOSSLESS, CODED):
            need(tensor.size > 0, "an exact record for a tensor without values")
            need(kind == LOSSLESS or tensor.dtype in EXPONENT_BITS, "a coded record for a tensor without floats")
            rebuild.closed = True
            lengths.append((rebuild, stream.one("LENGTH"), kind))
            continue
        added.append((rebuild, sums.take(kind, index, tensor.shape), sums.scale))
    stream.end()
    settle(rebuilds.values(), added, [(rebuild, cursor.take(length), kind) for rebuild, length, kind in lengths], held)
    need(cursor.at == len(data), "bytes after the last frame")
    for wanted in (header.result, promised):
        need(wanted is None or wanted == release.digest(), "the result is not what was promised")
    return release
