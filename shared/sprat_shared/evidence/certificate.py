"""A near copy certified without labels: by how much it can be worse, from how often it says something else. Pure.

Wherever a model and its near copy give the same answer, both are right or both are wrong. So accuracy cannot have
fallen by more than the share of inputs on which they disagree, whatever the labels are. The upper bound of Clopper and
Pearson (Biometrika 26, 1934) of that share holds for the inputs that these were drawn from, if no choice was made by
them: samples that chose the copy prove nothing. Where one may look again, at another copy on the same samples, each
look gets its part of what may go wrong (Bonferroni), however many looks are then taken.

Two answers are *the same* if they name the same class; of a regression, if no output moved by more than a tolerance,
and then the bound is of the share of inputs outside it.
"""

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from sprat_shared.errors import InvalidInput
from sprat_shared.evidence.bounds import highest_share

ALPHA: Final = 0.05
"""What may go wrong: the share of certificates whose bound the truth exceeds, at most."""

_MOST_SAMPLES: Final = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassBound:
    """What holds for the inputs that the original says are of one class.

    Attributes:
        compared: inputs.
        disagreed: of them.
        bound: upper bound of the share that disagrees; those of all classes hold together.
    """

    compared: int
    disagreed: int
    bound: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """By how much a near copy can be worse than its original.

    Attributes:
        compared: inputs on which nothing was chosen.
        disagreed: of them, on how many the two gave other answers.
        looks: at how many copies one may look with these inputs; each bound is corrected for all of them.
        bound: upper bound of the share that disagrees, thus of the fall in accuracy.
        classes: the same by the original's answer; empty where there are none.
    """

    compared: int
    disagreed: int
    looks: int
    bound: float
    classes: Mapping[Hashable, ClassBound] = field(default_factory=dict)

    def within(self, budget: float, class_budget: float | None = None) -> bool:
        """Return whether the bound is within a budget, and those of all classes within theirs where there is one."""
        classes = () if class_budget is None else self.classes.values()
        return self.bound <= budget and all(one.bound <= (class_budget or 0.0) for one in classes)


def certify(disagreed: int, compared: int, *, looks: int = 1, alpha: float = ALPHA) -> Certificate:
    """Return the certificate of a copy that gave another answer on so many inputs.

    Args:
        disagreed: inputs.
        compared: of so many, drawn as those that will come, and not used for any choice.
        looks: copies that may be tried on these inputs, this one among them; say it before the first look.
        alpha: what may go wrong in all looks together.

    Raises:
        InvalidInput: the counts or looks are impossible.
    """
    _check(disagreed, compared, looks)
    bound = highest_share(disagreed, compared, confidence=1 - alpha / looks)
    return Certificate(compared=compared, disagreed=disagreed, looks=looks, bound=bound)


def certify_answers(
    original: Sequence[Hashable], copy: Sequence[Hashable], *, looks: int = 1, alpha: float = ALPHA
) -> Certificate:
    """Return the certificate of a copy that names classes, in all and by the class that the original names.

    The bounds by class hold together, and are corrected for the looks as the whole one is.

    Raises:
        InvalidInput: the two gave not as many answers, or looks are impossible.
    """
    _check_same_inputs(original, copy)
    compared = Counter(original)
    disagreed = Counter(one for one, other in zip(original, copy, strict=True) if one != other)
    _check(disagreed.total(), len(original), looks)
    confidence = 1 - alpha / looks / max(1, len(compared))
    classes = {
        one: ClassBound(
            compared=count,
            disagreed=disagreed[one],
            bound=highest_share(disagreed[one], count, confidence=confidence),
        )
        for one, count in compared.items()
    }
    whole = certify(disagreed.total(), len(original), looks=looks, alpha=alpha)
    return Certificate(
        compared=whole.compared, disagreed=whole.disagreed, looks=looks, bound=whole.bound, classes=classes
    )


def outside(original: Sequence[Sequence[float]], copy: Sequence[Sequence[float]], tolerance: float) -> int:
    """Return on how many inputs an output of a regression moved by more than a tolerance, or is no number.

    Raises:
        InvalidInput: the two gave not as many answers.
    """
    _check_same_inputs(original, copy)
    return sum(
        not all(abs(a - b) <= tolerance for a, b in zip(one, other, strict=True))
        for one, other in zip(original, copy, strict=True)
    )


def samples_needed(bound: float, *, share: float = 0.0, looks: int = 1, alpha: float = ALPHA) -> int:
    """Return how many inputs prove a bound where at most this share of them disagrees; the fewest where none does.

    Args:
        bound: that is wished, 0 to 1.
        share: that is expected to disagree; 0: not one.
        looks: see `certify`.
        alpha: see `certify`.

    Raises:
        InvalidInput: no number of inputs proves a bound that is not above the share.
    """
    if not 0 <= share < bound < 1:
        raise InvalidInput(f"no number of samples proves a bound of {bound:g} where a share of {share:g} disagrees")
    low, high = 0, 1

    def proves(count: int) -> bool:
        return certify(math.ceil(share * count), count, looks=looks, alpha=alpha).bound <= bound

    while not proves(high):
        if high > _MOST_SAMPLES:
            raise InvalidInput(f"a bound of {bound:g} takes more than {_MOST_SAMPLES} samples; wish for a wider one")
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if proves(middle) else (middle, high)
    return high


def chance(disagreed: int, compared: int, *, budget: float, more: int, looks: int = 1, alpha: float = ALPHA) -> float:
    """Return how likely a copy is to get its certificate on further inputs, by what it did on some.

    The share that disagrees is taken to be anything with equal weight before (Bayes, Laplace), so the further count is
    beta-binomial.

    Args:
        disagreed: inputs that it was chosen by,
        compared: of so many.
        budget: largest bound that is allowed.
        more: inputs that will certify.
        looks: see `certify`.
        alpha: see `certify`.

    Raises:
        InvalidInput: the counts or looks are impossible.
    """
    _check(disagreed, compared, looks)
    low, high = -1, more  # so many disagreeing are within the budget, so many are not
    while high - low > 1:
        middle = (low + high) // 2
        within = certify(middle, more, looks=looks, alpha=alpha).bound <= budget
        low, high = (middle, high) if within else (low, middle)
    return min(
        1.0, sum(_beta_binomial(count, more, disagreed + 1, compared - disagreed + 1) for count in range(low + 1))
    )


def _beta_binomial(count: int, trials: int, a: int, b: int) -> float:
    def beta(x: int, y: int) -> float:
        return math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y)

    ways = math.lgamma(trials + 1) - math.lgamma(count + 1) - math.lgamma(trials - count + 1)
    return math.exp(ways + beta(count + a, trials - count + b) - beta(a, b))


def _check_same_inputs(original: Sequence[object], copy: Sequence[object]) -> None:
    if len(original) != len(copy):
        raise InvalidInput(f"{len(original)} answers of the original, {len(copy)} of its copy; compare the same inputs")


def _check(disagreed: int, compared: int, looks: int) -> None:
    if not 0 <= disagreed <= compared:
        raise InvalidInput(f"{disagreed} of {compared} inputs cannot disagree")
    if looks < 1:
        raise InvalidInput(f"a certificate takes one look at least, not {looks}")
