"""Whether a release that answered in the shadow may be tried: a pure decision on how its answers compared."""

from dataclasses import dataclass

from sprat_client.agent.comparison import Comparison
from sprat_client.agent.trial import GoOn, Healthy, Unhealthy, Verdict
from sprat_shared.evidence.bounds import highest_share, is_slower

_HOPELESS = 0.999  # confidence that ends the shadow before its time: it is looked at often


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowLimits:
    """What a shadow may show.

    Attributes:
        seconds: after which it ends, or
        requests: compared ones, whichever comes first; None: by time alone.
        errors: requests on which only the new release failed, that end it.
        agreement: least share of samples with the same class on top; None: not judged.
        latency_ratio: of new to old 95th percentiles; None: not judged.
        confidence_drop: by which the mean top probability may fall; None: not judged.
    """

    seconds: float
    requests: int | None = None
    errors: int = 1
    agreement: float | None = None
    latency_ratio: float | None = None
    confidence_drop: float | None = None


def judge_shadow(seconds: float, seen: Comparison, limits: ShadowLimits) -> Verdict:
    """Return what a shadow of so many seconds, over all starts of the agent, showed."""
    if seen.failed >= limits.errors:
        return Unhealthy(
            "shadow.errors",
            f"{seen.failed} of {seen.requests} requests that the old release answered failed in the shadow: "
            f"{seen.last_failure}",
        )
    over = seconds >= limits.seconds or (limits.requests is not None and seen.requests >= limits.requests)
    if limits.agreement is not None and seen.compared and _disagrees(seen, limits.agreement, over=over):
        return Unhealthy(
            "shadow.disagrees",
            f"{seen.agreed} of {seen.compared} answers in the shadow were those of the old release; "
            f"{limits.agreement:g} of them are asked for",
        )
    if limits.latency_ratio is not None and is_slower(seen.new_times, seen.old_times, limits.latency_ratio):
        return Unhealthy(
            "shadow.slow", f"its slowest answers took more than {limits.latency_ratio:g} times those of the old release"
        )
    if limits.confidence_drop is not None and seen.is_less_sure(limits.confidence_drop):
        return Unhealthy(
            "shadow.unsure",
            f"its mean confidence in the shadow is {seen.new_confidence:.3f}, the old release's on the same "
            f"{seen.compared} samples {seen.old_confidence:.3f}; it may fall by {limits.confidence_drop:g}",
        )
    return Healthy() if over else GoOn(limits.seconds - seconds)


def _disagrees(seen: Comparison, least: float, *, over: bool) -> bool:
    if over:
        return seen.agreed < least * seen.compared
    return highest_share(seen.agreed, seen.compared, confidence=_HOPELESS) < least
