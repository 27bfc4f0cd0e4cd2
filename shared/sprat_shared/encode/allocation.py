"""One choice for every tensor together: bytes against error, by a Lagrange multiplier.

Y. Shoham, A. Gersho, "Efficient bit allocation for an arbitrary set of quantizers", IEEE Trans. ASSP 36(9), 1988: for a
price of a byte, each tensor alone takes its cheapest candidate; the price is then moved until the sum fits.
"""

from collections.abc import Callable, Sequence
from typing import Final

from sprat_shared.encode.candidates import Candidate

_HALVINGS: Final = 60
_CHEAP, _DEAR = 1e-18, 1e18  # price of a byte, in squared error


def cheapest(options: Sequence[Sequence[Candidate]], enough: Callable[[Sequence[Candidate]], bool]) -> list[Candidate]:
    """Return one candidate for each tensor, at the highest price of a byte at which the choice is still `enough`.

    Args:
        options: for each tensor its candidates.
        enough: monotone: true at a price stays true at all lower ones. Where it is never true, the finest choice.
    """
    low, high = _CHEAP, _DEAR
    best = _at(options, low)
    for _ in range(_HALVINGS):
        price = (low * high) ** 0.5
        choice = _at(options, price)
        if enough(choice):
            low, best = price, choice
        else:
            high = price
    return best


def finest(options: Sequence[Sequence[Candidate]], budget_bytes: float) -> list[Candidate]:
    """Return one candidate for each tensor: the least error whose estimated bytes stay within the budget."""
    low, high = _CHEAP, _DEAR
    best = _at(options, high)
    for _ in range(_HALVINGS):
        price = (low * high) ** 0.5
        choice = _at(options, price)
        if sum(candidate.bytes for candidate in choice) <= budget_bytes:
            high, best = price, choice
        else:
            low = price
    return _spend(options, best, budget_bytes)


def _spend(options: Sequence[Sequence[Candidate]], choice: list[Candidate], budget_bytes: float) -> list[Candidate]:
    """Spend what the multiplier left over (it sees only the convex hull): the best gain for a byte first."""
    while True:
        left = budget_bytes - sum(way.bytes for way in choice)
        better = [
            ((now.squared_error - way.squared_error) / max(way.bytes - now.bytes, 1e-9), i, way)
            for i, (now, ways) in enumerate(zip(choice, options, strict=True))
            for way in ways
            if way.squared_error < now.squared_error and way.bytes - now.bytes <= left
        ]
        if not better:
            return choice
        _, i, way = max(better, key=lambda entry: entry[0])
        choice = [*choice[:i], way, *choice[i + 1 :]]


def _at(options: Sequence[Sequence[Candidate]], price: float) -> list[Candidate]:
    return [min(ways, key=lambda way: way.squared_error + price * way.bytes) for ways in options]
