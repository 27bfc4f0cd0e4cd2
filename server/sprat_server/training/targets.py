"""What an update must reach, by one of three knobs, judged on the validation split alone."""

from collections.abc import Sequence
from dataclasses import dataclass

from sprat_server.training.evaluate import Loss, Share
from sprat_server.training.teacher import NothingToLearn
from sprat_shared.errors import InvalidInput


class BudgetTooSmall(InvalidInput):
    """No update that was found fits the budget and is better than the base."""

    code = "retrain.budget"


@dataclass(frozen=True, slots=True)
class Keep:
    """The smallest file whose release has this share of the full retrain's gain, above 0 and up to 1."""

    share: float


@dataclass(frozen=True, slots=True)
class MaxDrop:
    """The smallest file whose release is at most this much below the full retrain; 0.005 is half a point."""

    drop: float


@dataclass(frozen=True, slots=True)
class Budget:
    """The best release whose encoded file has at most so many bytes."""

    bytes: int


Target = Keep | MaxDrop | Budget


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """One point of the curve, measured on the validation split.

    Attributes:
        method: factors | subspace | dense | post-hoc | lossless.
        rank: upper bound of each matrix's rank; None where there is none.
        price: of magnitudes; None where there is none.
        update_bytes: length of the encoded file.
        share: of the full retrain's gain; error is its standard error.
        error: see share.
        accuracy: mean of the metric.
        keeps: it is what was asked for (large enough a share, or small enough a file).
        accuracy_old: mean of the metric on the old domain that is to be kept; None where there is none.
        coefficients: of the subspace; None where there is none.
    """

    method: str
    rank: int | None
    price: float | None
    update_bytes: int
    share: float
    error: float
    accuracy: float
    keeps: bool
    accuracy_old: float | None = None
    coefficients: int | None = None

    @property
    def merit(self) -> float:
        """Return the accuracy on both domains together."""
        return self.accuracy + (self.accuracy_old or 0.0)


class Aim:
    """A target on a given gain: which points meet it, which of two is better, where to look next.

    Args:
        target: what was asked for.
        gain: of the full retrain over the base on the validation split, above 0.

    Raises:
        NothingToLearn: the base itself is close enough to the full retrain already.
    """

    def __init__(self, target: Target, gain: float) -> None:
        self._gain = gain
        self._budget, self._keep = None, 0.0
        match target:
            case Keep(share):
                self._keep = share
            case MaxDrop(drop):
                self._keep = 1 - drop / gain
            case Budget(most):
                self._budget = most
        if isinstance(target, MaxDrop) and target.drop >= gain:
            raise NothingToLearn(
                f"a full retrain gains {100 * gain:.2f} points on the validation split and may lose "
                f"{100 * target.drop:g} of them: the base is good enough already; allow a smaller drop"
            )

    @property
    def budget(self) -> int | None:
        """Return the most bytes; None where a share is aimed at."""
        return self._budget

    def met(self, share: Share, update_bytes: int, loss: Loss | None = None) -> bool:
        """Say whether a point is what was asked for: a share that is proven, or a file that fits and gains.

        With a `loss` on an old domain: the old may lose what the new may stay below the full retrain; with a budget,
        less than the new gains.
        """
        if self._budget is None:
            kept = loss is None or loss.within((1 - self._keep) * self._gain)
            return share.keeps(self._keep) and kept
        return update_bytes <= self._budget and share.value * self._gain > max(0.0, loss.value if loss else 0.0)

    def wants_more_bytes(self, tried: Tried) -> bool:
        """Say on which side of this point the target lies."""
        return not tried.keeps if self._budget is None else tried.update_bytes <= self._budget

    def prefers(self, one: Tried, other: Tried) -> bool:
        """Say whether `one` is better than `other`; both meet the target."""
        if self._budget is None or one.merit == other.merit:
            return one.update_bytes < other.update_bytes
        return one.merit > other.merit

    def unmet(self, curve: Sequence[Tried]) -> BudgetTooSmall:
        """Return the error that no point of `curve` (one or more) fits the budget: it names the smallest found."""
        gaining = [tried for tried in curve if tried.share > 0]
        small = min(gaining or curve, key=lambda tried: tried.update_bytes)
        return BudgetTooSmall(
            f"no update of at most {self._budget} bytes is better than the base; the smallest found has "
            f"{small.update_bytes} bytes and keeps {100 * small.share:.1f} % of the gain on the validation split: "
            "allow more bytes, or more candidates"
        )
