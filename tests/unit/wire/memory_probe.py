"""Applies hostile and damaged files, each with a fresh high-water mark; prints a line of JSON for each.

A process of its own, so that nothing else counts: {"case", "error", "peak_bytes", "declared_bytes", "seconds"}.
"""

import json
import random
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import zstandard

from sprat_shared.apply import apply_update
from sprat_shared.errors import SpratError
from sprat_shared.wire.descriptions import Limits
from sprat_shared.wire.exact import encode_exact
from sprat_shared.wire.integers import Family, IntegerEncoder
from sprat_shared.wire.planes import encode_planes
from sprat_shared.wire.records import Coded, Dense, Drawn, Lossless, LowRank, Rows, Subspace, ThreeFactors
from sprat_shared.wire.tensors import Array, ArrayTensors, TensorTable, describe, digest_of
from sprat_shared.wire.update import Flag, encode_update

LIMITS = Limits(max_bytes=64 << 20)
BASE = ArrayTensors(
    {
        "w": ("F32", np.ones((1500, 1000), np.float32)),
        "h": ("BF16", np.ones((64, 64), np.uint16)),
        "i": ("I64", np.arange(100)),
    }
)
Integers = list[tuple[Family, list[int]]]


class Dropped:
    """A sink that keeps nothing."""

    def begin(self, table: TensorTable) -> None:
        self.table = table

    def keep(self, index: int, sha256: bytes) -> None:
        """Nothing is kept."""

    def put(self, index: int, array: Array, sha256: bytes) -> None:
        """Nothing is kept."""


def assembled(integers: Integers, frames: bytes = b"", *, flags: int = 0, log2_lanes: int = 0) -> bytes:
    """A file of these integers and frames."""
    encoder = IntegerEncoder(log2_lanes)
    for family, values in integers:
        encoder.put(family, values)
    stream = encoder.finish()
    base = bytes(8) if flags & Flag.FULL else bytes.fromhex(digest_of(BASE)[7:23])
    length = bytes((len(stream) >> 7 * i & 127) | 128 for i in range(5)) + bytes([len(stream) >> 35 & 127])
    return b"SPR\x01" + bytes([flags, log2_lanes]) + base + length + stream + frames


def full_table(table: bytes, *more: tuple[Family, list[int]], frames: bytes = b"") -> bytes:
    """A full update with this table and further integers."""
    frame = zstandard.ZstdCompressor(level=1).compress(table)
    return assembled([(Family.LENGTH, [len(frame)]), *more], frame + frames, flags=Flag.FULL)


def hostile() -> Iterator[tuple[str, int, bytes]]:
    """Name, declared bytes and file of what somebody could write on purpose."""
    index = BASE.table.index_of("w")
    begin: Integers = [(Family.COUNT, [1]), (Family.GAP, [index])]
    own = BASE.table.nbytes
    bomb = zstandard.ZstdCompressor(level=1).compress(bytes(1 << 30))
    yield "4 billion records", own, assembled([(Family.COUNT, [2**32 - 1])])
    yield (
        "highest rank, no factors",
        own,
        assembled([*begin, (Family.KIND, [0]), (Family.RANK, [1000]), (Family.SCALE, [0])]),
    )
    yield "all dense values in no bytes", own, assembled([*begin, (Family.KIND, [1]), (Family.SCALE, [0])])
    yield "a frame of a terabyte", own, assembled([*begin, (Family.KIND, [2]), (Family.LENGTH, [2**40 - 1])])
    yield "a frame that unpacks to a gigabyte", own, assembled(
        [*begin, (Family.KIND, [2]), (Family.LENGTH, [len(bomb)])], bomb
    )  # fmt: skip
    away = np.random.default_rng(2).standard_normal((1500, 1000), dtype=np.float32)
    coded = encode_exact(BASE.table[index], BASE.read(index), away)
    for length in (8, 5000, len(coded) - 1):
        yield f"{length} of {len(coded)} coded bytes", own, assembled(
            [*begin, (Family.KIND, [6]), (Family.LENGTH, [length])], coded[:length]
        )  # fmt: skip
    coefficients: Integers = [*begin, (Family.KIND, [5]), (Family.SEED, [2**32 - 1])]
    for count in (1 << 20, (1 << 20) + 1, 2**32 - 1):
        yield f"{count} coefficients, none sent", own, assembled([*coefficients, (Family.COUNT, [count])])
    for count in (1_498, 1_499, 2**32 - 1):
        some = [(Family.KIND, [3]), (Family.COUNT, [count]), (Family.SCALE, [0])]
        yield f"{count} rows, none sent", own, assembled([*begin, *some])
    yield (
        "a row of 4 billion",
        own,
        assembled(
            [*begin, (Family.KIND, [3]), (Family.COUNT, [9]), (Family.SCALE, [0]), (Family.ROW, [2**32 - 1] * 9)]
        ),
    )
    for sides in ([0, 0], [1, 1], [0, 1], [2, 0], [3, 0]):
        ranks = [(Family.RANK, [1000])] * (2 - sides.count(2))
        some = [(Family.KIND, [4]), *((Family.SIDE, [side]) for side in sides)]
        some += [(Family.SEED, [1])] if 1 in sides else []
        yield f"sides {sides}, highest ranks, nothing sent", own, assembled(
            [*begin, *some, *ranks, (Family.SCALE, [0])]
        )  # fmt: skip
    yield "4096 lanes in a short stream", own, assembled([])[:5] + b"\x0c" + assembled([])[6:]
    grown: Integers = [(Family.COUNT, [0]), (Family.COUNT, [1]), (Family.GAP, [index])]
    for rows, columns in ((1 << 47, 0), (20_000, 0), (1_200, 1_200)):
        changes: Integers = [(Family.DIMENSION, [rows]), (Family.DIMENSION, [columns]), (Family.LENGTH, [0])]
        most = max(own, 4 * (1_500 + rows) * (1_000 + columns) if rows < 20_000 else 0)
        yield f"a patch to {rows} more rows", most, assembled(
            [*grown, *changes, (Family.COUNT, [0])], flags=Flag.PATCH
        )  # fmt: skip
    yield "a patch that removes 4 billion", own, assembled([(Family.COUNT, [2**32 - 1])], flags=Flag.PATCH)
    yield "a patch that adds a gigabyte", own, assembled(
        [(Family.COUNT, [0]), (Family.COUNT, [0]), (Family.LENGTH, [len(bomb)])], bomb, flags=Flag.PATCH
    )  # fmt: skip
    yield "a stream of terabytes", own, assembled([])[:14] + b"\xff\xff\xff\xff\xff\x7f"
    yield "a table of a gigabyte", 0, full_table(bytes(1 << 28))
    yield "a table at its bound", 0, full_table(struct.pack("<I", 1 << 16) + bytes((1 << 25) - 4))
    tiny = b"".join(struct.pack("<H5sBB", 5, b"%05d" % i, 0, 0) for i in range(1 << 16))
    yield "as many tensors as may be", 1 << 18, full_table(struct.pack("<I", 1 << 16) + tiny, (Family.COUNT, [0]))
    wide = struct.pack("<IH1sBB2Q", 1, 1, b"w", 0, 2, 4000, 4000)
    for kind in (0, 1):
        more: Integers = [(Family.COUNT, [1]), (Family.GAP, [0]), (Family.KIND, [kind])]
        more += [(Family.RANK, [4000]), (Family.SCALE, [0])] if kind == 0 else [(Family.SCALE, [0])]
        yield f"64 MB of zeros, then kind {kind} cut short", 64_000_000, full_table(wide, *more)
    yield "64 MB declared, a gigabyte sent", 64_000_000, full_table(
        wide, (Family.COUNT, [1]), (Family.GAP, [0]), (Family.KIND, [2]), (Family.LENGTH, [len(bomb)]), frames=bomb
    )  # fmt: skip


def good() -> bytes:
    """An update with every kind of record, many lanes."""
    rng = np.random.default_rng(1)
    i, w, h = (BASE.table.index_of(name) for name in "iwh")
    records = [
        LowRank(h, 100, *(rng.integers(-3, 4, s).astype(np.int8) for s in ((64, 8), (8, 64)))),
        Coded(h, encode_exact(BASE.table[h], BASE.read(h), BASE.read(h) + 1)),
        Lossless(i, encode_planes(BASE.table[i], BASE.read(i), BASE.read(i) + 1)),
        LowRank(w, 100, *(rng.integers(-3, 4, s).astype(np.int8) for s in ((1500, 60), (60, 1000)))),
        Dense(w, 90, (rng.random(1_500_000) < 0.001).astype(np.int32)),
        Subspace(w, 80, 4, rng.integers(-3, 4, 500).astype(np.int16)),
        Rows(w, 80, np.arange(3, 1500, 50, dtype=np.uint32), rng.integers(-3, 4, (30, 1000)).astype(np.int32)),
        ThreeFactors(w, 80, Drawn(4), rng.integers(-3, 4, (900, 9, 1)).astype(np.int16), Drawn(4)),
    ]
    return encode_update(BASE.table, records, base_digest=digest_of(BASE))


def damaged(count: int) -> Iterator[tuple[str, int, bytes]]:
    """Files with a few random bytes."""
    chance, whole = random.Random(7), good()
    own = BASE.table.nbytes
    for number in range(count):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(14, len(data) if number % 2 else 200)] = chance.randrange(256)
        yield f"damaged {number}", own, bytes(data)
    table = bytearray(struct.pack("<I", len(BASE.table)) + b"".join(map(describe, BASE.table)))
    for number in range(count):
        data = bytearray(table)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        yield f"damaged table {number}", LIMITS.max_bytes, full_table(bytes(data), (Family.COUNT, [0]))


def status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def main() -> None:
    base_digest = digest_of(BASE)
    for name, declared, data in (*hostile(), *damaged(int(sys.argv[1]))):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before, begin, error = status("VmRSS:"), time.perf_counter(), None
        try:
            apply_update(data, BASE, Dropped(), expected="sha256:" + "0" * 64, base_digest=base_digest, limits=LIMITS)
        except SpratError as refused:
            error = refused.code
        row = {"case": name, "error": error, "declared_bytes": declared, "file_bytes": len(data)}
        seconds = time.perf_counter() - begin
        sys.stdout.write(json.dumps({**row, "peak_bytes": status("VmHWM:") - before, "seconds": seconds}) + "\n")


if __name__ == "__main__":
    main()
