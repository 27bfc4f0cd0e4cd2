"""Update files of every kind, mutated: bytes, and the integers and frames behind them, so that damage goes deep.

    python tests/crash/update_mutations.py COUNT SEED
Applies COUNT of them, each with a fresh high-water mark, and prints what came of them as JSON. A process of its own,
so that nothing else counts. `fuzz_updates.py` hands the same samples to a fuzzer.
"""

import json
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import zstandard

from sprat_shared.apply import apply_update, rebuild_tensor
from sprat_shared.errors import UpdateRejected
from sprat_shared.wire.descriptions import Limits
from sprat_shared.wire.exact import encode_exact
from sprat_shared.wire.integers import Family, IntegerEncoder
from sprat_shared.wire.patch import under
from sprat_shared.wire.planes import encode_planes
from sprat_shared.wire.records import (
    Coded,
    Dense,
    Drawn,
    Exact,
    Identity,
    Lossless,
    LowRank,
    Record,
    Rows,
    Subspace,
    ThreeFactors,
)
from sprat_shared.wire.records import stream as records_stream
from sprat_shared.wire.tensors import Array, ArrayTensors, TensorSource, TensorSpec, TensorTable, digest_of
from sprat_shared.wire.update import Flag, encode_update

LIMITS = Limits(max_tensors=1000, max_bytes=8 << 20)
HANGS_AFTER_S = 60.0
Runs = list[tuple[Family, list[int]]]


@dataclass(frozen=True)
class Sample:
    """A good file, taken apart."""

    name: str
    base: ArrayTensors | None
    base_digest: str
    expected: str
    flags: int
    log2_lanes: int
    runs: Runs
    frames: tuple[bytes, ...]

    def data(self) -> bytes:
        """Put it together again; whatever was changed is said in well-formed integers and frames."""
        encoder = IntegerEncoder(self.log2_lanes)
        for family, values in self.runs:
            encoder.put(family, values)
        stream = encoder.finish()
        base = bytes(8) if self.flags & Flag.FULL else bytes.fromhex(self.base_digest[7:23])
        result = bytes.fromhex(self.expected[7:]) if self.flags & Flag.RESULT else b""
        length = bytes((len(stream) >> 7 * i & 127) | 128 for i in range(3)) + bytes([len(stream) >> 21 & 127])
        return (
            b"SPR\x01" + bytes([self.flags, self.log2_lanes]) + base + result + length + stream + b"".join(self.frames)
        )


class Measured:
    """A sink that keeps nothing but the size that a file declares."""

    declared_bytes = 0

    def begin(self, table: TensorTable) -> None:
        self.declared_bytes = table.nbytes

    def keep(self, index: int, sha256: bytes) -> None:
        """Nothing is kept."""

    def put(self, index: int, array: Array, sha256: bytes) -> None:
        """Nothing is kept."""


# ------------------------------------------------------------------------------------------------ good files


@contextmanager
def taken_apart() -> Iterator[Runs]:
    """Note every run of integers that is written meanwhile."""
    runs: Runs = []

    class Noting(IntegerEncoder):
        def put(self, family: Family, values: Any) -> None:
            runs.append((family, np.asarray(values, np.int64).reshape(-1).tolist()))
            super().put(family, values)

    whole, records_stream.IntegerEncoder = records_stream.IntegerEncoder, Noting  # type: ignore[misc]
    try:
        yield runs
    finally:
        records_stream.IntegerEncoder = whole  # type: ignore[misc]


def sample(name: str, base: ArrayTensors | None, table: TensorTable, records: list[Record], *, alone: bool) -> Sample:
    """Encode records against a base; a full update has none."""
    start: TensorSource = zeros_of(table) if base is None else under(base, table)
    new = {}
    for index, spec in enumerate(table):
        mine = [record for record in records if record.index == index]
        new[spec.name] = (spec.dtype, rebuild_tensor(start.read(index), spec, mine))
    expected = digest_of(ArrayTensors(new, table.aliases))
    base_digest = "sha256:" + "0" * 64 if base is None else digest_of(base)
    with taken_apart() as runs:
        data = encode_update(
            table,
            records,
            base_digest=None if base is None else base_digest,
            base_table=None if base is None else base.table,
            result_digest=expected if alone else None,
        )
    frames = [bytes(record.frame) for record in records if isinstance(record, Exact)]
    lengths = [values[0] for family, values in runs if family is Family.LENGTH and values[0]]
    if len(lengths) > len(frames):  # the table's own
        at = len(data) - sum(lengths)
        frames.insert(0, data[at : at + lengths[0]])
    return Sample(name, base, base_digest, expected, data[4], data[5], runs, tuple(frames))


def zeros_of(table: TensorTable) -> ArrayTensors:
    return ArrayTensors({s.name: (s.dtype, np.zeros(s.shape, s.storage)) for s in table}, table.aliases)


def small_base() -> ArrayTensors:
    """Every edge of shapes and dtypes; tied weights."""
    rng = np.random.default_rng(1)
    return ArrayTensors(
        {
            "bias": ("F32", rng.standard_normal(7, dtype=np.float32)),
            "column": ("F32", rng.standard_normal((9, 1), dtype=np.float32)),
            "conv": ("F16", rng.standard_normal((3, 4, 2, 2)).astype(np.float16)),
            "empty": ("F32", np.zeros((0, 4), np.float32)),
            "flags": ("BOOL", np.array([True, False, True])),
            "half": ("BF16", rng.integers(0x3C00, 0x4000, (5, 4)).astype(np.uint16)),
            "counter": ("I64", np.array(3)),
            "embedding": ("F32", rng.standard_normal((40, 6), dtype=np.float32)),
            "row": ("F32", rng.standard_normal((1, 12), dtype=np.float32)),
            "scalar": ("F32", np.array(0.5, np.float32)),
            "wide": ("F64", rng.standard_normal((2, 3))),
        },
        {"head": "embedding"},
    )


def every_record(base: TensorSource, rng: np.random.Generator) -> list[Record]:
    """Every kind, on every shape that it fits; several of one tensor; exact ones last."""
    table, q = base.table, rng.integers(-9, 10, 20).astype(np.int16)
    at = {spec.name: index for index, spec in enumerate(table)}

    def ints(kind: type[np.signedinteger], most: int, *shape: int) -> Any:
        return rng.integers(-most, most + 1, shape).astype(kind)

    records: list[Record] = [
        Dense(at["bias"], 90, ints(np.int32, 2**24 - 1, 7)),
        Subspace(at["bias"], 95, 3, q),
        LowRank(at["column"], 100, ints(np.int8, 127, 9, 1), ints(np.int8, 127, 1, 1)),
        ThreeFactors(at["conv"], 80, ints(np.int8, 9, 3, 2), ints(np.int16, 99, 2, 3, 4), Drawn(3)),
        ThreeFactors(at["conv"], 70, Identity(), ints(np.int16, 32767, 3, 2, 4), ints(np.int8, 127, 2, 4)),
        LowRank(at["half"], 90, ints(np.int8, 127, 5, 4), ints(np.int8, 127, 4, 4)),
        Rows(at["embedding"], 99, np.array([0, 7, 8, 39], np.uint32), ints(np.int32, 99, 4, 6)),
        Subspace(at["embedding"], 90, 3, q),
        ThreeFactors(at["row"], 80, Drawn(3), ints(np.int16, 9, 1, 1, 1), Drawn(3)),
        Dense(at["scalar"], 100, ints(np.int32, 9, 1)),
        Dense(at["empty"], 100, ints(np.int32, 9, 0)),
    ]
    for name, coded in (("bias", True), ("counter", False), ("flags", False), ("wide", True)):
        index = at[name]
        spec: TensorSpec = table[index]
        old = rebuild_tensor(base.read(index), spec, [record for record in records if record.index == index])
        new = ~old if spec.dtype == "BOOL" else (old + 1).astype(spec.storage)
        frame = encode_exact(spec, old, new) if coded else encode_planes(spec, old, new)
        records.append(Coded(index, frame) if coded else Lossless(index, frame))
    return sorted(records, key=lambda record: record.index)


def samples() -> list[Sample]:
    """Good files: all kinds of record; with and without result, base, patch; one lane and many."""
    rng, base = np.random.default_rng(2), small_base()
    records = every_record(base, rng)
    grown_table = TensorTable(
        [
            *(s for s in base.table if s.name not in {"embedding", "flags", "row"}),
            TensorSpec("embedding", "F32", (44, 6)),
            TensorSpec("new", "F16", (3, 5)),
        ],
        {"head": "embedding", "again": "new"},
    )
    names = {spec.name: index for index, spec in enumerate(grown_table)}
    new_rows: list[Record] = [
        Rows(
            names["embedding"], 99, np.arange(40, 44, dtype=np.uint32), rng.integers(-99, 99, (4, 6)).astype(np.int32)
        ),
        Dense(names["new"], 99, rng.integers(-9, 9, 15).astype(np.int32)),
    ]
    large = ArrayTensors({"a": ("F32", np.ones((400, 300), np.float32)), "b": ("F16", np.ones((300, 200), np.float16))})
    q = rng.integers(-2, 3, 1000).astype(np.int16)
    factors = [rng.integers(-3, 4, shape).astype(np.int8) for shape in ((400, 80), (80, 300))]
    many: list[Record] = [
        LowRank(0, 99, *factors),
        Dense(0, 90, (rng.random(120_000) < 0.01).astype(np.int32)),
        Subspace(1, 80, 9, q),
        ThreeFactors(1, 70, Drawn(9), rng.integers(-9, 9, (60, 50, 1)).astype(np.int16), Drawn(9)),
    ]
    return [
        sample("every kind", base, base.table, records, alone=False),
        sample("every kind, alone", base, base.table, records, alone=True),
        sample("full", None, base.table, every_record(zeros_of(base.table), rng), alone=True),
        sample("patched", base, grown_table, sorted(new_rows, key=lambda r: r.index), alone=False),
        sample("many lanes", large, large.table, many, alone=False),
    ]


# ------------------------------------------------------------------------------------------------ mutations


def mutated(good: Sample, chance: random.Random) -> bytes:
    """Return a file with a few changes: of its bytes, of what they say, or of both."""
    if chance.random() < 0.3:
        return damaged(good.data(), chance)
    changed = good
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        changed = chance.choice((other_value, other_value, other_value, other_runs, other_frame, other_header))(
            changed, chance
        )
    data = changed.data()
    return damaged(data, chance) if chance.random() < 0.1 else data


def damaged(whole: bytes, chance: random.Random) -> bytes:
    """Bytes replaced, inserted, removed, repeated; the end cut off."""
    data = bytearray(whole)
    for _ in range(chance.choice((1, 1, 2, 5))):
        at = chance.randrange(len(data) + 1) if chance.random() < 0.5 else min(len(data), chance.randrange(14, 60))
        match chance.randrange(5):
            case 0:
                data[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                data[at:at] = chance.randbytes(chance.randrange(9))
            case 2:
                del data[at : at + chance.randrange(9)]
            case 3:
                start = chance.randrange(len(data) + 1)
                data[at:at] = data[start : start + chance.randrange(40)]
            case _:
                data = data[:at] if chance.random() < 0.3 else data
    return bytes(data)


def other_value(good: Sample, chance: random.Random) -> Sample:
    """Another integer, often of those that say what follows."""
    runs = list(good.runs)
    short = [i for i, (_, values) in enumerate(runs) if len(values) == 1]
    held = [i for i, (_, values) in enumerate(runs) if values]
    at = chance.choice(short if chance.random() < 0.7 else held)
    family, values = runs[at]
    values = list(values)
    most = (1 << family.bits) - 1
    place = chance.randrange(len(values))
    new = chance.choice(
        (0, 1, most, values[place] + 1, values[place] - 1, 2 * values[place], chance.randrange(most + 1))
    )
    new = -new if family.signed and chance.random() < 0.5 else new
    values[place] = max(-most if family.signed else 0, min(most, new))
    runs[at] = family, values
    return replace(good, runs=runs)


def other_runs(good: Sample, chance: random.Random) -> Sample:
    """A run left out, repeated, swapped, cut or made longer."""
    runs = list(good.runs)
    at = chance.randrange(len(runs))
    family, values = runs[at]
    match chance.randrange(5):
        case 0:
            del runs[at]
        case 1:
            runs.insert(chance.randrange(len(runs)), (family, values))
        case 2:
            other = chance.randrange(len(runs))
            runs[at], runs[other] = runs[other], runs[at]
        case 3:
            runs[at] = family, values[: chance.randrange(len(values) + 1)]
        case _:
            runs[at] = family, values + values[: chance.randrange(len(values) + 1)]
    return replace(good, runs=runs)


def other_frame(good: Sample, chance: random.Random) -> Sample:
    """A frame damaged, swapped, or one that unpacks to other sizes; its length is said rightly half the time."""
    if not good.frames:
        return good
    frames, at = list(good.frames), chance.randrange(len(good.frames))
    match chance.randrange(5):
        case 0:
            frames[at] = damaged(frames[at], chance) if frames[at] else b""
        case 1:
            frames[at] = frames[chance.randrange(len(frames))]
        case 2:
            frames[at] = BOMB
        case 3:
            frames[at] = zstandard.ZstdCompressor(level=1).compress(chance.randbytes(chance.randrange(400)))
        case _:
            frames[at] = zstandard.ZstdCompressor(level=1, write_content_size=False).compress(bytes(1000))
    runs, lengths = list(good.runs), [i for i, (f, v) in enumerate(good.runs) if f is Family.LENGTH and v and v[0]]
    if chance.random() < 0.5 and at < len(lengths):
        runs[lengths[at]] = Family.LENGTH, [len(frames[at])]
    return replace(good, frames=tuple(frames), runs=runs)


BOMB = zstandard.ZstdCompressor(level=1).compress(bytes(1 << 28))


def other_header(good: Sample, chance: random.Random) -> Sample:
    """Other flags or lanes."""
    if chance.random() < 0.5:
        return replace(good, flags=good.flags ^ chance.choice((1, 2, 4, 8)))
    few = (0, 1, 4) if good.log2_lanes == 0 else (6,)  # many integers on few lanes take seconds
    return replace(good, log2_lanes=chance.choice((*few, 9, 12)))


# ------------------------------------------------------------------------------------------------ applying them


class Hangs(Exception):
    """A file took too long."""


def attempt(good: Sample, data: bytes, sink: Measured) -> str:
    """Apply a file; return the code of its refusal, or "valid"."""
    try:
        apply_update(data, good.base, sink, expected=good.expected, base_digest=good.base_digest, limits=LIMITS)
    except UpdateRejected as refused:
        return refused.code
    return "valid"


def status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def hang(number: int, frame: FrameType | None) -> None:
    raise Hangs(f"signal {number} in {frame}")


def main(count: int, seed: int) -> dict[str, Any]:
    """Return what came of `count` mutated files."""
    chance, goods = random.Random(seed), samples()
    outcomes, unexpected, above, slowest = Counter[str](), list[str](), 0, 0.0
    for good in goods:
        assert attempt(good, good.data(), Measured()) == "valid", good.name
    shares = [4, 2, 3, 3, 0.3]
    signal.signal(signal.SIGALRM, hang)
    for number in range(count):
        (good,) = chance.choices(goods, shares)
        data, sink = mutated(good, chance), Measured()
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before, begin = status("VmRSS:"), time.perf_counter()
        signal.setitimer(signal.ITIMER_REAL, HANGS_AFTER_S)
        try:
            outcomes[attempt(good, data, sink)] += 1
        except Exception as bad:  # noqa: BLE001  # that is what is looked for
            unexpected.append(f"{number} of {good.name}: {bad!r}: {data[:2000].hex()}")
        signal.setitimer(signal.ITIMER_REAL, 0)
        declared = max(sink.declared_bytes, good.base.table.nbytes if good.base is not None else 0)
        above = max(above, status("VmHWM:") - before - declared)
        slowest = max(slowest, time.perf_counter() - begin)
    return {
        "files": count,
        "outcomes": dict(outcomes.most_common()),
        "unexpected": unexpected,
        "bytes_above_declared": above,
        "slowest_s": round(slowest, 3),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(int(sys.argv[1]), int(sys.argv[2])), indent=1) + "\n")
