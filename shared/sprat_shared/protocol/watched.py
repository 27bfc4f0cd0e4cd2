"""What a device saw of a release in its shadow or on trial, as its report says it: counts, percentiles, no samples."""

import math
from dataclasses import dataclass, fields
from typing import Any

from sprat_shared.errors import InvalidInput
from sprat_shared.protocol.fields import Fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """One shadow or trial. What is not known, or is nothing, is left out of the report.

    Attributes:
        seconds: it took, over all starts of the agent.
        requests: in the shadow those that both releases were asked; on trial those that the new one answered.
        failed: on which only the new release failed.
        reported: errors that applications reported of its answers.
        dropped: requests that were not compared because there was no time.
        compared: samples whose answers were compared with the old release's, and
        agreed: samples of these with the same class on top.
        old_p95_s: 95th percentile of the old release's seconds on the same inputs, and
        new_p95_s: of the new one's.
        old_confidence: mean top probability of the old release on the same samples, and
        new_confidence: of the new one.
    """

    seconds: float
    requests: int = 0
    failed: int = 0
    reported: int = 0
    dropped: int = 0
    compared: int = 0
    agreed: int = 0
    old_p95_s: float | None = None
    new_p95_s: float | None = None
    old_confidence: float | None = None
    new_confidence: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        said = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: value for name, value in said.items() if name in {"seconds", "requests"} or value}

    @classmethod
    def of(cls, value: Any, where: str) -> "Watched":
        """Read the JSON object.

        Raises:
            InvalidInput: a field is missing or wrong, or the counts contradict each other.
        """
        said = Fields(value, where)
        watched = cls(
            seconds=positive(said, "seconds", where) or 0.0,
            requests=said.integer("requests"),
            **{
                name: said.integer(name)
                for name in ("failed", "reported", "dropped", "compared", "agreed")
                if said.has(name)
            },
            old_p95_s=positive(said, "old_p95_s", where),
            new_p95_s=positive(said, "new_p95_s", where),
            old_confidence=share(said, "old_confidence", where),
            new_confidence=share(said, "new_confidence", where),
        )
        if watched.agreed > watched.compared:
            raise InvalidInput(f"{where}: more samples agreed than the {watched.compared} that were compared")
        return watched


def positive(said: Fields, name: str, where: str) -> float | None:
    """Return a number that is finite and not negative, or None where the field is not there."""
    if not said.has(name):
        return None
    value = said.number(name)
    if not math.isfinite(value) or value < 0:
        raise InvalidInput(f"{where}: field {name!r} must be finite and not negative")
    return value


def share(said: Fields, name: str, where: str) -> float | None:
    """Return a number from 0 to 1, or None where the field is not there."""
    value = positive(said, name, where)
    if value is not None and value > 1:
        raise InvalidInput(f"{where}: field {name!r} must be 0 to 1")
    return value
