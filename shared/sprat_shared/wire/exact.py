"""Frames of coded exact records: how far each float moved, with the exponent it had as context (docs/wire-format.md).

A fine-tuned weight moves by about as much as its neighbours, whatever its own size. In units of its last place that is
a long way for a small weight and a short one for a large weight: the exponent that the receiver holds already says how
long the distance will be. After J. Ning et al., "FM-Delta: Lossless Compression for Storing Massive Fine-tuned
Foundation Models" (NeurIPS 2024), who code the bit length of the distance and store the rest; here its odds depend on
the exponent, and a weight that leaves for another octave is told by its new sign and exponent.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from sprat_shared.errors import MalformedUpdate
from sprat_shared.wire.tensors import Array, TensorSpec

EXPONENT_BITS: Final[Mapping[str, int]] = {"F32": 8, "F16": 5, "BF16": 8, "F64": 11, "F8_E4M3": 4, "F8_E5M2": 5}
_PART: Final = 1 << 20  # values coded together: what is kept beside the tensors is bounded by it
_CHUNK: Final = 1 << 16  # values put together at a time
_VALUES_PER_LANE: Final = 512
_CONTEXTS: Final = 32  # octaves below the part's largest value that have models of their own
_JUMP_CONTEXTS: Final = 8  # the same for new exponents
_START: Final = 1 << 16  # as in the integer stream: a lane's state before the first and after the last bit
_ODDS_BITS: Final = 12
_ODDS: Final = 1 << _ODDS_BITS
_KEPT: Final = 64
_COUNT: Final = struct.Struct("<I")
Ints = npt.NDArray[np.int64]
Counts = npt.NDArray[np.int32]
Bits = npt.NDArray[np.bool_]
Words = npt.NDArray[np.uint16]
Lanes = slice | Ints


@dataclass(frozen=True, slots=True)
class _Form:
    """How a float is laid out: bits of the whole and of its exponent."""

    width: int
    exponent: int

    @property
    def fraction(self) -> int:
        return self.width - 1 - self.exponent

    @property
    def jump(self) -> int:
        """The class after those of the distances: a new sign and exponent, told outright."""
        return self.fraction + 3

    @property
    def tree(self) -> int:
        """Bits of a class."""
        return self.jump.bit_length()

    def raw_bits(self, classes: Ints) -> Ints:
        """Return how many bits follow as they are: a fraction, or what is left of a distance after two bits."""
        return np.where(classes == self.jump, self.fraction, np.maximum(classes - 2, 0))


def encode_exact(spec: TensorSpec, old: Array, new: Array) -> bytes:
    """Return the frame that turns `old` into `new`, both in storage dtype and of the spec's shape.

    The dtype is one of `EXPONENT_BITS`. Time: about a second for a million values. Memory: some 150 MB beside both.
    """
    form, before, after = _form(spec), _bits(spec, old), _bits(spec, new)
    models = _models(form)
    parts = range(0, spec.size, _PART)
    return b"".join(_Writer(models, form, before[at : at + _PART], after[at : at + _PART]).part() for at in parts)


def decode_exact(spec: TensorSpec, old: Array, frame: bytes | memoryview) -> Array:
    """Return the new tensor, storage dtype, spec's shape. Memory: the result, and up to 40 MB.

    Raises:
        MalformedUpdate: the frame is cut, corrupted, or followed by further bytes.
    """
    form, before = _form(spec), _bits(spec, old)
    models, rest = _models(form), memoryview(frame)
    out = np.empty(spec.shape, spec.storage)
    after, subject = _bits(spec, out), f"tensor {spec.name!r}: its frame"
    for at in range(0, spec.size, _PART):
        reader = _Reader(models, form, before[at : at + _PART], rest, subject)
        reader.part(after[at : at + _PART])
        rest = reader.rest
    if rest:
        raise MalformedUpdate(f"{subject} has {len(rest)} bytes after its last value")
    return out


def _form(spec: TensorSpec) -> _Form:
    return _Form(8 * spec.itemsize, EXPONENT_BITS[spec.dtype])


def _bits(spec: TensorSpec, array: Array) -> Array:
    return array.reshape(-1).view(f"<u{spec.itemsize}")


def _models(form: _Form) -> dict[str, Counts]:
    """Return tables of two counts for each model (section 5), by what is asked."""
    rows = {
        "changed": 2 * _CONTEXTS,
        "class": _CONTEXTS << form.tree,
        "smaller": _CONTEXTS << form.tree,
        "second": 1 << form.tree,
        "flipped": _CONTEXTS,
        "exponent": _JUMP_CONTEXTS << form.exponent,
    }
    return {name: np.ones((count, 2), np.int32) for name, count in rows.items()}


def _halve(table: Counts, limit: int) -> None:
    while (over := (table[:, 0] + table[:, 1] > limit).nonzero()[0]).size:
        table[over] = (table[over] + 1) >> 1


def _odds(counts: Counts) -> npt.NDArray[np.uint32]:
    zeros = counts[:, 0]
    return (1 + (_ODDS - 2) * zeros // (zeros + counts[:, 1])).view(np.uint32)


class _Part:
    """Up to 2**20 values, and the questions about them in their order; reader and writer share everything but a bit.

    Lane j has the values from j * stripe on; step i takes value i of every lane's stripe. Arrays are (stripe, lanes).
    """

    def __init__(self, models: dict[str, Counts], form: _Form, before: Array) -> None:
        self.models, self.form, self.size = models, form, before.size
        self.lanes = 1 << max(0, (before.size // _VALUES_PER_LANE).bit_length() - 1)
        self.stripe = -(-before.size // self.lanes)
        self.limit = 1024 + 16 * self.lanes
        for table in models.values():
            _halve(table, _KEPT)
        self.before = self.striped(before)
        exponents = before >> form.fraction & (1 << form.exponent) - 1
        self.contexts = self.striped(np.minimum(exponents.max() - exponents, _CONTEXTS - 1).astype(np.uint8))
        shape = (self.stripe, self.lanes)
        self.symbols = {name: np.zeros(shape, np.uint16 if name == "exponent" else np.uint8) for name in models}

    def striped(self, values: Array) -> Array:
        """Return (stripe, lanes) of the part's values, zeros where a lane has none."""
        padded = np.zeros(self.lanes * self.stripe, values.dtype)
        padded[: values.size] = values
        return np.ascontiguousarray(padded.reshape(self.lanes, self.stripe).T)

    def bits(self, odds: npt.NDArray[np.uint32], lanes: Lanes, wanted: tuple[str, int, int]) -> Bits:
        """Return one bit of each of these lanes; `wanted` says which symbol, step and place it is of."""
        raise NotImplementedError

    def ask(self, name: str, step: int, lanes: Lanes, rows: Ints, place: int = 0) -> Bits:
        """Return one bit of each of these lanes, under models that learn it."""
        table = self.models[name]
        odds = _odds(table)[rows] if len(table) < rows.size else _odds(table[rows])  # whichever is less work
        bits = self.bits(odds, lanes, (name, step, place))
        table += (np.bincount(2 * rows + bits, minlength=table.size) << 1).reshape(table.shape)
        _halve(table, self.limit)
        return bits

    def tree(self, name: str, step: int, lanes: Ints, contexts: Ints, depth: int) -> Ints:
        """Return one integer of each of these lanes, its highest bit first, and keep it."""
        node = np.ones(lanes.size, np.int64)
        for place in range(depth - 1, -1, -1):
            node = node << 1 | self.ask(name, step, lanes, (contexts << depth) + node, place)
        node -= 1 << depth
        self.symbols[name][step, lanes] = node
        return node

    def flag(self, name: str, step: int, lanes: Ints, rows: Ints) -> None:
        """Ask and keep one bit of each of these lanes."""
        if lanes.size:
            self.symbols[name][step, lanes] = self.ask(name, step, lanes, rows)

    def walk(self) -> None:
        """Ask everything, step by step."""
        form, before = self.form, np.ones(self.lanes, np.bool_)
        for step in range(self.stripe):
            active = slice(0, -(-(self.size - step) // self.stripe))
            contexts = self.contexts[step, active].astype(np.int64)
            changed = self.ask("changed", step, active, 2 * contexts + before[active])
            self.symbols["changed"][step, active] = before[active] = changed
            lanes = changed.nonzero()[0]
            if not lanes.size:
                continue
            contexts = contexts[lanes]
            classes = self.tree("class", step, lanes, contexts, form.tree)
            jumps = classes == form.jump
            near = (~jumps).nonzero()[0]
            self.flag("smaller", step, lanes[near], (contexts[near] << form.tree) + classes[near])
            far = near[classes[near] > 1]
            self.flag("second", step, lanes[far], classes[far])
            if jumps.any():
                self.flag("flipped", step, lanes[jumps], contexts[jumps])
                jumping = np.minimum(contexts[jumps], _JUMP_CONTEXTS - 1)
                self.tree("exponent", step, lanes[jumps], jumping, form.exponent)


class _Writer(_Part):
    """Codes what lies between `before` and `after`."""

    def __init__(self, models: dict[str, Counts], form: _Form, before: Array, after: Array) -> None:
        super().__init__(models, form, before)
        self.after = self.striped(after)
        self._steps: list[tuple[slice | npt.NDArray[np.int16], Words]] = []  # lanes; odds, and the bit above them
        top = 1 << form.width - 1
        old, new = (values & (top - 1) for values in (self.before, self.after))
        smaller = new < old
        self._distance = np.where(smaller, old - new, new - old)
        classes = np.frexp(self._distance.astype(np.float64))[1]  # bit length; rounding up makes it one too long
        classes -= (classes > 0) & (self._distance >> np.maximum(classes - 1, 0).astype(old.dtype) == 0)
        flipped = (self.before ^ self.after) >= top
        classes[flipped | (classes >= form.jump)] = form.jump
        self.symbols |= {
            "changed": (self.before != self.after).astype(np.uint8),
            "class": classes.astype(np.uint8),
            "smaller": smaller.astype(np.uint8),
            "second": (self._distance >> np.maximum(classes - 2, 0).astype(self.before.dtype) & 1).astype(np.uint8),
            "flipped": flipped.astype(np.uint8),
            "exponent": (new >> form.fraction).astype(np.uint16),
        }

    def part(self) -> bytes:
        """Return the part of the frame."""
        self.walk()
        words = self._words()
        return _COUNT.pack(words.size) + words.astype("<u2").tobytes() + self._raw()

    def bits(self, odds: npt.NDArray[np.uint32], lanes: Lanes, wanted: tuple[str, int, int]) -> Bits:
        """Keep a bit of each lane for the coder, which goes backward."""
        name, step, place = wanted
        bits: Bits = (self.symbols[name][step, lanes] >> place & 1) == 1
        which = lanes if isinstance(lanes, slice) else lanes.astype(np.int16)
        self._steps.append((which, (odds | bits.astype(np.uint32) << _ODDS_BITS).astype(np.uint16)))
        return bits

    def _words(self) -> Words:
        states = np.full(self.lanes, _START, np.uint32)
        words: list[Words] = []
        for lanes, kept in reversed(self._steps):
            odds = (kept & (_ODDS - 1)).astype(np.uint32)
            bits = kept >> _ODDS_BITS == 1
            start, width = np.where(bits, odds, 0).astype(np.uint32), np.where(bits, _ODDS - odds, odds)
            state = states[lanes]
            full = state >> 20 >= width
            words.append(state[full].astype(np.uint16)[::-1])
            state = np.where(full, state >> 16, state)
            whole = state // width
            states[lanes] = (whole << _ODDS_BITS) + (state - whole * width) + start
        head = states.view(np.uint16) if states.dtype.byteorder != ">" else states.byteswap().view(np.uint16)
        return np.concatenate([head, *[part[::-1] for part in reversed(words)]])

    def _raw(self) -> bytes:
        """Return the bits that nothing predicts, the lowest first."""
        classes = self.symbols["class"].reshape(-1).astype(np.int64)
        jump = classes == self.form.jump
        count = self.form.raw_bits(classes)
        values = np.where(jump, self.after.reshape(-1), self._distance.reshape(-1)).astype(np.uint64)
        values &= (np.uint64(1) << count.astype(np.uint64)) - np.uint64(1)
        ends = np.cumsum(count)
        at = ends - count
        total = int(ends[-1])
        out = np.zeros(total // 64 + 2, np.uint64)
        shift = (at & 63).astype(np.uint64)
        np.bitwise_or.at(out, at >> 6, values << shift)
        np.bitwise_or.at(out, (at >> 6) + 1, values >> (np.uint64(63) - shift) >> np.uint64(1))
        return out.astype("<u8").tobytes()[: -(-total // 8)]


class _Reader(_Part):
    """Finds out what follows from `before` and the part's bytes, the first of `data`.

    Raises:
        MalformedUpdate: at once or later, where the bytes cannot have come from a writer.
    """

    def __init__(self, models: dict[str, Counts], form: _Form, before: Array, data: memoryview, subject: str) -> None:
        self._subject = subject
        words = _COUNT.unpack_from(data)[0] if len(data) >= _COUNT.size else 0
        self.rest = data[_COUNT.size + 2 * words :]
        least = 2 << max(0, (before.size // _VALUES_PER_LANE).bit_length() - 1)
        if words < least or len(data) < _COUNT.size + 2 * words:
            raise MalformedUpdate(f"{subject} is cut: {len(data)} bytes, {words} words")
        super().__init__(models, form, before)
        self._words: Words = np.frombuffer(data, "<u2", words, _COUNT.size).astype(np.uint16)
        head = self._words[: 2 * self.lanes].astype(np.uint32).reshape(-1, 2)
        self._states = head[:, 0] | head[:, 1] << 16
        self._at = 2 * self.lanes
        if (self._states < _START).any():
            raise MalformedUpdate(f"{subject} has a lane that starts in a state no encoder leaves")

    def part(self, out: Array) -> None:
        """Find the part's values, and leave what follows it in `rest`."""
        self.walk()
        classes = self.symbols["class"]
        if self._at != self._words.size or (self._states != _START).any():
            raise MalformedUpdate(f"{self._subject} does not end where it says; it is cut or corrupted")
        if (classes > self.form.jump).any() or (self.symbols["changed"] & (classes == 0)).any():
            raise MalformedUpdate(f"{self._subject} has a distance of a class that there is not")
        after, at = np.empty_like(self.before), 0
        rows = max(1, _CHUNK // self.lanes)
        for top in range(0, self.stripe, rows):
            at = self._put_together(after, slice(top, top + rows), at)
        taken = -(-at // 8)
        if at % 8 and self.rest[taken - 1] >> at % 8:
            raise MalformedUpdate(f"{self._subject} has bits after its last value")
        self.rest = self.rest[taken:]
        out[:] = after.T.reshape(-1)[: self.size]

    def bits(self, odds: npt.NDArray[np.uint32], lanes: Lanes, wanted: tuple[str, int, int]) -> Bits:
        """Decode one bit of each of these lanes."""
        del wanted
        state = self._states[lanes]
        low = state & (_ODDS - 1)
        bits: Bits = low >= odds
        share = (state >> _ODDS_BITS) * odds
        state = np.where(bits, state - share - odds, share + low)
        empty = (state < _START).nonzero()[0]
        if empty.size:
            if self._at + empty.size > self._words.size:
                raise MalformedUpdate(f"{self._subject} ends early; it is cut or corrupted")
            state[empty] = state[empty] << 16 | self._words[self._at : self._at + empty.size]
            self._at += empty.size
        self._states[lanes] = state
        return bits

    def _put_together(self, after: Array, down: slice, at: int) -> int:
        """Fill some rows of the new values from symbols and raw bits; return where the next raw bit is."""
        form, old = self.form, self.before[down]
        classes, second = (self.symbols[name][down].astype(np.int64) for name in ("class", "second"))
        raw, at = self._raw(form.raw_bits(classes), at)
        unit = old.dtype.type(1)
        top = unit << old.dtype.type(form.width - 1)
        place = np.maximum(classes - 2, 0).astype(np.uint64)
        distance = np.where(classes > 1, (np.uint64(2) | second.astype(np.uint64)) << place | raw, classes > 0)
        distance = distance.astype(old.dtype)
        size = old & (top - unit)
        size = np.where(self.symbols["smaller"][down] == 1, size - distance, size + distance) & (top - unit)
        exponent = self.symbols["exponent"][down].astype(np.uint64) << np.uint64(form.fraction)
        size = np.where(classes == form.jump, (exponent | raw).astype(old.dtype), size)
        sign = (old & top) ^ (self.symbols["flipped"][down].astype(old.dtype) << old.dtype.type(form.width - 1))
        after[down] = sign | size
        return at

    def _raw(self, count: Ints, at: int) -> tuple[npt.NDArray[np.uint64], int]:
        """Return the next raw bits, so many for each value, and where the bit after them is."""
        ends = at + np.cumsum(count).reshape(count.shape)
        begin, end = at // 8, -(-int(ends[-1, -1]) // 8)
        if end > len(self.rest):
            raise MalformedUpdate(f"{self._subject} ends early; it is cut or corrupted")
        data = np.frombuffer(bytes(self.rest[begin:end]) + bytes(8), np.uint8)
        windows = np.lib.stride_tricks.as_strided(data[:8].view("<u8"), (data.size - 7,), (1,), writeable=False)
        starts = ends - count - 8 * begin
        values = windows[starts >> 3].astype(np.uint64) >> (starts & 7).astype(np.uint64)
        return values & ((np.uint64(1) << count.astype(np.uint64)) - np.uint64(1)), int(ends[-1, -1])
