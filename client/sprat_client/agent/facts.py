"""What the device says of its state: its owner's word where there is one, else what the kernel tells.

The owner's word is `facts.json` in the agent's folder: `{"metered": true, "charging": false, "idle": true}`, each
member optional; `attributes` beside them are for operators (`attributes`). It is read anew each time it is asked for,
so whoever knows better replaces the file.
"""

import json
import logging
import os
from pathlib import Path
from typing import Any, Final

_log = logging.getLogger(__name__)
_BUSY_LOAD: Final = 0.5  # runnable processes per core, over the last minute
_SUPPLIES: Final = Path("/sys/class/power_supply")
FACTS_FILE: Final = "facts.json"


class DeviceFacts:
    """The facts of one device (`permits.Facts`).

    Args:
        folder: the agent's.
        supplies: where the kernel describes power supplies.
    """

    def __init__(self, folder: Path, supplies: Path = _SUPPLIES) -> None:
        self._file, self._supplies = folder / FACTS_FILE, supplies

    @property
    def metered(self) -> bool | None:
        """See `Facts.metered`: only the owner knows."""
        return self._told("metered")

    @property
    def charging(self) -> bool | None:
        """See `Facts.charging`; a device without a battery runs on mains."""
        told = self._told("charging")
        return self._on_mains() if told is None else told

    @property
    def idle(self) -> bool | None:
        """See `Facts.idle`; by the load of the last minute where nobody says."""
        told = self._told("idle")
        return os.getloadavg()[0] < _BUSY_LOAD * (os.cpu_count() or 1) if told is None else told

    def told(self) -> dict[str, bool]:
        """Return the owner's word."""
        said = read_facts(self._file.parent)
        return {name: value for name, value in said.items() if isinstance(value, bool)}

    def _told(self, name: str) -> bool | None:
        return self.told().get(name)

    def _on_mains(self) -> bool | None:
        batteries, mains = False, False
        try:
            for supply in sorted(self._supplies.iterdir()):
                kind = _line(supply / "type")
                if kind == "Battery" and _line(supply / "scope") != "Device":
                    batteries = True
                    mains |= _line(supply / "status") in {"Charging", "Full", "Not charging"}
                elif kind in {"Mains", "USB", "Wireless"}:
                    mains |= _line(supply / "online") == "1"
        except OSError:
            return None
        return mains or not batteries


def read_facts(folder: Path) -> dict[str, Any]:
    """Return all that the owner says; nothing where the file is missing or cannot be read, which is logged."""
    file = folder / FACTS_FILE
    try:
        said: Any = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as bad:
        _log.warning("facts cannot be read", extra={"file": str(file), "reason": str(bad)})
        return {}
    return said if isinstance(said, dict) else {}


def _line(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
