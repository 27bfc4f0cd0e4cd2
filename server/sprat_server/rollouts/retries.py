"""What kind of failure a device had, and whether it is asked again before that counts. Pure.

What can pass by itself (a link, a disk, a busy machine) is tried again later. What says something of the release (it
was refused, rolled back, or could not be rebuilt) counts at once, and so does silence.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final

from sprat_shared.errors import InvalidInput

CODE: Final = "rollout.bad-retries"
_FIRST_WAIT_S: Final = 600.0
_MOST_WAIT_S: Final = 6 * 3600.0
_MOST_RETRIES: Final = 20


class Failure(StrEnum):
    """Why a device does not have the release."""

    LINK = "link"  # what it needed could not be fetched
    DISK = "disk"  # no room, or the disk failed
    BUSY = "busy"  # no memory, no time, restarts: the device had other things to do
    REFUSED = "refused"  # verification, rebuild or validation said no
    ROLLED_BACK = "rolled_back"  # it served on trial and went back
    SILENCE = "silence"  # nothing was heard of it for too long
    OTHER = "other"


# Failures that may pass, by the code that the device gave: exact, or all that begins with it where it ends in a dot.
_PASSING: Final = (
    ("link.", Failure.LINK),
    ("fetch.", Failure.LINK),
    ("trust.incomplete", Failure.LINK),
    ("disk.", Failure.DISK),
    ("store.corrupted", Failure.DISK),
    ("memory.short", Failure.BUSY),
    ("agent.busy", Failure.BUSY),
    ("agent.deadline", Failure.BUSY),
    ("agent.gave-up", Failure.BUSY),
    ("try-later", Failure.BUSY),
)
_BY_OUTCOME: Final = MappingProxyType({"refused": Failure.REFUSED, "rolled_back": Failure.ROLLED_BACK})
# What speaks of the model's answers, time or memory on this device's own data, and what only begins like it.
_OF_THE_MODEL: Final = ("validation.", "shadow.", "trial.", "sharing.", "runtime.not-loadable")
_OF_THE_DEVICE: Final = frozenset({"validation.too-few", "shadow.cut-too-often", "trial.cut-too-often"})
DRIFTED: Final = "sharing.drifted"
"""The code of a device whose guard took a release back that it had committed: it left what it was made from."""
RETRIED: Final = (Failure.LINK, Failure.DISK, Failure.BUSY)
"""The classes that can be tried again."""


@dataclass(frozen=True, slots=True)
class Retries:
    """How often a device is asked again after a failure of a class, before it counts as failed.

    Attributes:
        most: by class.
        first_wait_s: seconds before the first retry; each further wait is twice as long, six hours at most.
    """

    most: Mapping[Failure, int] = field(
        default_factory=lambda: {Failure.LINK: 3, Failure.DISK: 2, Failure.BUSY: 2},
    )
    first_wait_s: float = _FIRST_WAIT_S

    def wait_s(self, failure: Failure, before: int) -> float | None:
        """Return after how many seconds a device is asked again that was retried so often before; None: it failed."""
        if before >= self.most.get(failure, 0):
            return None
        return min(self.first_wait_s * 2.0**before, max(_MOST_WAIT_S, self.first_wait_s))

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {**{one.value: self.most.get(one, 0) for one in RETRIED}, "first_wait_s": self.first_wait_s}

    @classmethod
    def of(cls, value: Any) -> "Retries":
        """Read a JSON object; a class that is not said keeps its default.

        Raises:
            InvalidInput: a class cannot be retried or is not known, or a number is out of bounds.
        """
        if not isinstance(value, Mapping):
            raise InvalidInput(f"retries: expected an object such as {{link: 3}}, got {value!r:.60}", code=CODE)
        known = {one.value for one in RETRIED}
        if unknown := sorted(str(name) for name in set(value) - known - {"first_wait_s"}):
            raise InvalidInput(
                f"retries: {unknown[0]!r:.40} is not retried; {', '.join(sorted(known))} and first_wait_s are",
                code=CODE,
            )
        first = value.get("first_wait_s", _FIRST_WAIT_S)
        if isinstance(first, bool) or not isinstance(first, int | float) or not 1 <= first <= 7 * 86400:
            raise InvalidInput(f"retries: first_wait_s must be 1 s to a week, got {first!r:.40}", code=CODE)
        most = dict(cls().most)
        for name in known & set(value):
            count = value[name]
            if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= _MOST_RETRIES:
                raise InvalidInput(f"retries: {name} must be 0 to {_MOST_RETRIES}, got {count!r:.40}", code=CODE)
            most[Failure(name)] = count
        return cls(most, float(first))


def class_of(outcome: str, code: str | None) -> Failure:
    """Return the class of a failure that a device reported.

    Args:
        outcome: `refused`, `rolled_back` or `failed`, or anything else that left the device without the release.
        code: of the error that it gave.
    """
    if outcome in _BY_OUTCOME:
        return _BY_OUTCOME[outcome]
    for start, failure in _PASSING:
        if code is not None and (code == start or (start.endswith(".") and code.startswith(start))):
            return failure
    return Failure.OTHER


def judges_the_model(outcome: str, code: str | None) -> bool:
    """Say whether a device refused or left a release for how it does there, and not for what else went wrong.

    Args:
        outcome: that the device reported.
        code: of the error that it gave.
    """
    return outcome in _BY_OUTCOME and code is not None and code.startswith(_OF_THE_MODEL) and code not in _OF_THE_DEVICE
