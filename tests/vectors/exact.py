"""Section 7 of docs/wire-format.md in rational numbers: no floating-point unit takes part."""

from collections.abc import Sequence
from fractions import Fraction
from math import prod

from decoder import OCTAVE, WIDTHS, Tensor
from encoder import Dense, LowRank, Rows, Subspace, Sum, ThreeFactors
from sums import DRAWN, FOR_U, FOR_V, drawn_sides, drawn_values

FORMS = {"F32": (23, 8), "F16": (10, 5), "BF16": (7, 8)}  # bits of fraction and exponent


def to_fraction(bits: int, dtype: str) -> Fraction:
    """The value of finite bits; minus zero is zero."""
    fraction_bits, exponent_bits = FORMS[dtype]
    bias = (1 << exponent_bits - 1) - 1
    fraction, exponent = bits & (1 << fraction_bits) - 1, bits >> fraction_bits & (1 << exponent_bits) - 1
    negative = bits >> fraction_bits + exponent_bits & 1
    if exponent:
        fraction |= 1 << fraction_bits
    return (-1) ** negative * Fraction(fraction) * Fraction(2) ** (max(exponent, 1) - bias - fraction_bits)


def to_bits(value: Fraction, dtype: str) -> int:
    """The bits of a value, rounded to nearest even; zero is positive."""
    fraction_bits, exponent_bits = FORMS[dtype]
    bias = (1 << exponent_bits - 1) - 1
    size = abs(value)
    if not size:
        return 0
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= size < Fraction(2) ** exponent
    exponent = max(exponent, 1 - bias)
    units = round(size / Fraction(2) ** (exponent - fraction_bits))  # half to even
    normal = units >> fraction_bits
    bits = (exponent + bias - 1 << fraction_bits) + units if normal else units  # a carry moves into the exponent
    bits = min(bits, (1 << exponent_bits) - 1 << fraction_bits)  # infinity
    return bits | (value < 0) << fraction_bits + exponent_bits


def rounded(value: Fraction, dtype: str = "F32") -> Fraction:
    return to_fraction(to_bits(value, dtype), dtype)


def step_of(scale: int) -> Fraction:
    return to_fraction(OCTAVE[scale % 8], "F32") * Fraction(2) ** (scale // 8 - 24)


def products(tensor: Tensor, record: Sum) -> list[int]:
    """The integers of one record, row-major."""
    match record:
        case Dense():
            return record.q
        case LowRank():
            m, n, r = tensor.shape[0], prod(tensor.shape[1:]), record.rank
            return [
                sum(record.u[i * r + k] * record.v[k * n + j] for k in range(r)) for i in range(m) for j in range(n)
            ]
        case Rows():
            n, out = prod(tensor.shape[1:]), [0] * tensor.size
            for k, row in enumerate(record.rows):
                out[row * n : (row + 1) * n] = record.q[k * n : (k + 1) * n]
            return out
        case Subspace():
            return drawn_values(record.seed, record.index, tensor.size, record.q)
        case ThreeFactors():
            return _three(tensor, record)


def _three(tensor: Tensor, record: ThreeFactors) -> list[int]:
    (m, n), s, (r, t), core = tensor.shape[:2], prod(tensor.shape[2:]), record.ranks, record.core
    u, v = record.u, record.v
    if record.sides[0]:
        u = drawn_sides(record.seed, record.index, FOR_U, m, r) if record.sides[0] == DRAWN else _identity(m)
    if record.sides[1]:
        v = drawn_sides(record.seed, record.index, FOR_V, t, n) if record.sides[1] == DRAWN else _identity(n)
    return [
        sum(u[o * r + a] * core[(a * t + b) * s + x] * v[b * n + i] for a in range(r) for b in range(t))
        for o in range(m)
        for i in range(n)
        for x in range(s)
    ]


def _identity(size: int) -> list[int]:
    return [int(i == j) for i in range(size) for j in range(size)]


def rebuild(tensor: Tensor, records: Sequence[Sum]) -> bytes:
    """The raw bytes of a tensor with finite values after records that add."""
    width, dtype = WIDTHS[tensor.dtype], tensor.dtype
    words = [int.from_bytes(tensor.data[at : at + width], "little") for at in range(0, len(tensor.data), width)]
    values = [to_fraction(bits, dtype) for bits in words]
    for record in records:
        step = step_of(record.scale)
        added = [rounded(rounded(Fraction(p)) * step) for p in products(tensor, record)]
        values = [rounded(w + t) for w, t in zip(values, added, strict=True)]
    return b"".join(to_bits(value, dtype).to_bytes(width, "little") for value in values)
