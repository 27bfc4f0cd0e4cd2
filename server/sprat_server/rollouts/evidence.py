"""What gates judge: who was offered a release and what each reported, in commit order. No clock, no database."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from sprat_shared.errors import InvalidInput

CODE: Final = "gates.bad-evidence"
_MOST_LOG: Final = 1e6  # of a loss: far beyond what any clip leaves

Segment: TypeAlias = str
"""One value of one kind of segment, such as `profile=cam-a` or `site=plant-3`."""


def kind_of(segment: Segment) -> str:
    """Return the kind of a segment: what stands before the equals sign."""
    return segment.partition("=")[0]


def log_ratio(new: float | None, old: float | None) -> float | None:
    """Return the natural logarithm of `new / old`, rounded to a millionth; None unless both are positive and finite.

    A logarithm's last bit differs between C libraries. Rounded once, stored, and read back, it is the same everywhere.
    """
    if new is None or old is None or not (math.isfinite(new) and math.isfinite(old) and new > 0 and old > 0):
        return None
    return round(math.log(new) - math.log(old), 6)


@dataclass(frozen=True, slots=True)
class Exposed:
    """A device was offered the release.

    Attributes:
        device: its id.
        segments: one of each kind that it belongs to.
    """

    device: str
    segments: tuple[Segment, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {"exposed": self.device, "segments": list(self.segments)}


@dataclass(frozen=True, slots=True)
class Reported:
    """How a device's update ended: its one word on this release.

    Attributes:
        device: its id.
        failed: it refused, rolled back, could not, or was silent past the timeout.
        lost: it was silent past the timeout; implies failed.
        losses: metric to loss, the more the worse: `accuracy` is old minus new share of right answers on the same
            samples (-1 to 1), latencies are log ratios of new to old. What a device could not measure is left out.
    """

    device: str
    failed: bool
    losses: Mapping[str, float] = field(default_factory=dict)
    lost: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be judged."""
        if self.lost and not self.failed:
            raise InvalidInput(f"device {self.device} is lost, which is a failure", code=CODE)
        for metric, loss in self.losses.items():
            if not math.isfinite(loss) or abs(loss) > (1.0 if metric == "accuracy" else _MOST_LOG):
                raise InvalidInput(f"device {self.device}: {metric} cannot be {loss!r}", code=CODE)

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        said: dict[str, Any] = {"reported": self.device, "failed": self.failed, "losses": dict(self.losses)}
        return said | ({"lost": True} if self.lost else {})


@dataclass(frozen=True, slots=True)
class Left:
    """A device that was offered the release was revoked before it reported: it counts no more."""

    device: str

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {"left": self.device}


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A person holds the failures so far against the release no more (ADR 46)."""

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {"acknowledged": True}


Event: TypeAlias = Exposed | Reported | Left | Acknowledged


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything that a rollout's gate may look at.

    Attributes:
        cohort: segment to how many devices of the whole cohort it has, known when the rollout starts: the total
            false-alarm rate is split before the first report.
        events: in the order of their commits.
        next_reach: devices that will have the release with the next wave; None: no further wave waits.

    Raises:
        InvalidInput: a device is exposed twice, reports twice or without being exposed, or is of a segment that
            the cohort does not have.
    """

    cohort: Mapping[Segment, int]
    events: Sequence[Event]
    next_reach: int | None = None

    def __post_init__(self) -> None:
        """Check the order of events."""
        exposed: set[str] = set()
        reported: set[str] = set()
        for event in self.events:
            if isinstance(event, Acknowledged):
                continue
            if isinstance(event, Exposed):
                _once(event.device, exposed, "was exposed twice")
                if unknown := set(event.segments) - set(self.cohort):
                    raise InvalidInput(f"device {event.device} is of {min(unknown)}, which the cohort lacks", code=CODE)
                continue
            if event.device not in exposed:
                raise InvalidInput(f"device {event.device} reported before it was exposed, or left", code=CODE)
            if isinstance(event, Left):
                _once(event.device, reported, "reported, and cannot leave")
                continue
            _once(event.device, reported, "reported twice on one release")

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            "cohort": dict(self.cohort),
            "events": [event.as_json() for event in self.events],
            "next_reach": self.next_reach,
        }

    @classmethod
    def of(cls, value: Any) -> "Evidence":
        """Read what `as_json` wrote.

        Raises:
            InvalidInput: a field is missing or wrong, or the order is.
        """
        said = _object(value, "evidence")
        cohort, events, reach = _object(said.get("cohort"), "cohort"), said.get("events"), said.get("next_reach")
        if not isinstance(events, list):
            raise InvalidInput("evidence: field 'events' must be a list", code=CODE)
        if not (reach is None or _is_count(reach)) or not all(map(_is_count, cohort.values())):
            raise InvalidInput("evidence: cohort and next_reach are counts of devices, from 1", code=CODE)
        return cls(cohort=dict(cohort), events=tuple(event_of(one) for one in events), next_reach=reach)


def _once(device: str, seen: set[str], what: str) -> None:
    if device in seen:
        raise InvalidInput(f"device {device} {what}; a gate hears each device once", code=CODE)
    seen.add(device)


def event_of(value: Any) -> Event:
    """Read what an event's `as_json` wrote.

    Raises:
        InvalidInput: a field is missing or wrong.
    """
    said = _object(value, "event")
    if "acknowledged" in said:
        return Acknowledged()
    if "left" in said:
        return Left(_text(said["left"]))
    if "exposed" in said:
        segments = said.get("segments", [])
        if not isinstance(segments, list):
            raise InvalidInput("event: field 'segments' must be a list of texts", code=CODE)
        return Exposed(_text(said["exposed"]), tuple(_text(one) for one in segments))
    failed, lost, losses = said.get("failed"), said.get("lost", False), _object(said.get("losses"), "losses")
    if not isinstance(failed, bool) or not isinstance(lost, bool):
        raise InvalidInput("event: fields 'failed' and 'lost' must be true or false", code=CODE)
    for metric, loss in losses.items():
        if not isinstance(loss, int | float) or isinstance(loss, bool):
            raise InvalidInput(f"event: loss of {metric!r:.60} must be a number, got {loss!r:.60}", code=CODE)
    measured = {str(metric): float(loss) for metric, loss in losses.items()}
    return Reported(_text(said.get("reported")), failed=failed, losses=measured, lost=lost)


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidInput(f"evidence: {where} must be an object, got {type(value).__name__}", code=CODE)
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidInput(f"event: devices and segments are texts, got {value!r:.60}", code=CODE)
    return value


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
