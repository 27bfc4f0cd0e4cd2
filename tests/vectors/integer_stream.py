"""The integer stream of update files, written from docs/wire-format.md, section 5, alone; plain Python."""

import struct
from collections.abc import Iterator, Sequence

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
    "ROW": (32, False),
    "SIDE": (2, False),
    "SEED": (32, False),
    "CORE": (15, True),
    "DIMENSION": (48, True),
}


class Refused(Exception):
    """The text says: refuse."""


def need(condition: bool, why: str) -> None:  # noqa: FBT001 - reads as a sentence at each call
    """Refuse unless the condition holds."""
    if not condition:
        raise Refused(why)


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
