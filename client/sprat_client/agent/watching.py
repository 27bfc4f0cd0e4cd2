"""Watches a new release beside the old one for a machine: in the shadow, then on trial; goes on after a restart."""

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from sprat_client.agent.comparison import LEAST_COMPARED, Comparison
from sprat_client.agent.judgement import brief
from sprat_client.agent.settings import AgentSettings
from sprat_client.agent.shadow import ShadowLimits, judge_shadow
from sprat_client.agent.trial import Limits, Verdict, Watch, judge
from sprat_client.runtime.ports import ModelHost
from sprat_shared.evidence.bounds import percentile
from sprat_shared.protocol.watched import Watched

if TYPE_CHECKING:
    from sprat_client.agent.mirror import Mirror
    from sprat_client.agent.serve import Serving

LOOK_AGAIN_S: Final = 0.05
_KEEP_EVERY_S: Final = 60.0
_COMPARED_ON_TRIAL: Final = 1000  # requests; the old release need not answer all of a long trial


class Watching:
    """One shadow or trial since this start of the agent, added to what was seen before.

    Args:
        serving: whose requests are watched.
        mirror: compares them with the other release's answers; None: there is no other.
        before: seen before the last restart; None: nothing.
        on_trial: whether `serving` is the new release.
    """

    def __init__(self, serving: "Serving", mirror: "Mirror | None", before: Watched | None, *, on_trial: bool) -> None:
        self.serving, self._mirror, self._before = serving, mirror, before or Watched(seconds=0.0)
        self._on_trial = on_trial
        self._begun = self._kept = time.monotonic()
        self._harm_kept = self._harm
        serving.mirror = mirror

    @classmethod
    def shadow(cls, serving: "Serving", new: ModelHost, before: Watched | None) -> "Watching":
        """Let `new` answer in the shadow of what serves."""
        return cls(serving, _mirror(serving.host, new, served=serving.host), before, on_trial=False)

    @classmethod
    def trial(cls, serving: "Serving", before: Watched | None) -> "Watching":
        """Let the old release, which waits to take over, answer beside the one on trial."""
        old, mirror = serving.fallback, None
        if old is not None and old is not serving:
            mirror = _mirror(old.host, serving.host, served=serving.host, most=_COMPARED_ON_TRIAL)
        return cls(serving, mirror, before, on_trial=True)

    def judge_shadow(self, settings: AgentSettings) -> Verdict:
        """Return what the shadow showed so far."""
        limits = ShadowLimits(
            seconds=settings.shadow_s,
            requests=settings.shadow_requests,
            errors=settings.trial_error_limit,
            agreement=settings.validation.min_agreement,
            latency_ratio=settings.validation.max_latency_ratio,
            confidence_drop=settings.max_confidence_drop,
        )
        return judge_shadow(self._seconds, self._seen(), limits)

    def judge_trial(self, settings: AgentSettings) -> Verdict:
        """Return what the trial showed so far."""
        watch = Watch(
            seconds=self._seconds,
            answered=self._before.requests + self.serving.answered,
            failed=self._before.failed + self.serving.failed,
            last_failure=self.serving.last_failure,
            reported=self._before.reported + self.serving.reported,
            last_reported=self.serving.last_reported,
            comparison=self._seen(),
        )
        limits = Limits(
            seconds=settings.trial_s,
            requests=settings.trial_requests,
            errors=settings.trial_error_limit,
            latency_ratio=settings.validation.max_latency_ratio,
            confidence_drop=settings.max_confidence_drop,
        )
        return judge(watch, limits)

    @property
    def _seconds(self) -> float:
        return self._before.seconds + time.monotonic() - self._begun

    def _seen(self) -> Comparison:
        """Return the comparison, over all starts but for the times, which are of this one."""
        seen, before = Comparison() if self._mirror is None else self._mirror.seen(), self._before
        unknown = before.compared and seen.compared < LEAST_COMPARED  # the deviation is not kept: the largest there is
        return replace(
            seen,
            requests=before.requests + seen.requests,
            failed=before.failed + seen.failed,
            last_failure=seen.last_failure or "before the agent restarted",
            dropped=before.dropped + seen.dropped,
            compared=before.compared + seen.compared,
            agreed=before.agreed + seen.agreed,
            old_confidence=_mean(before.old_confidence, before.compared, seen.old_confidence, seen.compared),
            new_confidence=_mean(before.new_confidence, before.compared, seen.new_confidence, seen.compared),
            fall_deviation=1.0 if unknown else seen.fall_deviation,
        )

    def told(self) -> Watched:
        """Return what was seen, for the report and the journal."""
        seen, before, served = self._seen(), self._before, self.serving
        old_p95, new_p95 = percentile(seen.old_times, 0.95), percentile(seen.new_times, 0.95)
        return Watched(
            seconds=round(self._seconds, 3),
            requests=before.requests + served.answered if self._on_trial else seen.requests,
            failed=before.failed + served.failed if self._on_trial else seen.failed,
            reported=before.reported + served.reported if self._on_trial else 0,
            dropped=seen.dropped,
            compared=seen.compared,
            agreed=seen.agreed,
            old_p95_s=before.old_p95_s if old_p95 is None else brief(old_p95),
            new_p95_s=before.new_p95_s if new_p95 is None else brief(new_p95),
            old_confidence=brief(seen.old_confidence) if seen.compared else None,
            new_confidence=brief(seen.new_confidence) if seen.compared else None,
        )

    def must_be_kept(self) -> bool:
        """Return whether to make durable what was seen, so that a restart goes on from there: at harm, and at times."""
        due = self._harm != self._harm_kept or time.monotonic() - self._kept > _KEEP_EVERY_S
        if due:
            self._kept, self._harm_kept = time.monotonic(), self._harm
        return due

    @property
    def _harm(self) -> int:
        return self.serving.failed + self.serving.reported if self._on_trial else self._seen().failed

    def close(self) -> None:
        """Let nothing be compared any more."""
        self.serving.mirror = None
        if self._mirror is not None:
            self._mirror.close()


def _mean(before: float | None, many_before: int, now: float, many: int) -> float:
    return ((before or 0.0) * many_before + now * many) / max(1, many_before + many)


def _mirror(old: ModelHost, new: ModelHost, *, served: ModelHost, most: int | None = None) -> "Mirror":
    from sprat_client.agent.mirror import Mirror  # noqa: PLC0415  # numpy, which was loaded with the two releases

    return Mirror(old, new, served=served, most=most)
