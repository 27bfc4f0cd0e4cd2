"""Writes golden.json: updates made by `encoder.py`, results computed in rational numbers by `exact.py`.

    python tests/vectors/make_golden.py
The file is frozen: a change of it is a change of the format.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import exact
from decoder import DTYPES, WIDTHS, Release, Tensor
from encoder import Dense, Lossless, LowRank, encode, planes_frame

GOLDEN = Path(__file__).with_name("golden.json")
Record = LowRank | Dense | Lossless


def words(dtype: str, *bits: int) -> bytes:
    return b"".join(value.to_bytes(WIDTHS[dtype], "little") for value in bits)


def pseudo(count: int, low: int, high: int, seed: int) -> list[int]:
    """Integers of a linear congruential generator (Knuth's MMIX), so that nobody's library decides."""
    out = []
    for _ in range(count):
        seed = (seed * 6364136223846793005 + 1442695040888963407) % 2**64
        out.append(low + (seed >> 33) % (high - low + 1))
    return out


def signed(values: list[int], seed: int) -> list[int]:
    return [-v if s else v for v, s in zip(values, pseudo(len(values), 0, 1, seed), strict=True)]


def result_of(base: Release, records: list[Record]) -> Release:
    """The release that records of kinds 0 and 1 give; lossless ones are for tensors of their own."""
    tensors = [replace(tensor) for tensor in base.tensors]
    for index, tensor in enumerate(tensors):
        sums = [r for r in records if r.index == index and not isinstance(r, Lossless)]
        if sums:
            tensor.data = exact.rebuild(tensor, sums)
    return Release(tensors, list(base.aliases))


def vector(name: str, why: str, base: Release, records: list[Record], **how: Any) -> dict[str, Any]:
    result = how.pop("result", None) or result_of(base, records)
    update = encode(None if "table" in how else base, records, result=result.digest(), **how)
    return {
        "name": name,
        "why": why,
        "base": None if "table" in how else as_json(base),
        "update": update.hex(),
        "result": as_json(result),
        "weights": "sha256:" + result.digest().hex(),
    }


def as_json(release: Release) -> dict[str, Any]:
    tensors = [[tensor.name, tensor.dtype, list(tensor.shape), tensor.data.hex()] for tensor in release.tensors]
    return {"tensors": tensors, "aliases": [list(pair) for pair in release.aliases]}


def from_json(value: dict[str, Any]) -> Release:
    tensors = [Tensor(name, dtype, tuple(shape), bytes.fromhex(data)) for name, dtype, shape, data in value["tensors"]]
    return Release(tensors, [(alias, name) for alias, name in value["aliases"]])


def one(dtype: str, *bits: int) -> Release:
    return Release([Tensor("w", dtype, (len(bits),), words(dtype, *bits))], [])


def zeros_and_subnormals() -> dict[str, Any]:
    bits = (0x80000000, 0, 1, 0x80000001, 0x007FFFFF, 0x807FFFFF, 0x00800000, 0x80800000, 0x33800000, 0xB3800000)
    base = one("F32", *bits)
    return vector("zeros and subnormals", "-0.0 becomes 0.0 in a named tensor, subnormal numbers stay",
                  base, [Dense(0, 0, [0, 0, 0, 0, 0, 0, 0, 0, -1, 1])])  # fmt: skip


def minus_zero_unnamed() -> dict[str, Any]:
    base = Release(
        [Tensor("a", "F32", (2,), words("F32", 0x80000000, 1)), Tensor("b", "F32", (1,), words("F32", 0))], []
    )
    return vector("minus zero unnamed", "a tensor without a record keeps its bits", base, [Dense(1, 191, [5])])


def ties() -> dict[str, Any]:
    starts = (0x3F800000, 0x3F800001, 0x3F7FFFFF, 0xBF800000, 0xBF800001, 0x4B7FFFFF, 0x7F7FFFFF)
    base = one("F32", *(bits for bits in starts for _ in range(4)))
    return vector("ties", "halves of a last place go to even", base, [Dense(0, 0, [1, -1, 3, 5] * len(starts))])


def big_integers() -> dict[str, Any]:
    q = [2**24 - 1, 1 - 2**24, 2**23 + 1, 1, -1, 0, 12345678, -7654321]
    records: list[Record] = [Dense(0, scale, q) for scale in (0, 5, 100, 191, 192, 193, 254, 255)]
    return vector(
        "largest integers",
        "every octave, 24 bits, eight records for one tensor",
        one("F32", *[0x3DCCCCCD] * 8),
        records,
    )


def factors(rank: int, m: int, n: int, seed: int) -> LowRank:
    u, v = (signed(pseudo(count, 100, 127, seed + i), seed + i + 9) for i, count in enumerate((m * rank, rank * n)))
    return LowRank(0, 96, rank, u, v)


def near_the_bound() -> dict[str, Any]:
    m, n, rank = 34, 33, 33
    base = Release([Tensor("w", "F32", (m, n), words("F32", *pseudo(m * n, 0x3C000000, 0x3F000000, 3)))], [])
    high = LowRank(0, 40, rank, [127] * (m * rank), [127 - k % 28 for k in range(rank * n)])
    return vector(
        "factors of 100 to 127", "large products, mixed signs and all of one sign", base, [factors(rank, m, n, 1), high]
    )


def halves(dtype: str, starts: tuple[int, ...]) -> dict[str, Any]:
    scales = (0, 96, 128, 170)
    base = one(dtype, *(bits for bits in starts for _ in range(5)))
    records: list[Record] = [Dense(0, scale, [1, -1, 2, -3, 0] * len(starts)) for scale in scales]
    return vector(f"{dtype} rounding", "to float32, all records, then once to nearest even", base, records)


def each_dtype() -> dict[str, Any]:
    base = Release([], [])
    result = Release([], [])
    for number, dtype in enumerate(DTYPES):
        width = WIDTHS[dtype]
        old, new = (bytes(pseudo(6 * width, 0, 1 if dtype == "BOOL" else 255, seed + number)) for seed in (5, 50))
        name = f"{dtype.lower()}"
        base.tensors.append(Tensor(name, dtype, (2, 3), old))
        result.tensors.append(Tensor(name, dtype, (2, 3), new))
    for release in (base, result):
        release.tensors.sort(key=lambda tensor: tensor.name.encode())
    records: list[Record] = [
        Lossless(i, planes_frame(tensor, result.tensors[i].data)) for i, tensor in enumerate(base.tensors)
    ]
    return vector("lossless, every dtype", "NaN and infinities too", base, records, result=result)


def then_lossless() -> dict[str, Any]:
    tensor = Tensor("w", "BF16", (3, 2), words("BF16", 0x3F80, 0xBF80, 0x0001, 0x8000, 0x4000, 0x7F7F))
    base = Release([tensor], [])
    sums: list[LowRank | Dense] = [LowRank(0, 140, 1, [1, -2, 3], [4, -5]), Dense(0, 130, [9, 8, -7, 6, 0, 1])]
    between = replace(tensor, data=exact.rebuild(tensor, sums))
    new = words("BF16", 0x3F81, 0x7FC0, 0x8000, 0x0000, 0xFF80, 0x1234)
    result = Release([replace(tensor, data=new)], [])
    records: list[Record] = [*sums, Lossless(0, planes_frame(between, new))]
    return vector("low rank, dense, lossless", "three records of one tensor in order", base, records, result=result)


def edge_shapes() -> dict[str, Any]:
    shapes: dict[str, tuple[int, ...]] = {
        "column": (5, 1), "empty": (0, 4), "four": (2, 3, 1, 2), "row": (1, 6), "scalar": (), "vector": (3,),
    }  # fmt: skip
    tensors = []
    for seed, (name, shape) in enumerate(shapes.items()):
        tensor = Tensor(name, "F32", shape)
        tensor.data = words("F32", *pseudo(tensor.size, 0x3E000000, 0x40000000, seed))
        tensors.append(tensor)
    records: list[Record] = [
        LowRank(0, 120, 1, [1, -2, 0, 4, 127], [-127]),
        Dense(1, 7, []),
        LowRank(2, 130, 2, [1, -1, 2, 0], signed(pseudo(12, 0, 30, 8), 9)),
        LowRank(3, 110, 1, [3], [1, 2, 3, -4, 5, 0]),
        Dense(4, 200, [-77]),
        Dense(5, 90, [1000, 0, -1]),
    ]
    return vector(
        "edge shapes", "1 x n, n x 1, no dimension, no values, four dimensions", Release(tensors, []), records
    )


def full() -> dict[str, Any]:
    result = Release(
        [
            Tensor("a.weight", "F32", (2, 2), words("F32", 0x3F800000, 0x80000000, 1, 0xC0000000)),
            Tensor("counter", "I64", (), (300).to_bytes(8, "little")),
            Tensor("z\N{LATIN SMALL LETTER U WITH DIAERESIS}ro", "U8", (3,), bytes(3)),
        ],
        [("head.weight", "a.weight")],
    )
    zero = [replace(tensor, data=bytes(tensor.nbytes)) for tensor in result.tensors]
    records: list[Record] = [Lossless(i, planes_frame(zero[i], result.tensors[i].data)) for i in (0, 1)]
    return vector(
        "full, with an alias", "no base; what no record names is zero", result, records, table=result, result=result
    )


def lanes(log2_lanes: int) -> dict[str, Any]:
    count = 3 * (1 << log2_lanes) + 5
    base = Release(
        [Tensor("m", "F32", (7, 9), words("F32", *pseudo(63, 0x3C000000, 0x3F000000, 2))),
         Tensor("v", "F16", (count,), words("F16", *pseudo(count, 0x2000, 0x3C00, 4)))], []
    )  # fmt: skip
    q = [0 if k % 3 else value for k, value in enumerate(pseudo(count, -9, 9, 6))]
    low = LowRank(0, 125, 2, signed(pseudo(14, 0, 127, 11), 12), signed(pseudo(18, 0, 5, 13), 14))
    return vector(
        f"{1 << log2_lanes} lanes",
        "groups of lanes, the last one shorter",
        base,
        [low, Dense(1, 150, q)],
        log2_lanes=log2_lanes,
    )


def vectors() -> list[dict[str, Any]]:
    """All vectors, in the order of the file."""
    float16 = (0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x3C00, 0x3C01, 0xBC01, 0x4000, 0x5640)
    bfloat16 = (0x0000, 0x8000, 0x0001, 0x807F, 0x0080, 0x3F80, 0x3F81, 0xBF81, 0x4000, 0x42C8)
    return [
        vector("nothing changes", "an update without records", one("F32", 0x80000000, 0x3F800000), []),
        zeros_and_subnormals(), minus_zero_unnamed(), ties(), big_integers(), near_the_bound(),
        halves("F16", float16), halves("BF16", bfloat16), each_dtype(), then_lossless(), edge_shapes(), full(),
        *(lanes(log2_lanes) for log2_lanes in (0, 1, 4)),
    ]  # fmt: skip


def main() -> None:
    text = ",\n".join(json.dumps(entry, separators=(",", ":"), ensure_ascii=True) for entry in vectors())
    GOLDEN.write_text(f"[\n{text}\n]\n", encoding="ascii")


if __name__ == "__main__":
    main()
