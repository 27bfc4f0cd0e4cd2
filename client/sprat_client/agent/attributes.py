"""Attributes: what the device is, as operators' filters see it. Said at enrolment, and again when they change.

Its owner adds some in `facts.json`, such as `{"attributes": {"camera": "imx219"}}`.
"""

import json
import logging
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from sprat_client.agent.durable import Disk, write_json
from sprat_client.agent.facts import read_facts
from sprat_client.agent.steps import Workshop
from sprat_client.agent.version import VERSION
from sprat_shared.errors import SpratError
from sprat_shared.protocol.facts_report import LONGEST_KEY, LONGEST_VALUE, MOST_ATTRIBUTES, FactsReport

_log = logging.getLogger(__name__)
_LOOK_EVERY_S: Final = 60.0
_SAID: Final = "said.json"
SITE_ADDRESS: Final = "site-address"


def attributes_of(folder: Path) -> dict[str, str]:
    """Return what the kernel and the owner say of the device; the owner's word counts before the kernel's."""
    said: dict[str, str] = {
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "cores": str(os.cpu_count() or 0),
        "memory_bytes": str(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        **owners_attributes(folder),
    }
    return {key[:LONGEST_KEY]: value[:LONGEST_VALUE] for key, value in list(said.items())[:MOST_ATTRIBUTES]}


def owners_attributes(folder: Path) -> dict[str, str]:
    """Return what the owner added; what is no text is left out."""
    said: Any = read_facts(folder).get("attributes")
    return {key: value for key, value in said.items() if isinstance(value, str)} if isinstance(said, dict) else {}


def remember(folder: Path, disk: Disk, attributes: dict[str, str]) -> None:
    """Keep what the server was told, durably."""
    write_json(disk, folder / _SAID, {"agent": VERSION, "attributes": attributes})


class AttributesReporter:
    """Tells the server of attributes that have changed, or of another version of the agent.

    Args:
        shop: what the agent works with.
        site_address: returns where other devices of a site reach this one; None: they do not.
    """

    def __init__(self, shop: Workshop, site_address: Callable[[], str | None] = lambda: None) -> None:
        self._shop, self._site_address, self._next = shop, site_address, 0.0

    def look(self) -> None:
        """Report what has changed. What goes wrong is logged, and tried again later."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _LOOK_EVERY_S
        folder = self._shop.settings.folder
        address = self._site_address()
        attributes = attributes_of(folder) | ({} if address is None else {SITE_ADDRESS: address})
        try:
            if self._said() == {"agent": VERSION, "attributes": attributes}:
                return
            report = FactsReport(
                device=self._shop.device,
                sequence=self._shop.journal.next_sequence,
                attributes=attributes,
                agent=VERSION,
            )
            self._shop.journal.say(report)
            self._shop.flush_reports()
            remember(folder, self._shop.disk, attributes)
        except (SpratError, OSError) as bad:
            _log.warning("changed attributes are not reported", extra={"detail": str(bad)})

    def look_soon(self) -> None:
        """Let the next look be due."""
        self._next = 0.0

    def _said(self) -> Any:
        path = self._shop.settings.folder / _SAID
        if not self._shop.disk.exists(path):
            return None
        try:
            return json.loads(self._shop.disk.read(path))
        except ValueError:
            return None
