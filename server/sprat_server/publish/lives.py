"""How long signed metadata are valid, and when they are signed again. Pure."""

from datetime import datetime, timedelta


def expiry(now: datetime, life: timedelta) -> datetime:
    """Return when metadata signed `now` expire: at the first midnight (UTC) after their life.

    Whole days, because a time that repeats from file to file and from version to version costs a device nothing.
    """
    end = now + life
    midnight = end.replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight if midnight == end else midnight + timedelta(days=1)


def renewal(created_at: datetime, expires_at: datetime) -> datetime:
    """Return when metadata are to be signed again: at half of their life."""
    return created_at + (expires_at - created_at) / 2
