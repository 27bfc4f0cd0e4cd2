"""The plans that are signed for this device, and how far it is with each: durable, so that a restart goes on alone.

site/plans.json       what is signed, what was reported
site/<sha256>.plan    the plan files
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from sprat_client.agent.durable import Disk, make_folder, remove, write_file, write_json
from sprat_client.agent.formats import FORMAT, check_format
from sprat_shared.errors import InvalidInput
from sprat_shared.protocol.fields import Fields
from sprat_shared.protocol.site_report import PlanState
from sprat_shared.trust.site_targets import Phase

_log = logging.getLogger(__name__)
FOLDER: Final = "site"
_FORMAT: Final = 1
_FILE: Final = "plans.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRecord:
    """One plan that is signed for this device.

    Attributes:
        site: name of the site.
        number: of the plan.
        phase: what this device does by it.
        sha256: hex digest of its file, and
        length: bytes.
        told: the last state that was reported; None: none was.
        why: code and sentence of a refusal.
    """

    site: str
    number: int
    phase: Phase
    sha256: str
    length: int
    told: PlanState | None = None
    why: tuple[str, str] | None = None

    @property
    def key(self) -> tuple[str, int, str]:
        """Return what it is known by."""
        return self.site, self.number, self.sha256

    @property
    def title(self) -> str:
        """Return `site/number`."""
        return f"{self.site}/{self.number}"

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            "site": self.site,
            "number": self.number,
            "phase": self.phase.value,
            "sha256": self.sha256,
            "length": self.length,
            "told": None if self.told is None else self.told.value,
            "why": None if self.why is None else list(self.why),
        }

    @classmethod
    def of(cls, value: Any) -> "PlanRecord":
        """Read the JSON object.

        Raises:
            InvalidInput, ValueError: a field is missing or wrong.
        """
        fields = Fields(value, "site plans")
        why = fields.list_of("why") if fields.has("why") else None
        return cls(
            site=fields.model("site"),
            number=fields.integer("number", minimum=1),
            phase=Phase(fields.text("phase")),
            sha256=bytes.fromhex(fields.text("sha256")).hex(),
            length=fields.integer("length"),
            told=PlanState(fields.text("told")) if fields.has("told") else None,
            why=None if why is None else (str(why[0]), str(why[1])),
        )


class PlanFiles:
    """Keeps records and files.

    Args:
        folder: of the agent.
        disk: where it is written.

    Raises:
        NewerFormat: a newer agent wrote them.
    """

    def __init__(self, folder: Path, disk: Disk) -> None:
        self._folder, self._disk = folder / FOLDER, disk
        self._records = self._read()

    @property
    def records(self) -> tuple[PlanRecord, ...]:
        """Return what is signed, by site and number."""
        return self._records

    def sign(self, signed: Sequence[PlanRecord]) -> bool:
        """Take what is signed now in the place of what was; return whether that changed anything.

        What was reported of a plan that is still signed stays known. Files of others are removed.
        """
        known = {record.key: record for record in self._records}
        records = tuple(
            replace(known.get(one.key, one), phase=one.phase) for one in sorted(signed, key=lambda one: one.key)
        )
        if records == self._records:
            return False
        self._write(records)
        for sha256 in {record.sha256 for record in known.values()} - {record.sha256 for record in records}:
            remove(self._disk, self.file(sha256))
        return True

    def tell(self, record: PlanRecord, state: PlanState, why: tuple[str, str] | None = None) -> PlanRecord:
        """Keep what was reported of a plan."""
        told = replace(record, told=state, why=why)
        self._write(tuple(told if one.key == record.key else one for one in self._records))
        return told

    def file(self, sha256: str) -> Path:
        """Return where a plan's file is."""
        return self._folder / f"{sha256}.plan"

    def body(self, record: PlanRecord) -> bytes | None:
        """Return a plan's bytes; None where its file is not here, or is not whole."""
        file = self.file(record.sha256)
        if not self._disk.exists(file):
            return None
        body = self._disk.read(file)
        return body if hashlib.sha256(body).hexdigest() == record.sha256 else None

    def keep(self, record: PlanRecord, body: bytes) -> None:
        """Keep a plan's bytes, whose digest was checked, durably."""
        make_folder(self._disk, self._folder)
        write_file(self._disk, self.file(record.sha256), body)

    def drop(self, record: PlanRecord) -> None:
        """Remove a file that does not have its bytes."""
        remove(self._disk, self.file(record.sha256))

    def _read(self) -> tuple[PlanRecord, ...]:
        path = self._folder / _FILE
        if not self._disk.exists(path):
            return ()
        try:
            value = json.loads(self._disk.read(path))
            check_format(value, path, _FORMAT)
            return tuple(PlanRecord.of(one) for one in Fields(value, "site plans").list_of("plans"))
        except (ValueError, TypeError, InvalidInput, OSError) as bad:
            _log.error(
                "the site's plans cannot be read; the server says them again", extra={"detail": f"{path}: {bad}"}
            )
            return ()

    def _write(self, records: tuple[PlanRecord, ...]) -> None:
        make_folder(self._disk, self._folder)
        write_json(
            self._disk, self._folder / _FILE, {FORMAT: _FORMAT, "plans": [record.as_json() for record in records]}
        )
        self._records = records
