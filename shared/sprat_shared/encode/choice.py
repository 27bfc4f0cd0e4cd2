"""Choosing how every tensor is said: by a size, by an error, by a bound; what is chosen is rebuilt and measured."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from sprat_shared.encode.allocation import Ladder, ladder
from sprat_shared.encode.candidates import Candidate, Options
from sprat_shared.errors import InvalidInput
from sprat_shared.wire.records import Edit
from sprat_shared.wire.tensors import REBUILDABLE, tensor_sha256

_SMALL: Final = 1 << 20  # values that change, up to which writing a file takes so little that many are tried
_TRIES_SMALL, _TRIES_LARGE = 12, 2


@dataclass(frozen=True, slots=True, eq=False)
class Said:
    """One tensor's change as it will be in the file, rebuilt.

    Attributes:
        options: the tensor and its ways.
        way: the one that was chosen.
        records: for the file; () leaves the tensor as it is.
        sha256: of what they give.
        squared_error: weighted, measured.
        max_error: largest absolute error, measured.
        usable: see `Change.usable`.
    """

    options: Options
    way: Candidate
    records: tuple[Edit, ...]
    sha256: bytes
    squared_error: float
    max_error: float
    usable: bool


def by_error(options: Sequence[Options], allowed: float) -> list[Said]:
    """Return the fewest bytes found whose weighted squared error, measured, is at most `allowed`."""
    said, rung = _Said(options), -1
    while True:
        steps = said.ladder()
        rung = max(rung, steps.within_error(allowed))
        chosen = said.rung(steps, rung)
        if not said.drop_unusable(chosen):
            if sum(one.squared_error for one in chosen) <= allowed or rung + 1 >= len(steps):
                return chosen
            rung += 1 + len(steps) // 200  # the estimate was low


def by_budget(options: Sequence[Options], budget_bytes: int, written: Callable[[Sequence[Edit]], int]) -> list[Said]:
    """Return the least error found that fits.

    Args:
        options: of every tensor that changes.
        budget_bytes: of the whole file.
        written: returns the bytes of a file with these records.

    Raises:
        InvalidInput: not even the smallest file fits.
    """
    said = _Said(options)
    while True:
        steps = said.ladder()
        chosen = said.rung(steps, _highest_that_fits(said, steps, budget_bytes, written))
        if not said.drop_unusable(chosen):
            return chosen


def by_bound(options: Sequence[Options], max_error: float) -> list[Said]:
    """Return for each tensor the fewest bytes at which no value is further off than `max_error`."""
    said, chosen = _Said(options), list[Said]()
    for number, option in enumerate(options):
        change = option.change
        least = change.weight * max_error**2 * change.spec.size  # the largest error is no less than the mean
        for way in sorted(option.ways, key=lambda way: way.bytes):
            if way.squared_error <= 1.01 * least:
                one = said.one(number, way)
                if one.max_error <= max_error and one.usable:
                    chosen.append(one)
                    break
    return chosen


class _Said:
    """Ways that were made once are kept."""

    def __init__(self, options: Sequence[Options]) -> None:
        self._options = options
        self._ways = [list(option.ways) for option in options]
        self._records = dict[int, tuple[Edit, ...]]()
        self._rebuilt = dict[int, Said]()

    @property
    def size(self) -> int:
        return sum(option.change.spec.size for option in self._options)

    def ladder(self) -> Ladder:
        return ladder(self._ways)

    def forget(self) -> None:
        """Let go of records: quantised large tensors that were not chosen would fill the memory."""
        self._records.clear()

    def records(self, way: Candidate) -> tuple[Edit, ...]:
        if id(way) not in self._records:
            self._records[id(way)] = way.records()
        return self._records[id(way)]

    def one(self, number: int, way: Candidate) -> Said:
        if id(way) not in self._rebuilt:
            option, records = self._options[number], self.records(way)
            change, rebuilt = option.change, option.change.rebuilt(records)
            missed = change.missed(rebuilt) if change.spec.dtype in REBUILDABLE else (0.0, 0.0)
            usable = way is option.ways[-1] or change.usable(rebuilt)
            self._rebuilt[id(way)] = Said(option, way, records, tensor_sha256(rebuilt), *missed, usable)
        return self._rebuilt[id(way)]

    def rung(self, steps: Ladder, rung: int) -> list[Said]:
        return [self.one(number, way) for number, way in enumerate(steps.choice(rung))]

    def drop_unusable(self, chosen: Sequence[Said]) -> bool:
        """Take ways that turned out to be of no use out of the ladder; return whether there were any."""
        for number, one in enumerate(chosen):
            if not one.usable:
                self._ways[number].remove(one.way)
        return not all(one.usable for one in chosen)


def _highest_that_fits(said: _Said, steps: Ladder, budget_bytes: int, written: Callable[[Sequence[Edit]], int]) -> int:
    """Return the highest rung whose file is within the budget; of large tensors one close to it, to write few files."""
    small = said.size <= _SMALL
    low, high, tries = -1, len(steps), _TRIES_SMALL if small else _TRIES_LARGE
    rung, head = steps.within_bytes(budget_bytes), 0.0
    while True:
        records = [record for way in steps.choice(rung) for record in said.records(way)]
        size = written(records)
        if size <= budget_bytes:
            low = rung
        else:
            high = rung
        tries -= 1
        if high - low <= 1 or (tries <= 0 and low >= 0):
            break
        head = size - float(steps.bytes[rung])  # what the estimate left out, headers included
        rung = min(high - 1, max(low + 1, steps.within_bytes(budget_bytes - head)))
        if not small:
            said.forget()
    if low < 0:
        raise InvalidInput(f"no update fits {budget_bytes} bytes; the smallest found takes {size}")
    return low
