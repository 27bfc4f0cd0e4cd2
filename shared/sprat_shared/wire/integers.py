"""The integer coder: adaptive binary models under interleaved range asymmetric numeral systems.

docs/wire-format.md, section 5, is normative. J. Duda, "Asymmetric numeral systems" (arXiv 1311.2540); lanes after
F. Giesen, "Interleaved entropy coders" (arXiv 1402.3392). An integer becomes bits: is its bit length above 0, above 1,
… (one adaptive model each), its sign (even odds), the bit after the leading one (one model for each length), the
rest (even odds). L lanes code L integers at once and share the models, which learn after each bit of all lanes: with
one lane plain Python is quick enough, with hundreds numpy decodes millions of integers a second.
"""

from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sprat_shared.errors import MalformedUpdate

Ints = npt.NDArray[np.int64]
Lanes = npt.NDArray[np.int16]
Words = npt.NDArray[np.uint16]
MAX_LOG2_LANES: Final = 12
_START: Final = 1 << 16  # every lane's state before the first and after the last bit; states stay below 2**32
_ODDS_BITS: Final = 12
_ODDS: Final = 1 << _ODDS_BITS
_EVEN: Final = _ODDS // 2
_EARLY: Final = "the integers end early; the file is cut or corrupted"
_KEPT: Final = 64  # what a model's counts are cut down to when a new tensor begins: a hint, not a verdict


class Family(Enum):
    """Integers that share models: (position in the format, longest magnitude in bits, whether there are signs)."""

    COUNT = (0, 32, False)
    GAP = (1, 32, False)
    KIND = (2, 4, False)
    RANK = (3, 24, False)
    SCALE = (4, 9, True)
    LENGTH = (5, 40, False)
    U = (6, 7, True)
    V = (7, 7, True)
    DENSE = (8, 24, True)
    DIMENSION = (9, 48, True)
    ROW = (10, 32, False)
    SIDE = (11, 2, False)
    SEED = (12, 32, False)
    CORE = (13, 15, True)

    def __init__(self, position: int, bits: int, signed: bool) -> None:  # noqa: FBT001  # filled by the rows above
        self.position, self.bits, self.signed = position, bits, signed


class _Models:
    """Adaptive odds of every bit: two counts each, in halves, starting at one half each (Krichevsky-Trofimov).

    Row `level` of a family asks "is the bit length above `level`?"; row `bits + length` is the bit after the first.
    """

    def __init__(self, lanes: int) -> None:
        self.limit = 1024 + 16 * lanes
        self.counts = {family: [[1, 1] for _ in range(2 * family.bits + 1)] for family in Family}

    def odds(self, family: Family, row: int) -> int:
        """Return the probability of a 0, in 1/4096, from 1 to 4095."""
        zeros, ones = self.counts[family][row]
        return 1 + (_ODDS - 2) * zeros // (zeros + ones)

    def learn(self, family: Family, row: int, zeros: int, ones: int) -> None:
        """Count bits that were seen; halve while there are too many, so that the odds follow what changes."""
        count = self.counts[family][row]
        count[0] += 2 * zeros
        count[1] += 2 * ones
        _halve(count, self.limit)

    def forget(self, family: Family) -> None:
        """Keep a hint of what was learned: a new tensor begins."""
        for count in self.counts[family]:
            _halve(count, _KEPT)


def _halve(count: list[int], limit: int) -> None:
    while count[0] + count[1] > limit:
        count[0], count[1] = (count[0] + 1) // 2, (count[1] + 1) // 2


class IntegerEncoder:
    """Collects integers and writes them as one stream of 16-bit words.

    Args:
        log2_lanes: 0 to 12; the decoder must be told the same.
    """

    def __init__(self, log2_lanes: int) -> None:
        self._lanes = 1 << log2_lanes
        self._models = _Models(self._lanes)
        self._steps: list[tuple[Lanes, Words, Words]] = []  # many lanes: which, start and width of each bit's range
        self._ranges: list[tuple[int, int]] = []  # one lane: start and width of the range of each bit

    def put(self, family: Family, values: npt.NDArray[Any] | Sequence[int]) -> None:
        """Append integers; they must lie within the family's range."""
        values = np.asarray(values, dtype=np.int64).reshape(-1)
        magnitudes = np.abs(values)
        if magnitudes.size and (int(magnitudes.max()) >> family.bits or (not family.signed and values.min() < 0)):
            raise ValueError(f"{family.name} holds {family.bits} bits, got values {values.min()} to {values.max()}")
        self._models.forget(family)
        if self._lanes == 1:
            self._put_scalar(family, values.tolist())
            return
        for at in range(0, values.size, self._lanes):
            self._put_step(family, values[at : at + self._lanes], magnitudes[at : at + self._lanes])

    def _put_scalar(self, family: Family, values: list[int]) -> None:  # as the decoder's: plain integers are faster
        models, ranges = self._models, self._ranges

        def bit(one: int, odds: int = _EVEN) -> None:
            ranges.append((odds, _ODDS - odds) if one else (0, odds))

        def learned(row: int, one: int) -> None:
            bit(one, models.odds(family, row))
            models.learn(family, row, 1 - one, one)

        for value in values:
            magnitude = abs(value)
            length = magnitude.bit_length()
            for level in range(length):
                learned(level, 1)
            if length < family.bits:
                learned(length, 0)
            if length and family.signed:
                bit(int(value < 0))
            if length > 1:
                learned(family.bits + length, magnitude >> (length - 2) & 1)
            for place in range(length - 3, -1, -1):
                bit(magnitude >> place & 1)

    def _put_step(self, family: Family, values: Ints, magnitudes: Ints) -> None:
        lengths = np.frexp(magnitudes.astype(np.float64))[1]  # bit length, exact below 2**53
        lanes = np.arange(values.size, dtype=np.int16)
        for level in range(family.bits):
            above = lengths[lanes] > level
            self._bit(lanes, above, family, level)
            lanes = lanes[above]
            if not lanes.size:
                break
        if family.signed:
            lanes = np.flatnonzero(lengths).astype(np.int16)
            self._bit(lanes, values[lanes] < 0)
        for place in range(int(lengths.max(initial=0)) - 2, -1, -1):
            first = np.flatnonzero(lengths == place + 2).astype(np.int16)
            self._bit(first, magnitudes[first] >> place & 1 == 1, family, family.bits + place + 2)
            others = np.flatnonzero(lengths > place + 2).astype(np.int16)
            self._bit(others, magnitudes[others] >> place & 1 == 1)

    def _bit(self, lanes: Lanes, bits: npt.NDArray[np.bool_], family: Family | None = None, row: int = 0) -> None:
        """Keep one bit of each of these lanes, under one model, or at even odds where no family is given."""
        if not lanes.size:
            return
        odds = _EVEN
        if family is not None:
            odds = self._models.odds(family, row)
            ones = int(np.count_nonzero(bits))
            self._models.learn(family, row, lanes.size - ones, ones)
        start, width = np.where(bits, odds, 0), np.where(bits, _ODDS - odds, odds)
        self._steps.append((lanes, start.astype(np.uint16), width.astype(np.uint16)))

    def finish(self) -> bytes:
        """Return the stream: each lane's first state (two words, low first), then the words in reading order."""
        if self._lanes == 1:
            return self._finish_scalar()
        states = np.full(self._lanes, _START, dtype=np.int64)
        words: list[Words] = []
        for lanes, start, narrow in reversed(self._steps):
            state, width = states[lanes], narrow.astype(np.int64)
            full = state >= width << (32 - _ODDS_BITS)
            words.append((state[full] & 0xFFFF)[::-1].astype(np.uint16))
            state[full] >>= 16
            states[lanes] = (state // width << _ODDS_BITS) + state % width + start
        body = np.concatenate([np.empty(0, np.uint16), *words])[::-1]
        head = np.stack([states & 0xFFFF, states >> 16], axis=1).reshape(-1)
        return np.concatenate([head.astype(np.uint16), body]).astype("<u2").tobytes()

    def _finish_scalar(self) -> bytes:
        state, words = _START, []
        for start, width in reversed(self._ranges):
            if state >= width << (32 - _ODDS_BITS):
                words.append(state & 0xFFFF)
                state >>= 16
            state = (state // width << _ODDS_BITS) + state % width + start
        return np.array([state & 0xFFFF, state >> 16, *reversed(words)], dtype="<u2").tobytes()


class IntegerDecoder:
    """Reads integers back in the order in which they were put.

    Args:
        stream: what `IntegerEncoder.finish` returned.
        log2_lanes: as it was encoded.

    Raises:
        MalformedUpdate: from every method, when the stream ends early or cannot have come from an encoder.
    """

    def __init__(self, stream: memoryview, log2_lanes: int) -> None:
        self._lanes = 1 << log2_lanes
        self._models = _Models(self._lanes)
        if len(stream) < 4 * self._lanes or len(stream) % 2:
            raise MalformedUpdate(f"{len(stream)} bytes cannot hold the integers of {self._lanes} lanes")
        words: Words = np.frombuffer(stream, dtype="<u2").astype(
            np.uint16
        )  # a copy: `stream` may lie at an odd address
        head = words[: 2 * self._lanes].astype(np.uint32).reshape(-1, 2)
        self._states = head[:, 0] | head[:, 1] << 16
        if (self._states < _START).any():
            raise MalformedUpdate("a lane starts in a state that no encoder leaves")
        self._words, self._at = words, 2 * self._lanes

    @property
    def bytes_read(self) -> int:
        """Return how many bytes of the stream were read so far, the lanes' first states included."""
        return 2 * self._at

    def take_one(self, family: Family) -> int:
        """Return one integer."""
        return int(self.take(family, 1)[0])

    def take(self, family: Family, count: int) -> Ints:
        """Return the next `count` integers, int64 (count,)."""
        return np.concatenate([np.empty(0, np.int64), *self.chunks(family, count)])

    def chunks(self, family: Family, count: int) -> Iterator[Ints]:
        """Yield the next `count` integers in pieces, so that a caller can narrow them as they come."""
        self._models.forget(family)
        if self._lanes == 1:
            for at in range(0, count, 1 << 16):
                yield self._take_scalar(family, min(1 << 16, count - at))
        else:
            for at in range(0, count, self._lanes):
                yield self._take_step(family, min(self._lanes, count - at))

    def finish(self) -> None:
        """Check that everything was read and every lane is back where encoding began."""
        if self._at != len(self._words) or (self._states != _START).any():
            raise MalformedUpdate("the integers do not end where the file says; it is cut or corrupted")

    def _take_scalar(self, family: Family, count: int) -> Ints:  # one lane: plain integers are faster than numpy
        values = np.empty(count, dtype=np.int64)
        state, words, at = int(self._states[0]), self._words.data, self._at
        counts, limit = self._models.counts[family], self._models.limit
        available, bits, signed = len(words), family.bits, family.signed

        def next_bit(odds: int) -> bool:
            nonlocal state, at
            low = state & (_ODDS - 1)
            one = low >= odds
            state = (_ODDS - odds) * (state >> _ODDS_BITS) + low - odds if one else odds * (state >> _ODDS_BITS) + low
            if state < _START:
                if at >= available:
                    raise MalformedUpdate(_EARLY)
                state = state << 16 | words[at]
                at += 1
            return one

        def learned(row: int) -> bool:  # `_Models.odds` and `learn`, without their calls
            pair = counts[row]
            zeros, ones = pair
            one = next_bit(1 + (_ODDS - 2) * zeros // (zeros + ones))
            pair[one] += 2
            if zeros + ones + 2 > limit:
                _halve(pair, limit)
            return one

        for i in range(count):
            length = 0
            while length < bits and learned(length):
                length += 1
            if not length:
                values[i] = 0
                continue
            negative = signed and next_bit(_EVEN)
            magnitude = 2 | learned(bits + length) if length > 1 else 1
            for _ in range(length - 2):
                magnitude = magnitude << 1 | next_bit(_EVEN)
            values[i] = -magnitude if negative else magnitude
        self._states[0], self._at = state, at
        return values

    def _take_step(self, family: Family, count: int) -> Ints:
        counts = self._models.counts[family]
        lengths = np.zeros(count, dtype=np.int64)
        lanes = np.arange(count)
        for level in range(family.bits):
            lanes = lanes[self._bits(lanes, counts[level], lanes.size)]
            if not lanes.size:
                break
            lengths[lanes] = level + 1
        values = (lengths > 0).astype(np.int64)
        signs = np.ones(count, dtype=np.int64)
        if family.signed and (lanes := values.nonzero()[0]).size:
            signs[lanes] -= 2 * self._bits(lanes, counts[0], 0)
        for place in range(int(lengths.max(initial=0)) - 2, -1, -1):
            first = (lengths == place + 2).nonzero()[0]
            others = (lengths > place + 2).nonzero()[0]
            lanes = np.concatenate([first, others])  # one step after the other: the words are read in this order
            values[lanes] = values[lanes] << 1 | self._bits(lanes, counts[family.bits + place + 2], first.size)
        return values * signs

    def _bits(self, lanes: Ints, pair: list[int], learned: int) -> npt.NDArray[np.bool_]:
        """Return one bit of each of these lanes: the first `learned` are under this model, the others at even odds."""
        zeros, ones = pair
        odds: int | npt.NDArray[np.uint32] = 1 + (_ODDS - 2) * zeros // (zeros + ones) if learned else _EVEN
        if 0 < learned < lanes.size:
            odds, given = np.full(lanes.size, _EVEN, np.uint32), odds
            odds[:learned] = given
        state = self._states[lanes]
        low = state & (_ODDS - 1)
        bits: npt.NDArray[np.bool_] = low >= odds
        share = state >> _ODDS_BITS
        share *= odds
        state = np.where(bits, state - share - odds, share + low)  # (4096 - odds) * (x >> 12) + low - odds for a 1
        empty = (state < _START).nonzero()[0]
        if empty.size:
            if self._at + empty.size > len(self._words):
                raise MalformedUpdate(_EARLY)
            state[empty] = state[empty] << 16 | self._words[self._at : self._at + empty.size]
            self._at += empty.size
        self._states[lanes] = state
        if learned:
            seen = int(np.count_nonzero(bits[:learned]))
            pair[0] += 2 * (learned - seen)
            pair[1] += 2 * seen
            _halve(pair, self._models.limit)
        return bits
