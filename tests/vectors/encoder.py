"""A small encoder of update files in plain Python, after docs/wire-format.md: it makes vectors that sprat's did not.

Frames are zstd with raw blocks, written out by hand, so that no version of any library changes a byte.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from decoder import ORDERED_AS_FLOATS, WIDTHS, Release, Tensor
from integer_stream import EVEN_ODDS, FAMILIES, Model
from sums import DENSE, DRAWN, IDENTITY, LOW_RANK, ROWS, SENT, SUBSPACE, THREE_FACTORS

RAW_BLOCK_BYTES = 1 << 17


@dataclass
class StreamWriter:
    """Collects runs of integers, forward, and codes their bits backward (section 5)."""

    lanes: int
    bits: list[tuple[int, int, int]] = field(default_factory=list)  # lane, start and width of the bit's range
    models: dict[str, list[Model]] = field(
        default_factory=lambda: {name: [Model() for _ in range(2 * most + 1)] for name, (most, _) in FAMILIES.items()}
    )
    scale: int = 128
    seed_sent: bool = False
    coefficients_sent: bool = False

    def one(self, family: str, value: int) -> None:
        self.run(family, [value])

    def put_scale(self, scale: int) -> None:
        self.one("SCALE", scale - self.scale)
        self.scale = scale

    def put_seed(self, seed: int) -> None:
        if not self.seed_sent:
            self.one("SEED", seed)
        self.seed_sent = True

    def run(self, family: str, values: Sequence[int]) -> None:
        for model in self.models[family]:
            model.halve_to(64)
        for at in range(0, len(values), self.lanes):
            self.group(family, values[at : at + self.lanes])

    def step(self, which: Sequence[int], bits: Sequence[int], model: Model | None = None) -> None:
        if not which:
            return
        p = EVEN_ODDS if model is None else model.p
        for lane, bit in zip(which, bits, strict=True):
            self.bits.append((lane, p, 4096 - p) if bit else (lane, 0, p))
        if model is not None:
            model.learn(bits, self.lanes)

    def group(self, family: str, values: Sequence[int]) -> None:
        longest, signed = FAMILIES[family]
        models, length = self.models[family], [abs(value).bit_length() for value in values]
        for j in range(longest):
            which = [lane for lane in range(len(values)) if length[lane] >= j]
            self.step(which, [int(length[lane] > j) for lane in which], models[j])
        if signed:
            which = [lane for lane in range(len(values)) if length[lane]]
            self.step(which, [int(values[lane] < 0) for lane in which])
        for q in range(max(length) - 2, -1, -1):
            for which, model in (
                ([lane for lane in range(len(values)) if length[lane] == q + 2], models[longest + q + 2]),
                ([lane for lane in range(len(values)) if length[lane] > q + 2], None),
            ):
                self.step(which, [abs(values[lane]) >> q & 1 for lane in which], model)

    def finish(self) -> bytes:
        states, words = [1 << 16] * self.lanes, list[int]()
        for lane, start, width in reversed(self.bits):
            if states[lane] >= width << 20:
                words.append(states[lane] & 0xFFFF)
                states[lane] >>= 16
            states[lane] = (states[lane] // width << 12) + states[lane] % width + start
        head = [word for state in states for word in (state & 0xFFFF, state >> 16)]
        return struct.pack(f"<{len(head) + len(words)}H", *head, *reversed(words))


@dataclass
class LowRank:
    index: int
    scale: int
    rank: int
    u: list[int]
    v: list[int]

    def write(self, writer: StreamWriter) -> None:
        writer.one("KIND", LOW_RANK)
        writer.one("RANK", self.rank)
        writer.put_scale(self.scale)
        writer.run("U", self.u)
        writer.run("V", self.v)


@dataclass
class Dense:
    index: int
    scale: int
    q: list[int]

    def write(self, writer: StreamWriter) -> None:
        writer.one("KIND", DENSE)
        writer.put_scale(self.scale)
        writer.run("DENSE", self.q)


@dataclass
class Rows:
    index: int
    scale: int
    rows: list[int]
    q: list[int]

    def write(self, writer: StreamWriter) -> None:
        writer.one("KIND", ROWS)
        writer.one("COUNT", len(self.rows))
        writer.put_scale(self.scale)
        writer.run("ROW", [row - before - 1 for before, row in zip([-1, *self.rows], self.rows, strict=False)])
        writer.run("DENSE", self.q)


@dataclass
class ThreeFactors:
    """`u` and `v` are empty where their side is not sent; `ranks` are r and t."""

    index: int
    scale: int
    ranks: tuple[int, int]
    core: list[int]
    u: list[int] = field(default_factory=list)
    v: list[int] = field(default_factory=list)
    sides: tuple[int, int] = (SENT, SENT)
    seed: int = 0

    def write(self, writer: StreamWriter) -> None:
        writer.one("KIND", THREE_FACTORS)
        for side in self.sides:
            writer.one("SIDE", side)
        if DRAWN in self.sides:
            writer.put_seed(self.seed)
        for side, rank in zip(self.sides, self.ranks, strict=True):
            if side != IDENTITY:
                writer.one("RANK", rank)
        writer.put_scale(self.scale)
        if self.sides[0] == SENT:
            writer.run("U", self.u)
        writer.run("CORE", self.core)
        if self.sides[1] == SENT:
            writer.run("V", self.v)


@dataclass
class Subspace:
    index: int
    scale: int
    seed: int
    q: list[int]

    def write(self, writer: StreamWriter) -> None:
        writer.one("KIND", SUBSPACE)
        if not writer.coefficients_sent:
            writer.put_seed(self.seed)
            writer.one("COUNT", len(self.q))
            writer.run("CORE", self.q)
        writer.coefficients_sent = True
        writer.put_scale(self.scale)


Sum = LowRank | Dense | Rows | ThreeFactors | Subspace


@dataclass
class Lossless:
    """What has a frame of its own: kinds 2, 6 and (the first 8 bytes of a digest) 7."""

    index: int
    frame: bytes
    kind: int = 2


def raw_zstd(data: bytes) -> bytes:
    """A zstd frame (RFC 8878) of raw blocks: single segment, content size in 4 bytes, no checksum."""
    blocks = [data[at : at + RAW_BLOCK_BYTES] for at in range(0, len(data), RAW_BLOCK_BYTES)]
    out = struct.pack("<IBI", 0xFD2FB528, 0xA0, len(data))
    for number, block in enumerate(blocks, 1):
        out += struct.pack("<I", len(block) << 3 | (number == len(blocks)))[:3] + block
    return out


def planes_frame(tensor: Tensor, new: bytes) -> bytes:
    """The frame of a lossless record (section 6)."""
    width = WIDTHS[tensor.dtype]
    bits, whole = 8 * width, (1 << 8 * width) - 1
    top, folded = 1 << bits - 1, list[int]()
    for at in range(0, len(new), width):
        pair = [int.from_bytes(data[at : at + width], "little") for data in (tensor.data, new)]
        if tensor.dtype in ORDERED_AS_FLOATS:
            pair = [~x & whole if x & top else x | top for x in pair]
        d = (pair[1] - pair[0]) & whole
        folded.append((d << 1 & whole) ^ (whole if d & top else 0))
    return raw_zstd(bytes(z >> 8 * place & 255 for place in range(width) for z in folded))


def leb128(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def table_bytes(release: Release) -> bytes:
    """What the first frame of a full update holds (section 4)."""
    out = struct.pack("<I", len(release.tensors)) + b"".join(tensor.description() for tensor in release.tensors)
    for alias, name in release.aliases:
        texts = [text.encode() for text in (alias, name)]
        out += b"\xff\xff" + b"".join(struct.pack("<H", len(text)) + text for text in texts)
    return out


@dataclass
class Patch:
    """Section 4, item 2: positions removed; indices reshaped, with the growth of each dimension; what is added."""

    removed: list[int] = field(default_factory=list)
    reshaped: list[tuple[int, list[int]]] = field(default_factory=list)
    added: Release = field(default_factory=lambda: Release([], []))

    def write(self, writer: StreamWriter) -> list[bytes]:
        """Put the integers; return the frame, where there is one."""
        for rows in ([(position, []) for position in self.removed], self.reshaped):
            writer.run("COUNT", [len(rows)])
            at = 0
            for position, growth in rows:
                writer.run("GAP", [position - at])
                at = position
                for dimension in growth:
                    writer.run("DIMENSION", [dimension])
        frames = [raw_zstd(table_bytes(self.added))] if self.added.tensors or self.added.aliases else []
        writer.run("LENGTH", [sum(map(len, frames))])
        return frames


def encode(
    base: Release | None,
    records: Sequence[Sum | Lossless],
    *,
    table: Release | None = None,
    patch: Patch | None = None,
    log2_lanes: int = 0,
    result: bytes | None = None,
) -> bytes:
    """An update file (section 1). `table` stands for the base in a full update."""
    writer, frames = StreamWriter(1 << log2_lanes), list[bytes]()
    if table is not None:
        frames.append(raw_zstd(table_bytes(table)))
        writer.run("LENGTH", [len(frames[0])])
    if patch is not None:
        frames += patch.write(writer)
    writer.run("COUNT", [len(records)])
    index = 0
    for record in records:
        writer.one("GAP", record.index - index)
        index = record.index
        if isinstance(record, Lossless):
            writer.one("KIND", record.kind)
            writer.one("LENGTH", len(record.frame))
            frames.append(record.frame)
        else:
            record.write(writer)
    stream = writer.finish()
    flags = (result is not None) | (base is None) << 1 | (patch is not None) << 2
    head = b"SPR" + bytes([1, flags, log2_lanes]) + (bytes(8) if base is None else base.digest()[:8])
    return head + (result or b"") + leb128(len(stream)) + stream + b"".join(frames)
