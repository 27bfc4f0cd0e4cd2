"""Evidence that a share rose above what is allowed, whenever it did: for what serves for years. Pure.

A game of `eprocess` started once loses at every observation while all is well; when the share rises after a year, a
year's losses must be won back first. So a part of the capital is kept in reserve and put down little by little: before
each observation, some of it joins each bet. That is the mixture, by a distribution over all moments, of games that
begin at each of them (the sums of e-processes of Shin, Ramdas and Rinaldo, "E-detectors", NEJSDS 2, 2024, with weights
that sum to 1), and costs no more than one game, because all that began before an observation win or lose by the same
factor. Where the mean loss, given all that came before, never exceeds what is allowed, the capital with its reserve is
a nonnegative supermartingale from 1: it ever reaches `1 / alpha` with a probability of at most `alpha` (Ville's
inequality), however long one watches. A worse observation never lowers it.

A loss is anything within 0 to 1: of one answer whether it differs, of several given together the share that does. Those
of one request are often of one scene, and no draw of their own each.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sprat_shared.errors import InvalidInput

# Rates that are bet on, as multiples of the allowed one, and the capital behind each. The first finds a small rise, in
# thousands of observations; the last two find answers that have nothing to do with each other, in a handful.
_RATES: Final = ((1.5, 0.1), (2.0, 0.2), (3.0, 0.3), (6.0, 0.2), (20.0, 0.1), (200.0, 0.1))
_MOST_AT_STAKE: Final = 0.8  # of a bet's capital, so that no single observation ruins it
_RESERVE: Final = (
    0.5  # of all capital, kept back at first; the other half is put down at once: it may be bad from the start
)
_SOON: Final = 100.0  # observations; half of the reserve is put down within three times as many
_MOST: Final = 2.0**1000  # so that an e-value always is a finite float


@dataclass(frozen=True, slots=True)
class Standing:
    """How a game stands.

    Attributes:
        observations: so far.
        wealth: of each bet, before weights; it started at 0 and got its share of the reserve before each observation.
    """

    observations: int
    wealth: tuple[float, ...]


class ChangeGame:
    """The game against "the mean loss is at most `allowed`", over all moments at which it could begin to exceed it.

    Args:
        allowed: the null, above 0 and at most 1.

    Raises:
        InvalidInput: it is not.
    """

    def __init__(self, allowed: float) -> None:
        if not 0 < allowed <= 1:
            raise InvalidInput(f"a share of {allowed:g} cannot be allowed; it must be above 0 and at most 1")
        self.allowed = allowed
        others = 1.0 - allowed  # a rate p is bet on by the likelihood ratio: p / allowed, and (1 - p) / (1 - allowed)
        self._shares = tuple(min((times - 1.0) * allowed, _MOST_AT_STAKE * others) for times, _ in _RATES)

    def start(self) -> Standing:
        """Return how the game stands before the first observation."""
        return Standing(0, (0.0,) * len(_RATES))

    @staticmethod
    def standing(observations: int, wealth: Sequence[object]) -> Standing:
        """Return a standing that was stored.

        Raises:
            InvalidInput: it is not one of any game.
        """
        numbers = [float(one) for one in wealth if isinstance(one, int | float) and 0 <= one <= _MOST]
        if observations < 0 or len(numbers) != len(wealth) or len(wealth) != len(_RATES):
            raise InvalidInput(f"{wealth!r:.80} after {observations} observations is no standing of {len(_RATES)} bets")
        return Standing(observations, tuple(numbers))

    def play(self, standing: Standing, loss: float) -> Standing:
        """Return how the game stands after an observation.

        Args:
            standing: before it.
            loss: 0 to 1.

        Raises:
            InvalidInput: the loss is out of its bounds.
        """
        if not 0 <= loss <= 1:
            raise InvalidInput(f"a loss of {loss:g} is not within 0 to 1")
        after = standing.observations + 1
        joins = _reserve(standing.observations) - _reserve(after)
        wealth = tuple(
            min((wealth + joins) * self._factor(share, loss), _MOST)
            for wealth, share in zip(standing.wealth, self._shares, strict=True)
        )
        return Standing(after, wealth)

    def e_value(self, standing: Standing) -> float:
        """Return the evidence against the null, 1 at the start."""
        total = _reserve(standing.observations)
        for (_, weight), wealth in zip(_RATES, standing.wealth, strict=True):
            total += weight * wealth
        return total

    def _factor(self, share: float, loss: float) -> float:
        return 1.0 + share / (self.allowed * (1.0 - self.allowed)) * (loss - self.allowed) if share else 1.0


def _reserve(observations: int) -> float:
    """Return what is not put down after so many observations; it falls slowly, so that no moment is far too late."""
    return 1.0 if observations == 0 else _RESERVE * math.sqrt(_SOON / (_SOON + observations))
