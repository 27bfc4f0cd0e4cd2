"""Betting e-processes for a bounded mean: evidence that may be looked at after every observation.

A game starts with capital 1 and multiplies it by `1 + stake * (clipped loss - null)` at each observation. Where the
mean of the clipped losses, given all that came before, is at most `null`, the capital is a nonnegative supermartingale,
so it ever reaches `1 / alpha` with a probability of at most `alpha` (Ville's inequality), whatever the losses'
distribution. Nobody knows the best stake beforehand, so capital is spread over several, each at several clips, and
stays there: a discrete mixture (Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting",
JRSS B 86, 2024). Stakes that do not depend on the past make every bet monotone in every loss: a worse observation never
lowers the capital of a game against harm, in whatever order it came.

Only products, sums and comparisons of binary64 in a fixed order, and exact scaling by powers of two: a replay gives the
same bits on every machine.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias

from sprat_shared.errors import InvalidInput

Wealth: TypeAlias = tuple[float, int]
"""A capital as mantissa (0.5 to 1, or 0) and exponent of two: it neither overflows nor underflows."""
Capital: TypeAlias = tuple[Wealth, ...]
"""The wealth of each bet of a game, each started at 1; weights are applied when they are summed."""

# Shares of the greatest stake that no single loss can ruin, and the capital behind each. The greatest finds large harm
# in few devices; the small ones serve where noise is large (holdouts of a few dozen samples).
_FRACTIONS: Final = ((0.95, 0.5), (0.6, 0.3), (0.25, 0.1), (0.08, 0.1))
# Multiples of the clip: the first judges the typical device, the others see few devices that lose much.
_CLIPS: Final = ((1.0, 0.8), (5.0, 0.1), (25.0, 0.1))
# Rates beyond the allowed one, as shares of what is left to 1.
_RATES: Final = ((0.03, 0.15), (0.08, 0.5), (0.28, 0.25), (0.8, 0.1))
_MOST: Final = 1000  # exponents are held within this, so that an e-value is always a finite float


@dataclass(frozen=True, slots=True)
class Bet:
    """One stake on losses clipped at one bound.

    Attributes:
        clip: losses count within -clip to +clip.
        stake: how much of the capital is put on each unit of loss beyond the null.
        weight: share of the game's capital behind it.
    """

    clip: float
    stake: float
    weight: float


@dataclass(frozen=True, slots=True)
class Game:
    """Bets against one null: that the mean loss is at most `null`, or (`harm` False) that it is at least `null`."""

    null: float
    harm: bool
    bets: tuple[Bet, ...]

    def start(self) -> Capital:
        """Return the capital before the first observation."""
        return tuple((0.5, 1) for _ in self.bets)

    def play(self, capital: Capital, loss: float) -> Capital:
        """Return the capital after an observation.

        Raises:
            InvalidInput: the capital is of another game.
        """
        if len(capital) != len(self.bets):
            raise InvalidInput(
                f"a stored gate has {len(capital)} bets where its policy makes {len(self.bets)}: replay the evidence",
                code="gates.other-policy",
            )
        return tuple(self._after(bet, wealth, loss) for bet, wealth in zip(self.bets, capital, strict=True))

    def e_value(self, capital: Capital) -> float:
        """Return the weighted capital: evidence against the null, 1 at the start."""
        total = 0.0
        for bet, (mantissa, exponent) in zip(self.bets, capital, strict=True):
            total += bet.weight * math.ldexp(mantissa, exponent)
        return total

    def burn(self, capital: Capital) -> Capital:
        """Return the capital brought down to an e-value of 1; a smaller one stays as it is.

        Whatever is won by then is thrown away, whatever is lost stays lost: the capital is still a nonnegative
        supermartingale from a start of 1, so Ville's bound holds over all of it, however often one burns.
        """
        e_value = self.e_value(capital)
        return tuple(scaled(wealth, 1.0 / e_value) for wealth in capital) if e_value > 1.0 else capital

    def _after(self, bet: Bet, wealth: Wealth, loss: float) -> Wealth:
        clipped = min(max(loss, -bet.clip), bet.clip)
        gain = clipped - self.null if self.harm else self.null - clipped
        return scaled(wealth, 1.0 + bet.stake * gain)


def scaled(wealth: Wealth, factor: float) -> Wealth:
    """Return `wealth * factor`, held within 2^-1000 to 2^1000 so that it always is a finite float."""
    mantissa, exponent = math.frexp(wealth[0] * factor)
    exponent += wealth[1]
    if exponent > _MOST:
        return (0.5, _MOST)
    return (mantissa, max(exponent, -_MOST))


def harm_game(tolerance: float, clip: float) -> Game:
    """Return the game against "the mean loss is at most `tolerance`", for every one of its clips.

    Args:
        tolerance: loss that is accepted, in the metric's unit.
        clip: bound of the most sensitive bets; greater than the tolerance.
    """
    bets = [
        Bet(clip * wide, share / (clip * wide + tolerance), behind * part)
        for wide, behind in _CLIPS
        for share, part in _FRACTIONS
    ]
    return Game(tolerance, harm=True, bets=tuple(bets))


def no_harm_game(margin: float, tolerance: float, clip: float) -> Game:
    """Return the game against "the mean loss, clipped at `clip`, is at least `margin`".

    The stakes depend on tolerance and clip alone: capital grows with the margin, so the least margin that is refuted is
    an upper confidence bound for the loss that holds at all times together.
    """
    bets = [Bet(clip, share / (clip - tolerance), part) for share, part in _FRACTIONS]
    return Game(margin, harm=False, bets=tuple(bets))


def rate_game(allowed: float) -> Game:
    """Return the game against "an event (loss 1, else 0) has a probability of at most `allowed`".

    A bet is the likelihood ratio of a rate `p` to the allowed one, so the game is a mixture of likelihood ratios.
    """
    bets = [Bet(1.0, share / allowed, part) for share, part in _RATES]
    return Game(allowed, harm=True, bets=tuple(bets))


def capital_as_json(capital: Capital) -> list[float | int]:
    """Return the capital as a flat list; binary64 survives JSON's shortest decimal form."""
    return [part for wealth in capital for part in wealth]


def capital_of(value: Iterable[float | int]) -> Capital:
    """Read what `capital_as_json` wrote."""
    flat = list(value)
    return tuple((float(flat[i]), int(flat[i + 1])) for i in range(0, len(flat), 2))
