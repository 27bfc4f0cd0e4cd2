"""Writes golden.json: updates made by `encoder.py`, results computed in rational numbers by `exact.py`.

    python tests/vectors/make_golden.py
The file is frozen: a change of it is a change of the format.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any

import exact
from coded import EXPONENT_BITS, coded_frame
from decoder import DTYPES, WIDTHS, Release, Tensor, in_order
from encoder import (
    Dense,
    Lossless,
    LowRank,
    Patch,
    Rows,
    Subspace,
    Sum,
    ThreeFactors,
    encode,
    planes_frame,
)
from sums import DRAWN, IDENTITY, SENT

GOLDEN = Path(__file__).with_name("golden.json")
Record = Sum | Lossless


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


def vector(
    name: str, why: str, base: Release, records: list[Record], held: Sequence[bytes] = (), **how: Any
) -> dict[str, Any]:
    result = how.pop("result", None) or result_of(base, records)
    update = encode(None if "table" in how else base, records, result=result.digest(), **how)
    return {
        "name": name,
        "why": why,
        "base": None if "table" in how else as_json(base),
        **({"held": [data.hex() for data in held]} if held else {}),
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


def shared_with_another_model() -> dict[str, Any]:
    trunk = Tensor("trunk.w", "F32", (3, 2), words("F32", *pseudo(6, 0x3E000000, 0x40000000, 3)))
    near = Tensor("near.w", "F32", (3, 2), words("F32", *pseudo(6, 0x3E000000, 0x40000000, 5)))
    codes = Tensor("codes", "I8", (5,), bytes(pseudo(5, 0, 255, 7)))
    other = words("F32", *pseudo(6, 0x3E000000, 0x40000000, 9))  # as long as the trunk, of another digest
    base = Release([Tensor("head.w", "F32", (2,), words("F32", 0x3F800000, 0x80000000))], [])
    added = in_order(Release([trunk, near, codes], []))
    residual: list[Sum] = [LowRank(2, 120, 1, [1, -2, 3], [4, -5])]
    records: list[Record] = [
        Lossless(0, sha256(codes.data).digest()[:8], kind=7),
        Lossless(2, sha256(near.data).digest()[:8], kind=7),
        *residual,
        Lossless(3, sha256(trunk.data).digest()[:8], kind=7),
    ]
    corrected = replace(near, data=exact.rebuild(near, residual))
    result = in_order(Release([*base.tensors, trunk, corrected, codes], []))
    return vector(
        "held", "tensors of another model, one of them corrected", base, records,
        held=[trunk.data, near.data, codes.data, other], patch=Patch(added=added), result=result,
    )  # fmt: skip


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


def coded() -> dict[str, Any]:
    base, result, records = Release([], []), Release([], []), list[Record]()
    for index, dtype in enumerate(sorted(EXPONENT_BITS)):
        width = WIDTHS[dtype]
        size = 1100 if dtype == "BF16" else 9  # two lanes, the second one shorter
        old = bytes(pseudo(size * width, 0, 255, index))
        near = [(v + k % 7 - 3) % 256 for k, v in enumerate(old[::width])]
        new = bytearray(old)
        new[::width] = bytes(near)  # the lowest bytes move a little, some not at all
        new[-2 * width :] = bytes(pseudo(2 * width, 0, 255, 50 + index))
        base.tensors.append(Tensor(dtype, dtype, (size,), old))
        result.tensors.append(Tensor(dtype, dtype, (size,), bytes(new)))
        records.append(Lossless(index, coded_frame(dtype, old, width, bytes(new)), kind=6))
    return vector("coded, every float", "each dtype; two lanes", base, records, result=result)


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


def grown_head() -> dict[str, Any]:
    classes, more, features = 3, 2, 4
    bias, weight = (words("F32", *pseudo(count, 0x3C000000, 0x3F000000, 20 + count)) for count in (3, 12))
    old = [
        Tensor("bias", "F32", (classes,), bias),
        Tensor("body", "F16", (2, 2), words("F16", 0x3C00, 0x8000, 1, 0xC000)),
        Tensor("weight", "F32", (classes, features), weight),
    ]
    base = Release(old, [("tied", "body")])
    begun = [replace(tensor) for tensor in old]
    for at, width in ((0, 1), (2, features)):
        begun[at].shape = (classes + more, *begun[at].shape[1:])
        begun[at].data += bytes(4 * more * width)
    records: list[Record] = [
        Dense(0, 100, [0, 1, 0, -5, 6]),
        LowRank(2, 110, 2, signed(pseudo(10, 0, 9, 23), 24), signed(pseudo(8, 0, 9, 25), 26)),
    ]
    patch = Patch(reshaped=[(0, [more]), (2, [more, 0])])
    result = result_of(Release(begun, base.aliases), records)
    return vector("a grown head", "new rows begin as zeros", base, records, patch=patch, result=result)


def another_table() -> dict[str, Any]:
    bits = pseudo(36, 0x3C000000, 0x3F000000, 31)
    base = Release(
        [
            Tensor("a", "F32", (2, 3), words("F32", *bits[:6])),
            Tensor("b", "F32", (2, 3, 2), words("F32", *bits[6:18])),
            Tensor("c", "I16", (3,), words("I16", 1, 2, 0xFFFD)),
            Tensor("d", "F32", (2, 2), words("F32", *bits[18:22])),
            Tensor("e", "F32", (4,), words("F32", *bits[22:26])),
        ],
        [("also a", "a"), ("also d", "d"), ("also e", "e")],
    )
    b = [bits[6 + 6 * i + 2 * j] if j < 3 else 0 for i in range(2) for j in range(4)] + [0] * 4
    result = Release(
        [
            Tensor("a", "F32", (2, 3), words("F32", *bits[:6])),
            Tensor("aa", "F32", (2,), words("F32", 0, 0)),
            Tensor("b", "F32", (3, 4, 1), words("F32", *b)),
            Tensor("c", "F32", (3,), words("F32", 0, 0, 0)),
            Tensor("d", "F32", (4,), words("F32", 0, 0, 0, 0)),
            Tensor("e", "F32", (0,), b""),
        ],
        [("also a", "b"), ("also e", "e"), ("b again", "b")],
    )
    added = Release([replace(result.tensors[at]) for at in (1, 3, 4)], [result.aliases[0], result.aliases[2]])
    patch = Patch(removed=[2, 3, 5, 6], reshaped=[(1, [1, 1, -1]), (4, [-4])], added=added)
    records: list[Record] = [Dense(1, 192, [3, -4])]
    result.tensors[1].data = words("F32", 0x40400000, 0xC0800000)
    return vector(
        "another table", "added, removed, larger, smaller; another dtype or number of dimensions begins anew; aliases",
        base, records, patch=patch, result=result,
    )  # fmt: skip


def floats(count: int, seed: int, dtype: str = "F32") -> bytes:
    low, high = {"F32": (0x3C000000, 0x3F000000), "F16": (0x2000, 0x3C00), "BF16": (0x3C00, 0x3F00)}[dtype]
    return words(dtype, *pseudo(count, low, high, seed))


def some_rows() -> dict[str, Any]:
    shapes = {"a": (5, 4), "b": (9, 1), "c": (2, 2, 1, 3), "d": (3, 7)}
    base = Release([Tensor(n, "F32", s, floats(prod(s), len(n))) for n, s in shapes.items()], [])
    base.tensors[3] = Tensor("d", "F16", (3, 7), floats(21, 5, "F16"))
    base.tensors[0].data = words("F32", *[0x80000000] * 20)
    records: list[Record] = [
        Rows(0, 130, [1, 4], [1, -2, 3, 0, 2**24 - 1, 1 - 2**24, 0, 77]),
        Rows(1, 120, [0, 3, 4, 8], [5, -6, 7, -8]),
        Rows(2, 200, [1], [1, 0, -1, 100, 0, 0]),
        Dense(3, 100, pseudo(21, -3, 3, 4)),
        Rows(3, 101, [0, 2], pseudo(14, -200, 200, 6)),
    ]
    return vector("rows", "first, last and several rows; rows left out become positive zeros too", base, records)


def between_sides() -> dict[str, Any]:
    shapes = {"a": (6, 5), "b": (4, 3, 2, 2), "c": (3, 1, 5), "d": (2, 8), "e": (3, 3)}
    base = Release([Tensor(n, "F32", s, floats(prod(s), ord(n))) for n, s in shapes.items()], [])
    base.tensors[3] = Tensor("d", "BF16", (2, 8), floats(16, 9, "BF16"))
    large = signed(pseudo(9, 30000, 32767, 1), 2)
    records: list[Record] = [
        ThreeFactors(0, 90, (2, 3), pseudo(6, -99, 99, 1), pseudo(12, -127, 127, 2), pseudo(15, -127, 127, 3)),
        ThreeFactors(0, 100, (5, 4), pseudo(20, -9, 9, 4), sides=(DRAWN, DRAWN), seed=12345),
        ThreeFactors(1, 80, (2, 2), pseudo(16, -50, 50, 5), u=pseudo(8, -9, 9, 6), sides=(SENT, DRAWN), seed=12345),
        ThreeFactors(1, 85, (4, 2), pseudo(32, -50, 50, 7), v=pseudo(6, -9, 9, 8), sides=(IDENTITY, SENT)),
        ThreeFactors(2, 120, (2, 1), pseudo(10, -3, 3, 9), sides=(DRAWN, IDENTITY), seed=12345),
        ThreeFactors(3, 110, (1, 2), [300, -7], sides=(DRAWN, DRAWN), seed=12345),
        ThreeFactors(4, 10, (3, 3), large, signed(pseudo(9, 100, 127, 3), 4), signed(pseudo(9, 100, 127, 5), 6)),
        ThreeFactors(4, 9, (3, 3), [32767] * 9, [127] * 9, [127] * 9),
    ]
    return vector("three factors", "sides sent, drawn and left out; matrices and convolutions; largest integers", base,
                  records)  # fmt: skip


def in_a_subspace() -> dict[str, Any]:
    base = Release([Tensor("a", "F32", (5, 7), floats(35, 1)), Tensor("b", "F16", (9,), floats(9, 2, "F16")),
                    Tensor("c", "BF16", (), floats(1, 3, "BF16")), Tensor("d", "F32", (0, 2)),
                    Tensor("e", "F32", (2, 70), floats(140, 4))], [])  # fmt: skip
    q = [0, 1, -1, 2, 32767, -32767, 5]
    records: list[Record] = [Subspace(i, scale, 2**32 - 1, q) for i, scale in enumerate((90, 100, 95, 128, 255))]
    records.append(ThreeFactors(4, 100, (1, 1), [9], sides=(DRAWN, DRAWN), seed=2**32 - 1))
    return vector("subspace", "coefficients of a file in tensors of every float and shape", base, records)


def every_sum(log2_lanes: int) -> dict[str, Any]:
    base = Release([Tensor("a", "F32", (6, 3, 3), floats(54, 1)), Tensor("b", "F32", (11, 4), floats(44, 2))], [])
    records: list[Record] = [
        LowRank(0, 120, 1, pseudo(6, -9, 9, 3), pseudo(9, -9, 9, 4)),
        ThreeFactors(0, 100, (2, 2), pseudo(12, -9, 9, 5), pseudo(12, -9, 9, 6), sides=(SENT, DRAWN), seed=3),
        Subspace(0, 110, 3, pseudo(20, -9, 9, 7)),
        Dense(0, 100, pseudo(54, -9, 9, 8)),
        Rows(1, 101, [2, 3, 10], pseudo(12, -99, 99, 9)),
        Subspace(1, 99, 3, pseudo(20, -9, 9, 7)),
    ]
    return vector(f"every kind of sum, {1 << log2_lanes} lanes", "seed, coefficients and scales go from one record "
                  "to the next", base, records, log2_lanes=log2_lanes)  # fmt: skip


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
        halves("F16", float16), halves("BF16", bfloat16), each_dtype(), coded(), then_lossless(), edge_shapes(), full(),
        *(lanes(log2_lanes) for log2_lanes in (0, 1, 4)),
        some_rows(), between_sides(), in_a_subspace(), every_sum(0), every_sum(3),
        grown_head(), another_table(), shared_with_another_model(),
    ]  # fmt: skip


def main() -> None:
    text = ",\n".join(json.dumps(entry, separators=(",", ":"), ensure_ascii=True) for entry in vectors())
    GOLDEN.write_text(f"[\n{text}\n]\n", encoding="ascii")


if __name__ == "__main__":
    main()
