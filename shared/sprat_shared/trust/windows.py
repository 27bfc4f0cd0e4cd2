"""When a window of a policy is open."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from sprat_shared.trust.policy import Window

_LOOK_AHEAD: Final = timedelta(days=8)  # a window opens at least once in a week


def is_open(window: Window, now: datetime) -> bool:
    """Return whether a window is open at `now` (UTC)."""
    at = now.astimezone() if window.local else now.astimezone(UTC)
    minute, day = at.hour * 60 + at.minute, at.weekday()
    if window.start < window.end:
        return window.start <= minute < window.end and _on(window, day)
    if minute >= window.start:
        return _on(window, day)
    return minute < window.end and _on(window, (day - 1) % 7)


def any_open(windows: Sequence[Window], now: datetime) -> bool:
    """Return whether one of the windows is open; where there are none, always."""
    return not windows or any(is_open(window, now) for window in windows)


def next_opening(windows: Sequence[Window], now: datetime) -> datetime:
    """Return the first minute from `now` on in which one of the windows is open; `now` where one is."""
    if any_open(windows, now):
        return now
    at = now.replace(second=0, microsecond=0)
    while at < now + _LOOK_AHEAD:
        at += timedelta(minutes=1)
        if any_open(windows, at):
            break
    return at


def _on(window: Window, day: int) -> bool:
    return not window.days or day in window.days
