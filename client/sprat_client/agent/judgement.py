"""What paired validation concludes: only the samples that old and new release differ on can speak. Pure.

If both were equally good, each discordant sample would be as likely lost as won, so the number of losses is binomial
with 1/2 and its tail is exact (McNemar, Psychometrika 12, 1947, in the exact form). A release is refused
- when it loses significantly and by more than a tolerance: neither a harmless significant trifle of a large holdout
  nor the noise of a small one refuses a good update;
- when it loses very much, even where the samples are too few for significance.
"""

import math
from typing import Final

from sprat_client.agent.settings import ValidationSettings
from sprat_shared.errors import UpdateRejected
from sprat_shared.protocol.report import Evidence

NOTHING_SEEN: Final = Evidence(
    samples=0,
    old_correct=None,
    new_correct=0,
    only_old=0,
    only_new=0,
    p_worse=1.0,
    old_latency_s=None,
    new_latency_s=0.0,
)


class ValidationRefused(UpdateRejected):
    """The new release is worse than the old one on this device, or gives no usable answers."""

    code = "validation.worse"

    def __init__(self, message: str, *, code: str | None = None, evidence: Evidence | None = None) -> None:
        super().__init__(message, code=code)
        self.evidence = evidence


def tail(losses: int, discordant: int) -> float:
    """Return the exact probability of at least `losses` heads in `discordant` fair throws."""
    return float(sum(math.comb(discordant, k) for k in range(losses, discordant + 1)) / 2**discordant)


def brief(value: float) -> float:
    """Return a number with the four digits that a report is worth."""
    return float(f"{value:.4g}")


def judge(*, samples: int, only_old: int, only_new: int, settings: ValidationSettings) -> str | None:
    """Return why the new release is refused, or None where it may be kept.

    Args:
        samples: all samples.
        only_old: samples that only the old release had right.
        only_new: samples that only the new one had right.
        settings: thresholds.
    """
    lost = only_old - only_new
    drop = lost / samples
    p_worse = tail(only_old, only_old + only_new)
    counts = f"{only_old} samples lost, {only_new} won of {samples}"
    if drop > settings.tolerance and p_worse < settings.alpha:
        return f"it is worse: {counts} (p = {p_worse:.2g})"
    if drop > settings.large_drop and lost >= settings.large_drop_samples:
        return f"it is much worse: {counts}"
    return None
