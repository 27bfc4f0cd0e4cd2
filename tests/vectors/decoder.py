"""A second decoder of update files, written from docs/wire-format.md alone.

It imports nothing of sprat and prefers plain Python to speed: what the text says is what stands here, section by
section. numpy serves for float32 arithmetic only, zstandard for the frames.
"""

import hashlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import zstandard

DTYPES = (
    *("F32", "F16", "BF16", "F64", "I64", "I32", "I16", "I8"),
    *("U64", "U32", "U16", "U8", "BOOL", "F8_E4M3", "F8_E5M2"),
)
WIDTHS = dict(zip(DTYPES, (4, 2, 2, 8, 8, 4, 2, 1, 8, 4, 2, 1, 1, 1, 1), strict=True))
FLOATS = ("F32", "F16", "BF16")
ORDERED_AS_FLOATS = ("F32", "F16", "BF16", "F64")
OCTAVE = (0x3F800000, 0x3F8B95C2, 0x3F9837F0, 0x3FA5FED7, 0x3FB504F3, 0x3FC5672A, 0x3FD744FD, 0x3FEAC0C7)
FAMILIES = {  # longest magnitude in bits, signed
    "COUNT": (32, False),
    "GAP": (32, False),
    "KIND": (4, False),
    "RANK": (24, False),
    "SCALE": (9, True),
    "LENGTH": (40, False),
    "U": (7, True),
    "V": (7, True),
    "DENSE": (24, True),
}
LOW_RANK, DENSE, LOSSLESS = 0, 1, 2
RESULT, FULL = 1, 2
WINDOW_BYTES = 8 << 20


class Refused(Exception):
    """The text says: refuse."""


def need(condition: bool, why: str) -> None:  # noqa: FBT001 - reads as a sentence at each call
    """Refuse unless the condition holds."""
    if not condition:
        raise Refused(why)


@dataclass
class Tensor:
    """One tensor of a release: raw little-endian bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes = b""

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
            sha.update(tensor.description() + hashlib.sha256(tensor.data).digest())
        for alias, name in self.aliases:
            sha.update(b"\xff\xff")
            for text in (alias.encode(), name.encode()):
                sha.update(struct.pack("<H", len(text)) + text)
        return sha.digest()


class Lane:
    """Section 5: one bit of one lane."""

    def __init__(self, state: int) -> None:
        need(1 << 16 <= state < 1 << 32, "a lane begins outside 2^16 to 2^32")
        self.x = state

    def bit(self, p: int, words: Iterator[int]) -> int:
        low = self.x % 4096
        if low < p:
            bit, self.x = 0, p * (self.x >> 12) + low
        else:
            bit, self.x = 1, (4096 - p) * (self.x >> 12) + low - p
        if self.x < 1 << 16:
            word = next(words, None)
            if word is None:
                raise Refused("the words are at an end and a lane wants one more")
            self.x = self.x * 65536 + word
        return bit


class Model:
    """Section 5: two counts."""

    def __init__(self) -> None:
        self.a = self.b = 1

    @property
    def p(self) -> int:
        return 1 + (4094 * self.a) // (self.a + self.b)

    def halve_to(self, most: int) -> None:
        while self.a + self.b > most:
            self.a, self.b = (self.a + 1) // 2, (self.b + 1) // 2

    def learn(self, bits: Sequence[int], lanes: int) -> None:
        self.a += 2 * bits.count(0)
        self.b += 2 * bits.count(1)
        self.halve_to(1024 + 16 * lanes)


EVEN_ODDS = 2048


class IntegerStream:
    """Section 5: runs of integers."""

    def __init__(self, data: bytes, lanes: int) -> None:
        need(len(data) % 2 == 0, "the integer stream ends inside a word")
        words = struct.unpack(f"<{len(data) // 2}H", data)
        need(len(words) >= 2 * lanes, "the integer stream is too short for its lanes")
        self.lanes = [Lane(words[2 * lane] + (words[2 * lane + 1] << 16)) for lane in range(lanes)]
        self.words = iter(words[2 * lanes :])
        self.models = {family: [Model() for _ in range(2 * most + 1)] for family, (most, _) in FAMILIES.items()}

    def one(self, family: str) -> int:
        return self.run(family, 1)[0]

    def run(self, family: str, count: int) -> list[int]:
        for model in self.models[family]:
            model.halve_to(64)
        values: list[int] = []
        while len(values) < count:
            values += self.group(family, self.lanes[: min(count - len(values), len(self.lanes))])
        return values

    def step(self, lanes: Sequence[Lane], model: Model | None) -> list[int]:
        """One bit of each of these lanes under one model, which learns them; no model: even odds."""
        p = EVEN_ODDS if model is None else model.p
        bits = [lane.bit(p, self.words) for lane in lanes]
        if model is not None:
            model.learn(bits, len(self.lanes))
        return bits

    def group(self, family: str, lanes: Sequence[Lane]) -> list[int]:
        longest, signed = FAMILIES[family]
        models = self.models[family]
        numbers = range(len(lanes))
        length = [longest] * len(lanes)
        unknown = list(numbers)
        for j in range(longest):
            if not unknown:
                break
            bits = self.step([lanes[i] for i in unknown], models[j])
            for i, bit in zip(unknown, bits, strict=True):
                if bit == 0:
                    length[i] = j
            unknown = [i for i, bit in zip(unknown, bits, strict=True) if bit == 1]
        negative = set[int]()
        if signed:
            coded = [i for i in numbers if length[i] >= 1]
            bits = self.step([lanes[i] for i in coded], None)
            negative = {i for i, bit in zip(coded, bits, strict=True) if bit == 1}
        value = [1 << (length[i] - 1) if length[i] else 0 for i in numbers]
        for q in range(max(length) - 2, -1, -1):
            exact = [i for i in numbers if length[i] == q + 2]
            others = [i for i in numbers if length[i] > q + 2]
            for which, model in ((exact, models[longest + q + 2]), (others, None)):
                if which:
                    for i, bit in zip(which, self.step([lanes[i] for i in which], model), strict=True):
                        value[i] += bit << q
        return [-value[i] if i in negative else value[i] for i in numbers]

    def end(self) -> None:
        need(all(lane.x == 1 << 16 for lane in self.lanes), "a lane does not end at 2^16")
        need(next(self.words, None) is None, "words are left over")


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


def read_table(data: bytes) -> Release:
    """Sections 2 and 4: the first frame of a full update."""
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
    names = [tensor.name.encode() for tensor in tensors]
    need(names == sorted(set(names)), "tensors out of order")
    further = [alias.encode() for alias, _ in aliases]
    need(further == sorted(set(further)), "aliases out of order")
    need(not set(further) & set(names), "an alias is the name of a tensor")
    need({name.encode() for _, name in aliases} <= set(names), "an alias of nothing")
    for tensor in tensors:
        tensor.data = bytes(tensor.nbytes)
    return Release(tensors, aliases)


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
    """A tensor under its records: float32 while records of kinds 0 and 1 last, then its dtype again."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.records, self.closed = tensor, 0, False
        self.weights: np.ndarray[Any, Any] | None = None

    def begin(self, kind: int) -> None:
        self.records += 1
        need(self.records <= 8, "more than 8 records for one tensor")
        need(not self.closed, "a record after a tensor's lossless one")
        need(kind == LOSSLESS or self.tensor.dtype in FLOATS, "a record of kind 0 or 1 for a tensor without floats")

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
    need(flags & ~(RESULT | FULL) == 0, "unknown flags")
    log2_lanes = cursor.number("B")
    need(log2_lanes <= 12, "too many lanes")
    base = cursor.take(8)
    result = cursor.take(32) if flags & RESULT else None
    return Header(flags, 1 << log2_lanes, base, result, cursor.take(cursor.leb128(6)))


def begin(header: Header, base: Release | None, stream: IntegerStream, cursor: Cursor) -> Release:
    """The release before the first record."""
    if header.flags & FULL:
        need(header.base == bytes(8), "a full update names a base")
        return read_table(unzstd(cursor.take(stream.one("LENGTH")), 1 << 25))
    if base is None or header.base != base.digest()[:8]:
        raise Refused("it was made for another base")
    return Release([replace(tensor) for tensor in base.tensors], list(base.aliases))


def decode(data: bytes, base: Release | None, promised: bytes | None = None) -> Release:
    """The release that this update makes of its base. `promised`: its weights digest out of signed metadata."""
    cursor = Cursor(data)
    header = read_header(cursor)
    stream = IntegerStream(header.stream, header.lanes)
    release = begin(header, base, stream, cursor)
    rebuilds: dict[int, Rebuild] = {}
    index, scale = 0, 128
    frames: list[tuple[Rebuild, int]] = []
    for _ in range(stream.one("COUNT")):
        index += stream.one("GAP")
        need(index < len(release.tensors), "no such tensor")
        kind = stream.one("KIND")
        need(kind in (LOW_RANK, DENSE, LOSSLESS), "an unknown kind")
        tensor = release.tensors[index]
        rebuild = rebuilds.setdefault(index, Rebuild(tensor))
        rebuild.begin(kind)
        if kind == LOSSLESS:
            need(tensor.size > 0, "a lossless record for a tensor without values")
            rebuild.closed = True
            frames.append((rebuild, stream.one("LENGTH")))
            continue
        if kind == LOW_RANK:
            need(len(tensor.shape) >= 2, "a low-rank record for a tensor without a matrix view")
            m, n = tensor.shape[0], prod(tensor.shape[1:])
            rank = stream.one("RANK")
            need(1 <= rank <= min(m, n), "an impossible rank")
        scale += stream.one("SCALE")
        need(0 <= scale <= 255, "a scale outside 0 to 255")
        if kind == LOW_RANK:
            u = np.array(stream.run("U", m * rank), np.int64).reshape(m, rank)
            v = np.array(stream.run("V", rank * n), np.int64).reshape(rank, n)
            rebuild.add((u @ v).reshape(-1), scale)
        else:
            rebuild.add(np.array(stream.run("DENSE", tensor.size), np.int64), scale)
    stream.end()
    for rebuild in rebuilds.values():
        rebuild.settle()
    for rebuild, length in frames:
        rebuild.tensor.data = unlossless(rebuild.tensor, cursor.take(length))
    need(cursor.at == len(data), "bytes after the last frame")
    for wanted in (header.result, promised):
        need(wanted is None or wanted == release.digest(), "the result is not what was promised")
    return release
