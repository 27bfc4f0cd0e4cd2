"""What two releases answered to the same requests, in numbers: what shadow and trial are judged by. Pure."""

import math
from dataclasses import dataclass
from typing import Final

LEAST_COMPARED: Final = 30  # of fewer samples a mean says too little
_DEVIATIONS: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The old and the new release on the same requests.

    Attributes:
        requests: that both releases answered, or on which only the one that did not serve failed.
        failed: requests of these on which only that one failed, or gave NaN or Inf.
        last_failure: the newest one's message.
        dropped: requests that were not compared because there was no time.
        compared: samples whose answers could be compared: those of models that answer (batch, classes).
        agreed: samples of these with the same class on top.
        old_confidence: mean top probability of the old release over the compared samples, and
        new_confidence: of the new one.
        fall_deviation: standard deviation of the fall of confidence, sample by sample.
        old_times: seconds of the old release, both timed in turn on the same inputs, and
        new_times: of the new one.
    """

    requests: int = 0
    failed: int = 0
    last_failure: str = ""
    dropped: int = 0
    compared: int = 0
    agreed: int = 0
    old_confidence: float = 0.0
    new_confidence: float = 0.0
    fall_deviation: float = 0.0
    old_times: tuple[float, ...] = ()
    new_times: tuple[float, ...] = ()

    def is_less_sure(self, max_drop: float) -> bool:
        """Return whether the mean top probability fell by more than `max_drop`, beyond twice its standard error."""
        if self.compared < LEAST_COMPARED:
            return False
        error = self.fall_deviation / math.sqrt(self.compared)
        return self.old_confidence - self.new_confidence - _DEVIATIONS * error > max_drop
