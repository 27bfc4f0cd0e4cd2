"""What an operator asks of a device beside the release: when it may work, how it judges a release, how it tries it.

The director signs it with the assignment (`assignments.Assigned.policy`), so that nobody on the way can loosen it. A
value that is not said is the agent's own setting; a policy that says nothing takes no bytes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from sprat_shared.errors import InvalidInput

CODE: Final = "policy.invalid"
_DAYS: Final = 7
_MINUTES: Final = 24 * 60
_TOO_FEW: Final = ("accept", "refuse")


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A stretch of the day in which something may happen.

    Attributes:
        start: minute of the day, 0 to 1439, and
        end: likewise; one that is not after `start` is of the next day.
        days: on which it starts, 0 (Monday) to 6; empty: on every day.
        local: whether the minutes are of the device's time zone, and not UTC.
    """

    start: int
    end: int
    days: tuple[int, ...] = ()
    local: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        said: dict[str, Any] = {"from": _clock(self.start), "to": _clock(self.end)}
        if self.days:
            said["days"] = list(self.days)
        return said | ({"local": True} if self.local else {})

    @classmethod
    def of(cls, value: Any) -> "Window":
        """Read the JSON object; InvalidInput says what is wrong."""
        said = _object(value, "window", {"from", "to", "days", "local"})
        days = said.get("days", [])
        if not isinstance(days, list) or any(not _is_whole(day) or not 0 <= day < _DAYS for day in days):
            raise InvalidInput(f"policy: days {days!r:.80} of a window must be a list of 0 (Monday) to 6", code=CODE)
        return cls(
            start=_minute(said.get("from")),
            end=_minute(said.get("to")),
            days=tuple(sorted(set(days))),
            local=_flag(said.get("local", False), "local"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Under which conditions a device may do something; all must hold, and one of the windows, where there are any.

    Attributes:
        unmetered: its link is not paid by the byte.
        charging: it runs on mains, or its battery is being charged.
        idle: nobody asks its models just now.
        windows: when.
    """

    unmetered: bool = False
    charging: bool = False
    idle: bool = False
    windows: tuple[Window, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object, without what is not wanted."""
        said: dict[str, Any] = {name: True for name in ("unmetered", "charging", "idle") if getattr(self, name)}
        return said | ({"windows": [window.as_json() for window in self.windows]} if self.windows else {})

    @classmethod
    def of(cls, value: Any) -> "Wanted":
        """Read the JSON object; InvalidInput says what is wrong."""
        said = _object(value, "conditions", {"unmetered", "charging", "idle", "windows"})
        windows = said.get("windows", [])
        if not isinstance(windows, list):
            raise InvalidInput(f"policy: windows {windows!r:.80} must be a list", code=CODE)
        return cls(
            unmetered=_flag(said.get("unmetered", False), "unmetered"),
            charging=_flag(said.get("charging", False), "charging"),
            idle=_flag(said.get("idle", False), "idle"),
            windows=tuple(Window.of(window) for window in windows),
        )


# Bounds of the numbers: lowest, highest, whether it must be whole.
_NUMBERS: Final[Mapping[str, tuple[float, float, bool]]] = {
    "daily_bytes": (1024, 2**53, True),
    "alpha": (0.0, 0.5, False),
    "tolerance": (0.0, 1.0, False),
    "min_samples": (0, 10**9, True),
    "max_latency_ratio": (1.0, 1e6, False),
    "max_memory_ratio": (1.0, 1e6, False),
    "min_agreement": (0.0, 1.0, False),
    "max_confidence_drop": (0.0, 1.0, False),
    "shadow_s": (0.0, 90 * 86400.0, False),
    "shadow_requests": (1, 10**9, True),
    "trial_s": (0.0, 90 * 86400.0, False),
    "trial_requests": (1, 10**9, True),
    "trial_errors": (1, 10**9, True),
    "attempts": (1, 1000, True),
}


_FRACTIONS: Final = frozenset(name for name, (_, _, whole) in _NUMBERS.items() if not whole)


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePolicy:
    """One policy. None: the agent's own setting.

    Attributes:
        fetch: when payloads may be fetched.
        activate: when a release that was rebuilt may be validated and tried.
        daily_bytes: body bytes that may be read in one day (UTC), over all models.
        alpha: level of the exact test on the holdout.
        tolerance: fall of accuracy that is accepted, as a share of the samples.
        min_samples: with fewer holdout samples the comparison is too weak to count, and
        too_few: says what is done then: `accept` the release, marked as unproven, or `refuse` it.
        max_latency_ratio: of new to old 95th percentiles.
        max_memory_ratio: of new to old bytes of a loaded release.
        min_agreement: share of unlabelled inputs on which old and new must agree, in validation without labels and
            in shadow mode.
        max_confidence_drop: by which the mean top probability may fall, in shadow mode and in the trial.
        shadow_s: how long the new release answers beside the old one, unserved, before its trial, or
        shadow_requests: how many requests, whichever comes first.
        trial_s: how long a trial without harm lasts, or
        trial_requests: how many requests, whichever comes first.
        trial_errors: so many errors end a trial, and the old release serves again.
        attempts: failures of one release on one device before it is not tried any more.
    """

    fetch: Wanted = field(default_factory=Wanted)
    activate: Wanted = field(default_factory=Wanted)
    daily_bytes: int | None = None
    alpha: float | None = None
    tolerance: float | None = None
    min_samples: int | None = None
    too_few: str | None = None
    max_latency_ratio: float | None = None
    max_memory_ratio: float | None = None
    min_agreement: float | None = None
    max_confidence_drop: float | None = None
    shadow_s: float | None = None
    shadow_requests: int | None = None
    trial_s: float | None = None
    trial_requests: int | None = None
    trial_errors: int | None = None
    attempts: int | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object, without what is not said."""
        said: dict[str, Any] = {}
        for name in (one.name for one in fields(self)):
            value = getattr(self, name)
            value = value.as_json() if isinstance(value, Wanted) else value
            if value not in (None, {}):
                said[name] = int(value) if isinstance(value, float) and value.is_integer() else value
        return said

    def as_signed(self) -> dict[str, Any]:
        """Return the JSON object as it is signed: canonical JSON has no fractions, so they stand as decimal text."""
        return {name: repr(value) if isinstance(value, float) else value for name, value in self.as_json().items()}

    @classmethod
    def of(cls, value: Any) -> "DevicePolicy":
        """Read the JSON object. An unknown key is an error: a policy that is half understood protects nobody.

        Raises:
            InvalidInput: a key is unknown, or a value is not of its kind or range.
        """
        said = _object(value, "policy", {one.name for one in fields(cls)})
        too_few = said.get("too_few")
        if too_few is not None and too_few not in _TOO_FEW:
            raise InvalidInput(f"policy: too_few {too_few!r:.40} must be one of {', '.join(_TOO_FEW)}", code=CODE)
        numbers = {name: _number(name, said.get(name)) for name in _NUMBERS}
        return cls(
            fetch=Wanted.of(said.get("fetch", {})),
            activate=Wanted.of(said.get("activate", {})),
            too_few=too_few,
            **numbers,
        )

    @classmethod
    def of_signed(cls, value: Any) -> "DevicePolicy":
        """Read the JSON object as it is signed (`as_signed`); InvalidInput as `of`."""
        if not isinstance(value, Mapping):
            return cls.of(value)
        return cls.of({name: _fraction(said) if name in _FRACTIONS else said for name, said in value.items()})


def _fraction(said: Any) -> Any:
    try:
        return float(said) if isinstance(said, str) else said
    except ValueError:
        return said


def _number(name: str, value: Any) -> Any:
    if value is None:
        return None
    low, high, whole = _NUMBERS[name]
    is_number = _is_whole(value) or (not whole and isinstance(value, float) and math.isfinite(value))
    if not is_number or not low <= value <= high:
        kind = "a whole number" if whole else "a number"
        raise InvalidInput(f"policy: {name} must be {kind} from {low:g} to {high:g}, got {value!r:.40}", code=CODE)
    return value if whole else float(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidInput(f"policy: {name} must be true or false, got {value!r:.40}", code=CODE)
    return value


def _object(value: Any, what: str, known: set[str]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidInput(f"policy: {what} must be a JSON object, got {value!r:.80}", code=CODE)
    if unknown := sorted(str(name) for name in value.keys() - known):
        raise InvalidInput(
            f"policy: {what} has no {unknown[0]!r:.40}; it may have {', '.join(sorted(known))}", code=CODE
        )
    return value


def _minute(value: Any) -> int:
    try:
        hours, minutes = (int(part) for part in value.split(":"))
    except (AttributeError, ValueError):
        hours, minutes = -1, 0
    if not 0 <= hours < _MINUTES // 60 or not 0 <= minutes < 60:  # noqa: PLR2004 - minutes of an hour
        raise InvalidInput(f"policy: {value!r:.40} is no time of day; write HH:MM, 00:00 to 23:59", code=CODE)
    return hours * 60 + minutes


def _clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"
