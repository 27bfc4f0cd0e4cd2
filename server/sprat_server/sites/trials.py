"""Whether a task does worse by the modules of a new plan than by those that serve: paired, on labelled samples. Pure.

As on devices (`sprat_client.agent.judgement`): only the samples that both differ on can speak; were both equally good,
each would be as likely lost as won (McNemar, Psychometrika 12, 1947, in the exact form).
"""

from dataclasses import dataclass
from typing import Any, Final

from sprat_shared.evidence.bounds import at_most

ALPHA: Final = 0.05
LARGE_DROP: Final = 0.1
LARGE_DROP_SAMPLES: Final = 10
"""Of so many samples or more lost, net of those won, so large a share refuses without significance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What a task's samples said.

    Attributes:
        task: name of it.
        samples: that were answered.
        new_correct: by the plan's modules.
        old_correct: by those of the plan that serves; None: there was none to compare with.
        only_old: samples that only the old ones had right,
        only_new: and only the new ones.
        tolerance: share of the samples that may be lost.
    """

    task: str
    samples: int
    new_correct: int
    old_correct: int | None = None
    only_old: int = 0
    only_new: int = 0
    tolerance: float = 0.0

    @property
    def p_worse(self) -> float:
        """Return the chance of so many losses among those that differ, were both equally good."""
        return at_most(self.only_new, self.only_old + self.only_new, 0.5)

    @property
    def refused(self) -> str | None:
        """Return why a plan is refused for this task; None: it may be applied."""
        lost = self.only_old - self.only_new
        drop = lost / self.samples
        counts = f"{self.only_old} samples lost, {self.only_new} won of {self.samples}"
        if drop > self.tolerance and self.p_worse < ALPHA:
            return f"it is worse: {counts} (p = {self.p_worse:.2g})"
        if drop > LARGE_DROP and lost >= LARGE_DROP_SAMPLES:
            return f"it is much worse: {counts}"
        return None

    def as_json(self) -> dict[str, Any]:
        """Return what is kept of it."""
        return {
            "task": self.task,
            "samples": self.samples,
            "new_correct": self.new_correct,
            "old_correct": self.old_correct,
            "only_old": self.only_old,
            "only_new": self.only_new,
            "p_worse": self.p_worse,
        }
