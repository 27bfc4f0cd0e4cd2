"""Records that add exact integers times a step, written from docs/wire-format.md, sections 4 and 4.1, alone."""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from integer_stream import IntegerStream, need

LOW_RANK, DENSE, ROWS, THREE_FACTORS, SUBSPACE = 0, 1, 3, 4, 5
SENT, DRAWN, IDENTITY = 0, 1, 2
FOR_U, FOR_V, FOR_SUBSPACE = 0, 1, 2
Integers = np.ndarray[Any, np.dtype[np.int64]]


def mix(z: int) -> int:
    """Section 4.1."""
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def number(key: int, i: int) -> int:
    """Section 4.1: S(key, i)."""
    return mix((key + (i + 1) * 0x9E3779B97F4A7C15) % 2**64)


def drawn_sides(seed: int, index: int, use: int, rows: int, columns: int) -> list[int]:
    """Section 4.1: U or V of kind 4, row-major."""
    key = number(seed, 4 * index + use)
    words = [number(key, word) for word in range(rows * columns // 64 + 1)]
    return [-1 if words[e // 64] >> e % 64 & 1 else 1 for e in range(rows * columns)]


def drawn_values(seed: int, index: int, size: int, coefficients: Sequence[int]) -> list[int]:
    """Section 4.1: a tensor's values in the subspace."""
    key = number(seed, 4 * index + FOR_SUBSPACE)
    values = []
    for i in range(size):
        w = number(key, i)
        coefficient = coefficients[(w >> 32) * len(coefficients) >> 32]
        values.append(-coefficient if w % 2 else coefficient)
    return values


def three_factors(u: Integers, core: Integers, v: Integers) -> Integers:
    """Section 7: sums over a and b, at (o, i, x)."""
    inner = np.tensordot(core, v, axes=([1], [0]))  # (a, x, i)
    out: Integers = np.tensordot(u, inner, axes=([1], [0])).transpose(0, 2, 1)
    return out


class SumReader:
    """Takes such records from the integer stream, with what they share in a file."""

    def __init__(self, stream: IntegerStream) -> None:
        self.stream, self.scale = stream, 128
        self.seed: int | None = None
        self.coefficients: list[int] | None = None

    def take(self, kind: int, index: int, shape: Sequence[int]) -> Integers:
        """The exact integers of a record, flat; `scale` is its scale afterwards."""
        size = prod(shape)
        if kind in (LOW_RANK, ROWS, THREE_FACTORS):
            need(len(shape) >= 2, "a tensor without a matrix view")
        if kind in (ROWS, THREE_FACTORS):
            need(size > 0, "a tensor without values")
        if kind == LOW_RANK:
            values = self.low_rank(shape[0], prod(shape[1:]))
        elif kind == ROWS:
            values = self.rows(shape[0], prod(shape[1:]))
        elif kind == THREE_FACTORS:
            values = self.three_factors(index, shape[0], shape[1], prod(shape[2:]))
        elif kind == SUBSPACE:
            values = self.subspace(index, size)
        else:
            self.take_scale()
            values = self.array("DENSE", size)
        return values.reshape(-1)

    def array(self, family: str, *shape: int) -> Integers:
        return np.array(self.stream.run(family, prod(shape)), np.int64).reshape(shape)

    def take_scale(self) -> None:
        self.scale += self.stream.one("SCALE")
        need(0 <= self.scale <= 255, "a scale outside 0 to 255")

    def take_seed(self) -> int:
        if self.seed is None:
            self.seed = self.stream.one("SEED")
        return self.seed

    def low_rank(self, m: int, n: int) -> Integers:
        rank = self.stream.one("RANK")
        need(1 <= rank <= min(m, n), "an impossible rank")
        self.take_scale()
        u = self.array("U", m, rank)
        return u @ self.array("V", rank, n)

    def rows(self, m: int, n: int) -> Integers:
        count = self.stream.one("COUNT")
        need(count >= 1 and count * (n + 1) <= m * n and m <= 2**32, "no rows, or too many")
        self.take_scale()
        out, row = np.zeros((m, n), np.int64), -1
        named = []
        for gap in self.stream.run("ROW", count):
            row += gap + 1
            named.append(row)
        need(row < m, "a row beyond the last")
        out[named] = self.array("DENSE", count, n)
        return out

    def three_factors(self, index: int, m: int, n: int, s: int) -> Integers:
        left, right = self.stream.one("SIDE"), self.stream.one("SIDE")
        need(left <= IDENTITY and right <= IDENTITY, "an unknown side")
        seed = self.take_seed() if DRAWN in (left, right) else 0
        r = m if left == IDENTITY else self.stream.one("RANK")
        t = n if right == IDENTITY else self.stream.one("RANK")
        need(left == IDENTITY or 1 <= r <= min(m, n * s), "an impossible rank of U")
        need(right == IDENTITY or 1 <= t <= min(n, m * s), "an impossible rank of V")
        counts = [{SENT: 127 * rank, DRAWN: rank, IDENTITY: 1}[side] for side, rank in ((left, r), (right, t))]
        need(prod(counts) <= 2**38, "sums beyond 2^53")
        self.take_scale()
        u = self.side("U", left, (seed, index, FOR_U), m, r)
        core = self.array("CORE", r, t, s)
        return three_factors(u, core, self.side("V", right, (seed, index, FOR_V), t, n))

    def side(self, family: str, side: int, draw: tuple[int, int, int], rows: int, columns: int) -> Integers:
        if side == SENT:
            return self.array(family, rows, columns)
        if side == DRAWN:
            return np.array(drawn_sides(*draw, rows, columns), np.int64).reshape(rows, columns)
        return np.eye(rows, dtype=np.int64)

    def subspace(self, index: int, size: int) -> Integers:
        seed = self.take_seed()
        if self.coefficients is None:
            count = self.stream.one("COUNT")
            need(1 <= count <= 2**20, "no coefficients, or too many")
            self.coefficients = self.stream.run("CORE", count)
        self.take_scale()
        return np.array(drawn_values(seed, index, size, self.coefficients), np.int64)
