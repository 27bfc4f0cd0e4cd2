"""The second decoder's part for coded exact records, written from section 6.2 of docs/wire-format.md alone."""

import struct
from collections.abc import Sequence

from integer_stream import Lane, Model, need

EXPONENT_BITS = {"F32": 8, "F16": 5, "BF16": 8, "F64": 11, "F8_E4M3": 4, "F8_E5M2": 5}
Key = tuple[str | int, ...]
Models = dict[Key, Model]


class CodedPart:
    """Section 6.2: up to 2^20 values of a coded record."""

    def __init__(self, dtype: str, width: int, old: list[int], models: Models) -> None:
        self.old, self.models = old, models
        self.width, self.exponent = width, EXPONENT_BITS[dtype]
        self.fraction = self.width - 1 - self.exponent
        self.jump = self.fraction + 3
        self.lanes = 1
        while 2 * self.lanes <= len(old) // 512:
            self.lanes *= 2
        for model in models.values():
            model.halve_to(64)

    def read(self, frame: bytes) -> list[int]:
        """The new bits of the part's values; `rest` is then what follows the part."""
        need(len(frame) >= 4, "a coded part is cut")
        count = int.from_bytes(frame[:4], "little")
        need(count >= 2 * self.lanes, "a coded part is too short for its lanes")
        need(len(frame) >= 4 + 2 * count, "a coded part is cut")
        words, self.rest = struct.unpack_from(f"<{count}H", frame, 4), frame[4 + 2 * count :]
        self.lane = [Lane(words[2 * i] + (words[2 * i + 1] << 16)) for i in range(self.lanes)]
        self.words = iter(words[2 * self.lanes :])
        told = self.walk()
        need(all(lane.x == 1 << 16 for lane in self.lane), "a lane of a coded part does not end at 2^16")
        need(next(self.words, None) is None, "words of a coded part are left over")
        return self.put_together(told)

    def bit(self, lane: int, key: Key, p: int) -> int:
        """The next bit of a lane, found in its state; what is asked is clear from the key."""
        del key
        return self.lane[lane].bit(p, self.words)

    def ask(self, which: Sequence[int], keys: Sequence[Key]) -> list[int]:
        """One bit of each of these lanes, each under the model of its key."""
        odds = [self.models.setdefault(key, Model()).p for key in keys]
        bits = [self.bit(i, key, p) for i, key, p in zip(which, keys, odds, strict=True)]
        for key in set(keys):
            self.models[key].learn([bit for bit, its in zip(bits, keys, strict=True) if its == key], self.lanes)
        return bits

    def number(self, name: str, which: Sequence[int], contexts: Sequence[int], depth: int) -> list[int]:
        """An integer of each of these lanes, its highest bit first."""
        values = [1] * len(which)
        for _ in range(depth):
            bits = self.ask(which, [(name, c, value) for c, value in zip(contexts, values, strict=True)])
            values = [2 * value + bit for value, bit in zip(values, bits, strict=True)]
        return [value - (1 << depth) for value in values]

    def walk(self) -> list[tuple[int, dict[str, int]]]:
        """Ask everything: which values change, and what is told of each."""
        field = [old >> self.fraction & (1 << self.exponent) - 1 for old in self.old]
        context = [min(31, max(field) - e) for e in field]
        stripe = -(-len(self.old) // self.lanes)
        changed, told = [1] * self.lanes, list[tuple[int, dict[str, int]]]()
        for step in range(stripe):
            self.at = at = {i: i * stripe + step for i in range(self.lanes) if i * stripe + step < len(self.old)}
            for i, bit in zip(at, self.ask(list(at), [("changed", context[k], changed[i]) for i, k in at.items()])):  # noqa: B905
                changed[i] = bit
            which = [i for i in at if changed[i]]
            c = {i: context[at[i]] for i in which}
            classes = self.number("class", which, [c[i] for i in which], self.jump.bit_length())
            its = {i: {"class": value} for i, value in zip(which, classes, strict=True)}
            need(all(1 <= value <= self.jump for value in classes), "a class that there is not")
            near = [i for i in which if its[i]["class"] < self.jump]
            far = [i for i in near if its[i]["class"] > 1]
            jumps = [i for i in which if its[i]["class"] == self.jump]
            for name, lanes, keys in (
                ("smaller", near, [(c[i], its[i]["class"]) for i in near]),
                ("second", far, [(its[i]["class"],) for i in far]),
                ("flipped", jumps, [(c[i],) for i in jumps]),
            ):
                for i, bit in zip(lanes, self.ask(lanes, [(name, *key) for key in keys]), strict=True):
                    its[i][name] = bit
            fields = self.number("exponent", jumps, [min(c[i], 7) for i in jumps], self.exponent)
            for i, value in zip(jumps, fields, strict=True):
                its[i]["exponent"] = value
            told += [(at[i], its[i]) for i in which]
        return told

    def put_together(self, told: Sequence[tuple[int, dict[str, int]]]) -> list[int]:
        """Values out of what was told and the raw bits."""
        lengths = [self.fraction if its["class"] == self.jump else max(its["class"] - 2, 0) for _, its in told]
        taken = -(-sum(lengths) // 8)
        need(len(self.rest) >= taken, "a coded part is cut")
        raw, self.rest = int.from_bytes(self.rest[:taken], "little"), self.rest[taken:]
        new, top = list(self.old), 1 << self.width - 1
        for (k, its), length in zip(told, lengths, strict=True):
            low, raw = raw % (1 << length), raw >> length
            sign, size = self.old[k] & top, self.old[k] % top
            if its["class"] == self.jump:
                new[k] = (sign ^ its["flipped"] * top) + (its["exponent"] << self.fraction) + low
            else:
                distance = (2 + its["second"] << length) + low if its["class"] > 1 else 1
                new[k] = sign + (size + (-distance if its["smaller"] else distance)) % top
        need(raw == 0, "raw bits are left over")
        return new


class CodedWriter(CodedPart):
    """Section 6.2 the other way: told the new bits, it answers its own questions and keeps the answers."""

    def __init__(self, dtype: str, width: int, old: list[int], new: list[int], models: Models) -> None:
        super().__init__(dtype, width, old, models)
        top, self.new, self.kept = 1 << width - 1, new, list[tuple[int, int, int]]()
        self.symbols = list[dict[str, int]]()
        for before, after in zip(old, new, strict=True):
            distance, flipped = after % top - before % top, int(before & top != after & top)
            length = abs(distance).bit_length()
            self.symbols.append(
                {
                    "changed": int(before != after),
                    "class": self.jump if flipped else min(length, self.jump),
                    "smaller": int(distance < 0),
                    "second": abs(distance) >> max(length - 2, 0) & 1,
                    "flipped": flipped,
                    "exponent": after % top >> self.fraction,
                }
            )

    def bit(self, lane: int, key: Key, p: int) -> int:
        """The bit that the key asks for, kept for the coder."""
        name = str(key[0])
        depth = {"class": self.jump.bit_length(), "exponent": self.exponent}.get(name)
        place = depth - int(key[2]).bit_length() if depth else 0
        bit = self.symbols[self.at[lane]][name] >> place & 1
        self.kept.append((lane, p, 4096 - p) if bit else (lane, 0, p))
        return bit

    def write(self) -> bytes:
        """The part's bytes."""
        told = self.walk()
        states, words = [1 << 16] * self.lanes, list[int]()
        for lane, start, width in reversed(self.kept):
            if states[lane] >= width << 20:
                words.append(states[lane] & 0xFFFF)
                states[lane] >>= 16
            states[lane] = (states[lane] // width << 12) + states[lane] % width + start
        words += [word for state in reversed(states) for word in (state >> 16, state & 0xFFFF)]
        raw = at = 0
        for k, its in told:
            jump = its["class"] == self.jump
            length = self.fraction if jump else max(its["class"] - 2, 0)
            distance = abs(self.new[k] % (1 << self.width - 1) - self.old[k] % (1 << self.width - 1))
            raw |= (self.new[k] if jump else distance) % (1 << length) << at
            at += length
        return struct.pack(f"<I{len(words)}H", len(words), *reversed(words)) + raw.to_bytes(-(-at // 8), "little")


def split(data: bytes, width: int) -> list[int]:
    """Values of `width` bytes."""
    return [int.from_bytes(data[at : at + width], "little") for at in range(0, len(data), width)]


def coded_frame(dtype: str, data: bytes, width: int, new: bytes) -> bytes:
    """The frame of a coded record for at most 2^20 values."""
    return CodedWriter(dtype, 8 * width, split(data, width), split(new, width), Models()).write()


def uncoded(dtype: str, data: bytes, width: int, frame: bytes) -> bytes:
    """The new raw bytes of a tensor of `width` bytes a value."""
    old, new, models = split(data, width), list[int](), Models()
    for at in range(0, len(old), 1 << 20):
        part = CodedPart(dtype, 8 * width, old[at : at + (1 << 20)], models)
        new += part.read(frame)
        frame = part.rest
    need(not frame, "bytes after a coded record's last value")
    return b"".join(value.to_bytes(width, "little") for value in new)
