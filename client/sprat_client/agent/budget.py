"""How many body bytes were read today (UTC): counted whatever they are for, kept over restarts.

What is about to be read is entered first, a block at a time, and what was not read of it is given back at the end. So
a power cut or a kill costs at most one block of the day's budget, and never lets a device read more than it may.
"""

import json
import logging
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Final

from sprat_client.agent.durable import Disk, write_json
from sprat_shared.errors import InvalidInput
from sprat_shared.protocol.fields import Fields

_log = logging.getLogger(__name__)
BUDGET_FILE: Final = "budget.json"
_BLOCK_BYTES: Final = 256 << 10
_LEAST_BLOCK_BYTES: Final = 4 << 10
_BLOCKS_A_DAY: Final = 64


class ByteBudget:
    """Counts body bytes.

    Args:
        file: where the count is kept.
        disk: where it is written. A disk that is full or dead costs the count of this process, and stops nothing.
        now: the reference time (UTC).
    """

    def __init__(self, file: Path, disk: Disk, now: Callable[[], datetime]) -> None:
        self._file, self._disk, self._now = file, disk, now
        self._block = _BLOCK_BYTES
        self._day, self._entered = _read(file, disk)  # what the file says, or would if it could be written
        self._ahead = 0  # entered and not read

    def count(self, size: int) -> None:
        """Count bytes that were read."""
        self._begin_day()
        self._ahead -= size
        if self._ahead < 0:
            blocks = -(self._ahead // self._block)
            self._ahead += blocks * self._block
            self._enter(blocks * self._block)

    def spent(self) -> int:
        """Return how many bytes were read today."""
        self._begin_day()
        return self._entered - self._ahead

    def left(self, daily_bytes: int | None) -> int | None:
        """Return how many bytes may still be read today; None: any number."""
        if daily_bytes is None:
            return None
        self._block = max(_LEAST_BLOCK_BYTES, min(_BLOCK_BYTES, daily_bytes // _BLOCKS_A_DAY))
        return max(0, daily_bytes - self.spent())

    def day_ends_in_s(self) -> float:
        """Return how long today lasts, seconds."""
        now = self._now().astimezone(UTC)
        return (datetime.combine(now.date() + timedelta(days=1), time(), UTC) - now).total_seconds()

    def close(self) -> None:
        """Give back what was entered and not read."""
        if self._ahead:
            ahead, self._ahead = self._ahead, 0
            self._enter(-ahead)

    def _begin_day(self) -> None:
        today = self._now().astimezone(UTC).date()
        if today != self._day:
            self._day, self._entered, self._ahead = today, 0, 0

    def _enter(self, size: int) -> None:
        self._entered += size
        try:
            write_json(self._disk, self._file, {"day": self._day.isoformat(), "bytes": self._entered})
        except OSError as bad:
            _log.warning("the day's bytes are not kept", extra={"file": str(self._file), "reason": str(bad)})


def read_spent(file: Path, disk: Disk, now: datetime) -> int:
    """Return how many bytes the file says were read today; beside a running agent up to one block too many."""
    day, entered = _read(file, disk)
    return entered if day == now.astimezone(UTC).date() else 0


def _read(file: Path, disk: Disk) -> tuple[date, int]:
    """Return the day and its bytes. A damaged file counts nothing: the next write mends it."""
    try:
        fields = Fields(json.loads(disk.read(file)), BUDGET_FILE)
        return date.fromisoformat(fields.text("day")), fields.integer("bytes")
    except FileNotFoundError:
        return date.min, 0
    except (OSError, ValueError, InvalidInput) as bad:
        _log.warning("the day's bytes cannot be read", extra={"file": str(file), "reason": str(bad)})
        return date.min, 0
