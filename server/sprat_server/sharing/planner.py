"""Which model shares what with which: the most memory saved within bounds, or the least bound that fits a memory. Pure.

A donor stays whole: it is never spliced itself. So a plan is a set of donors, and each other model takes the best that
one of them offers; what is saved adds up. Choosing the donors is a facility location problem: it is solved exactly for
a few models, and by adding, swapping and dropping donors, looking two moves ahead, for many.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

from sprat_shared.errors import InvalidInput

EXACT_MODELS: Final = 14
"""Up to so many models every set of donors is tried."""

_FRONT: Final = 40  # bounds that are looked at for a front


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way for a model to share.

    Attributes:
        donor: model whose layers are used.
        recipient: model that gives up its own.
        way: which form, where; for those who make it.
        saved_bytes: of the recipient's tensors that go, less those that come new.
        bound: upper bound of the share of answers that change.
        chance: of getting its certificate on inputs that chose nothing; it is planned with that part of what it saves.
    """

    donor: str
    recipient: str
    way: str
    saved_bytes: int
    bound: float
    chance: float = 1.0

    @property
    def expected_bytes(self) -> float:
        """Return what it saves on average, if it saves nothing without a certificate."""
        return self.saved_bytes * self.chance


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Who shares with whom.

    Attributes:
        chosen: recipient -> how it shares.
        total_bytes: of all models without sharing.
        saved_bytes: of them.
        fits: whether what is left fits the memory that was asked for.
    """

    chosen: Mapping[str, Candidate]
    total_bytes: int
    saved_bytes: int
    fits: bool = True

    @property
    def donors(self) -> frozenset[str]:
        """Return the models whose layers others use."""
        return frozenset(one.donor for one in self.chosen.values())

    @property
    def bound(self) -> float:
        """Return the largest bound of a recipient; 0 where none shares."""
        return max((one.bound for one in self.chosen.values()), default=0.0)

    @property
    def saved_share(self) -> float:
        """Return the share of all bytes that is saved."""
        return self.saved_bytes / self.total_bytes if self.total_bytes else 0.0


Budget = float | Mapping[str, float]


def plan(
    sizes: Mapping[str, int],
    candidates: Iterable[Candidate],
    *,
    budget: Budget,
    memory_bytes: int | None = None,
    slack: float = 0.0,
) -> Plan:
    """Return the plan that saves most, or the one of least bound that fits a memory.

    Args:
        sizes: model -> bytes.
        candidates: ways to share, of any models among these.
        budget: largest bound that is allowed, for all models or for each.
        memory_bytes: that all models together may take; None: save as much as can be.
        slack: share of what could be saved that is given up for the smallest bound.

    Raises:
        InvalidInput: a candidate names a model that there is not, or shares with itself.
    """
    allowed = _allowed(sizes, candidates, budget)
    if memory_bytes is None:
        return _safest(sizes, allowed, slack)
    if sum(sizes.values()) <= memory_bytes:
        return _of(sizes, {})
    bounds = sorted({one.bound for one in allowed})
    low, high = 0, len(bounds)  # plans of the first `high` bounds fit, if any does
    while low < high:
        middle = (low + high) // 2
        found = _best(sizes, [one for one in allowed if one.bound <= bounds[middle]])
        low, high = (low, middle) if _left(found) <= memory_bytes else (middle + 1, high)
    limit = bounds[min(low, len(bounds) - 1)] if bounds else 0.0
    found = _best(sizes, [one for one in allowed if one.bound <= limit])
    return _of(sizes, found.chosen, fits=_left(found) <= memory_bytes)


def front(sizes: Mapping[str, int], candidates: Iterable[Candidate], *, budget: Budget = 1.0) -> list[Plan]:
    """Return the plans of which no other saves more within a bound as small, from the smallest bound on.

    Where there are hundreds of bounds, some of them are looked at.
    """
    allowed = _allowed(sizes, candidates, budget)
    best: list[Plan] = []
    limits = sorted({one.bound for one in allowed})
    for limit in limits[-1 :: -max(1, len(limits) // _FRONT)][::-1]:
        found = _best(sizes, [one for one in allowed if one.bound <= limit])
        if found.saved_bytes > (best[-1].saved_bytes if best else 0):
            best.append(found)
    return best


def ladder(chosen: Candidate, candidates: Iterable[Candidate], *, levels: int) -> list[Candidate]:
    """Return what a recipient shares, and what it goes down to with the same donor: each level saves less, is safer.

    Args:
        chosen: the first level.
        candidates: ways to share; those of the same donor and recipient are looked at.
        levels: at most so many, evenly spread where there are more; after the last comes no sharing at all.
    """
    own = [one for one in candidates if (one.donor, one.recipient) == (chosen.donor, chosen.recipient)]
    rungs = [chosen]
    for one in sorted(own, key=lambda one: -one.saved_bytes):
        if 0 < one.saved_bytes < rungs[-1].saved_bytes and one.bound < rungs[-1].bound:
            rungs.append(one)
    if len(rungs) <= levels:
        return rungs
    return [rungs[round(i * (len(rungs) - 1) / max(1, levels - 1))] for i in range(levels)]


def exact(sizes: Mapping[str, int], candidates: Iterable[Candidate], *, budget: Budget) -> Plan:
    """Return the plan that saves most, every set of donors tried: 2**models steps.

    Raises:
        InvalidInput: there are more than 20 models, or a candidate is impossible.
    """
    if len(sizes) > 20:  # noqa: PLR2004 - a million sets
        raise InvalidInput(f"every set of donors of {len(sizes)} models is more than can be tried")
    return _of(sizes, _all_sets(_Offers(_allowed(sizes, candidates, budget))))


def greedy(sizes: Mapping[str, int], candidates: Iterable[Candidate], *, budget: Budget) -> Plan:
    """Return a plan by adding, swapping and dropping donors, two at a time, as long as that saves more."""
    return _of(sizes, _search(_Offers(_allowed(sizes, candidates, budget))))


def _safest(sizes: Mapping[str, int], allowed: Sequence[Candidate], slack: float) -> Plan:
    """Return the plan of the smallest bound that saves all but `slack` of what can be saved."""
    best = _best(sizes, allowed)
    enough = (1 - slack) * _saved(best.chosen)
    bounds = sorted({one.bound for one in allowed})
    low, high = 0, len(bounds) - 1  # the plan of all bounds up to `high` saves enough
    while low < high:
        middle = (low + high) // 2
        found = _best(sizes, [one for one in allowed if one.bound <= bounds[middle]])
        if _saved(found.chosen) >= enough:
            best, high = found, middle
        else:
            low = middle + 1
    return best


def _best(sizes: Mapping[str, int], allowed: Sequence[Candidate]) -> Plan:
    offers = _Offers(allowed)
    return _of(sizes, _all_sets(offers) if len(offers.donors) <= EXACT_MODELS else _search(offers))


def _allowed(sizes: Mapping[str, int], candidates: Iterable[Candidate], budget: Budget) -> list[Candidate]:
    kept = []
    for one in candidates:
        if one.donor == one.recipient or not {one.donor, one.recipient} <= set(sizes):
            raise InvalidInput(f"{one.recipient!r} cannot share with {one.donor!r}: name two of {sorted(sizes)}")
        if one.saved_bytes > 0 and one.bound <= (budget if isinstance(budget, float | int) else budget[one.recipient]):
            kept.append(one)
    return kept


class _Offers:
    """What each donor offers each recipient: the way of most bytes."""

    def __init__(self, candidates: Iterable[Candidate]) -> None:
        self._best: dict[str, dict[str, Candidate]] = {}
        for one in sorted(candidates, key=_worth):
            self._best.setdefault(one.donor, {})[one.recipient] = one
        self.donors = sorted(self._best)

    def taken(self, donors: Collection[str]) -> dict[str, Candidate]:
        """Return what each other model takes from these donors."""
        taken: dict[str, Candidate] = {}
        for donor in sorted(donors):
            for recipient, one in self._best[donor].items():
                held = taken.get(recipient)
                if recipient not in donors and (held is None or _worth(one) > _worth(held)):
                    taken[recipient] = one
        return taken


def _worth(one: Candidate) -> tuple[float, float]:
    return one.expected_bytes, -one.bound


def _saved(taken: Mapping[str, Candidate]) -> float:
    return sum(one.expected_bytes for one in taken.values())


def _all_sets(offers: _Offers) -> dict[str, Candidate]:
    sets = (c for size in range(1, len(offers.donors) + 1) for c in combinations(offers.donors, size))
    return max(map(offers.taken, sets), key=_saved, default={})


def _search(offers: _Offers) -> dict[str, Candidate]:
    donors: frozenset[str] = frozenset()
    taken: dict[str, Candidate] = {}
    while True:
        better = max(_moves(donors, offers.donors), key=lambda some: _saved(offers.taken(some)), default=donors)
        if _saved(offers.taken(better)) <= _saved(taken):
            return taken
        donors, taken = better, offers.taken(better)


def _moves(donors: frozenset[str], everyone: Sequence[str]) -> Iterable[frozenset[str]]:
    """Return the sets of donors that differ in one or two."""
    for size in (1, 2):
        for changed in combinations(everyone, size):
            yield donors ^ frozenset(changed)


def _left(found: Plan) -> int:
    return found.total_bytes - found.saved_bytes


def _of(sizes: Mapping[str, int], chosen: Mapping[str, Candidate], *, fits: bool = True) -> Plan:
    saved_bytes = sum(one.saved_bytes for one in chosen.values())
    return Plan(chosen=chosen, total_bytes=sum(sizes.values()), saved_bytes=saved_bytes, fits=fits)
