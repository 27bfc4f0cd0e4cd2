"""Counts of requests by model and release: for `/metrics`, and whoever watches."""

import bisect
import threading
from dataclasses import dataclass, field
from typing import Final

BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_RELEASES_KEPT: Final = 8  # of each model: series of what is long gone would pile up


@dataclass(slots=True)
class Counts:
    """Of one release since the agent started.

    Attributes:
        answered: requests.
        failed: requests on which the model failed.
        reported: errors that applications reported.
        seconds: of all answers together.
        buckets: answers by their seconds, the last one above the highest bound.
    """

    answered: int = 0
    failed: int = 0
    reported: int = 0
    seconds: float = 0.0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))


class Meter:
    """Counts what happens; may be called from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._releases: dict[str, dict[int, Counts]] = {}
        self._swaps: dict[str, int] = {}
        self._total = 0

    def answered(self, model: str, release: int, seconds: float) -> None:
        """Count an answer that took so long."""
        with self._lock:
            counts = self._of(model, release)
            self._total += 1
            counts.answered += 1
            counts.seconds += seconds
            counts.buckets[bisect.bisect_left(BUCKETS_S, seconds)] += 1

    def failed(self, model: str, release: int) -> None:
        """Count a request on which the model failed."""
        with self._lock:
            self._total += 1
            self._of(model, release).failed += 1

    def reported(self, model: str, release: int) -> None:
        """Count an error that an application reported; of a release that never answered nothing is kept."""
        with self._lock:
            known = self._releases.get(model, {}).get(release)
            if known is not None:
                known.reported += 1

    def swapped(self, model: str) -> None:
        """Count that another release serves now."""
        with self._lock:
            self._swaps[model] = self._swaps.get(model, 0) + 1

    @property
    def total(self) -> int:
        """Return how many requests to any model were answered, or failed, so far."""
        return self._total

    def counts(self) -> list[tuple[str, int, Counts]]:
        """Return model, release and a copy of its counts."""
        with self._lock:
            return [
                (model, release, Counts(one.answered, one.failed, one.reported, one.seconds, list(one.buckets)))
                for model, releases in sorted(self._releases.items())
                for release, one in sorted(releases.items())
            ]

    def swaps(self) -> dict[str, int]:
        """Return how often another release began to serve, by model."""
        with self._lock:
            return dict(self._swaps)

    def _of(self, model: str, release: int) -> Counts:
        releases = self._releases.setdefault(model, {})
        counts = releases.pop(release, None) or Counts()
        releases[release] = counts  # the newest is the last
        while len(releases) > _RELEASES_KEPT:
            del releases[next(iter(releases))]
        return counts
