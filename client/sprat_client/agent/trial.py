"""Whether a release on trial stays: a pure decision on what was watched while it served."""

from dataclasses import dataclass, field

from sprat_client.agent.comparison import Comparison
from sprat_shared.evidence.bounds import is_slower


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """What was seen of a release while it served.

    Attributes:
        seconds: since its trial began, over all starts of the agent.
        answered: requests that it answered.
        failed: requests on which it failed, or gave NaN or Inf.
        last_failure: the newest one's message.
        reported: errors that applications reported of its answers.
        last_reported: the newest one's text.
        comparison: with the old release, which answers the same requests unserved; empty where there is none.
    """

    seconds: float
    answered: int = 0
    failed: int = 0
    last_failure: str = ""
    reported: int = 0
    last_reported: str = ""
    comparison: Comparison = field(default_factory=Comparison)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a trial may show.

    Attributes:
        seconds: without harm, after which the release is healthy, or
        requests: answered, whichever comes first.
        errors: failures and reported errors together that end it.
        latency_ratio: of new to old 95th percentiles; None: not judged.
        confidence_drop: by which the mean top probability may fall; None: not judged.
    """

    seconds: float
    requests: int
    errors: int = 1
    latency_ratio: float | None = None
    confidence_drop: float | None = None


@dataclass(frozen=True, slots=True)
class Healthy:
    """It showed no harm for long enough."""


@dataclass(frozen=True, slots=True)
class Unhealthy:
    """It did harm.

    Attributes:
        code: public code,
        why: the sentence for people.
    """

    code: str
    why: str


@dataclass(frozen=True, slots=True)
class GoOn:
    """Nothing is decided.

    Attributes:
        left_s: until time alone decides.
    """

    left_s: float


Verdict = Healthy | Unhealthy | GoOn


def judge(watch: Watch, limits: Limits) -> Verdict:
    """Return what a trial showed. Harm is looked at before its end: the last request counts like the first."""
    if watch.failed + watch.reported >= limits.errors:
        if watch.failed >= watch.reported:
            return Unhealthy("trial.errors", f"{watch.failed} requests failed on trial: {watch.last_failure}")
        return Unhealthy(
            "trial.reported", f"applications reported {watch.reported} errors on trial: {watch.last_reported}"
        )
    seen = watch.comparison
    if limits.latency_ratio is not None and is_slower(seen.new_times, seen.old_times, limits.latency_ratio):
        return Unhealthy(
            "trial.slow", f"its slowest answers took more than {limits.latency_ratio:g} times those of the old release"
        )
    if limits.confidence_drop is not None and seen.is_less_sure(limits.confidence_drop):
        return Unhealthy(
            "trial.unsure",
            f"its mean confidence is {seen.new_confidence:.3f}, the old release's on the same {seen.compared} samples "
            f"{seen.old_confidence:.3f}; it may fall by {limits.confidence_drop:g}",
        )
    if watch.seconds >= limits.seconds or watch.answered >= limits.requests:
        return Healthy()
    return GoOn(limits.seconds - watch.seconds)
