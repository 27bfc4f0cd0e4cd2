"""What happened on this device: one JSON object a line, the newest last, bounded.

For people and for what watches a device; nothing of the agent reads it. So a line is appended without an fsync: a power
cut may cost the last ones (the kernel writes them within half a minute), and what it tore in two is skipped. A full
disk costs lines and stops nothing.
"""

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from sprat_client.agent.durable import Disk

_log = logging.getLogger(__name__)
EVENTS_FILE: Final = "events.jsonl"
_OLDER_FILE: Final = "events.1.jsonl"
MAX_BYTES: Final = 256 << 10  # of each of the two files


class EventLog:
    """Appends events.

    Args:
        folder: the agent's.
        disk: where it is written.
        max_bytes: a file of so many bytes becomes the older one, in whose place it goes.
    """

    def __init__(self, folder: Path, disk: Disk, max_bytes: int = MAX_BYTES) -> None:
        self._file, self._older = folder / EVENTS_FILE, folder / _OLDER_FILE
        self._disk, self._max_bytes, self._size = disk, max_bytes, -1

    def note(self, event: str, **more: Any) -> None:
        """Append one event: what happened, when, and to what."""
        line = json.dumps({"time": round(time.time(), 3), "event": event, **more}, default=str).encode() + b"\n"
        try:
            if self._size < 0:
                here = self._disk.read(self._file) if self._disk.exists(self._file) else b""
                self._size = len(here)
                line = line if here.endswith(b"\n") or not here else b"\n" + line  # a power cut tore the last one
            if self._size and self._size + len(line) > self._max_bytes:
                self._disk.rename(self._file, self._older)
                self._size = 0
            self._disk.append(self._file, line)
            self._size += len(line)
        except OSError as bad:
            _log.warning("an event is not kept", extra={"event": event, "reason": str(bad)})


def read_events(folder: Path) -> list[dict[str, Any]]:
    """Return the events that are kept, oldest first."""
    return [event for name in (_OLDER_FILE, EVENTS_FILE) for event in _parsed(_bytes(folder / name))]


def follow_events(folder: Path, every_s: float = 0.5) -> Iterator[dict[str, Any]]:
    """Yield the events that are kept, and then each new one, without end."""
    file = folder / EVENTS_FILE
    at, same = _where(file)
    yield from _parsed(_bytes(folder / _OLDER_FILE))
    yield from _parsed(_bytes(file)[:at])
    while True:
        time.sleep(every_s)
        size, now = _where(file)
        if now != same:  # it became the older one
            yield from _parsed(_bytes(folder / _OLDER_FILE)[at:])
            at, same = 0, now
        if size > at:
            fresh = _bytes(file)[at:]
            whole = fresh[: fresh.rfind(b"\n") + 1]
            yield from _parsed(whole)
            at += len(whole)


def _where(file: Path) -> tuple[int, int]:
    try:
        found = file.stat()
    except FileNotFoundError:
        return 0, 0
    return found.st_size, found.st_ino


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return b""


def _parsed(data: bytes) -> Iterator[dict[str, Any]]:
    for line in data.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            yield event
