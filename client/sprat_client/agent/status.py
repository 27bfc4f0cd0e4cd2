"""What the agent on a folder is doing, from its files: works beside a running agent and without one."""

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sprat_client.agent.budget import BUDGET_FILE, read_spent
from sprat_client.agent.durable import PosixDisk
from sprat_client.agent.guarded import read_guard
from sprat_client.agent.identity import Identity
from sprat_client.agent.journal import Journal, ModelRecord
from sprat_client.agent.lock import is_locked
from sprat_client.agent.releases import Shelf, Slot
from sprat_client.agent.site.plan_files import PlanFiles, PlanRecord
from sprat_client.agent.store import StoreCorrupted, TensorStore


def read_status(folder: Path) -> dict[str, Any]:
    """Return the status of the agent on `folder`.

    Raises:
        NotFound: the folder is not enrolled.
    """
    identity, disk = Identity.load(folder), PosixDisk()
    running = is_locked(folder / "run.lock")
    store = TensorStore(folder / "store", disk)
    outbox = folder / "outbox"
    journal = Journal(folder / "journal.json", disk)
    trust, plans = journal.trust, PlanFiles(folder, disk).records
    return {
        "device": str(identity.device),
        "name": identity.name,
        "server": identity.server_url,
        "running": running,
        "endpoint": _endpoint(folder) if running else None,
        "models": {
            model: _model(record, Shelf(model, folder / "models" / model, store, disk))
            for model, record in journal.models.items()
        },
        **({"site": {record.title: _plan(record) for record in plans}} if plans else {}),
        "trust": {name: dict(marks.versions) for name, marks in sorted(trust.marks.items())},
        "refused": None if trust.trouble is None else {"code": trust.trouble.code, "detail": trust.trouble.detail},
        "clock": _clock(trust.clock_ahead_s),
        "paused": _paused(journal.paused_until),
        "bytes_today": read_spent(folder / BUDGET_FILE, disk, datetime.now(UTC)),
        "reports_waiting": len(list(outbox.glob("*.json"))) if outbox.is_dir() else 0,
    }


def _plan(record: PlanRecord) -> dict[str, Any]:
    return {
        "phase": record.phase.value,
        "told": None if record.told is None else record.told.value,
        "refused": None if record.why is None else ": ".join(record.why),
    }


def _clock(ahead_s: float | None) -> str:
    if ahead_s is None:
        return "good"
    side = "ahead of" if ahead_s > 0 else "behind"
    return f"clock suspect: {abs(ahead_s) / 86400:.1f} days {side} the time that the server signs, which counts"


def _paused(until: float | None) -> str | None:
    if until is None or until <= time.time():
        return None
    return f"until {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(until))}"


def _model(record: ModelRecord, shelf: Shelf) -> dict[str, Any]:
    slots = shelf.slots()
    return {
        "state": record.state.value,
        "assignment": record.highest_assignment,
        "active": _slot(slots.active, shelf),
        "previous": _slot(slots.previous, shelf),
        "validated": record.validated,
        "guard": _guard(shelf),
        "updating_to": None if record.work is None else record.work.wish.release,
        "waiting": None if record.work is None else record.work.waiting,
        "failures": dict(record.failures),
        "refused": [{"release": bad.release, "assignment": bad.assignment, "code": bad.code} for bad in record.refused],
    }


def _guard(shelf: Shelf) -> dict[str, Any] | None:
    """Return how a release that shares layers does; None where none serves, or its folder cannot be read."""
    try:
        return read_guard(shelf, PosixDisk())
    except StoreCorrupted:  # as below
        return None


def _slot(slot: Slot | None, shelf: Shelf) -> dict[str, Any] | None:
    """Return a slot with the names of the tensors that this device computed itself."""
    if slot is None:
        return None
    try:
        local = shelf.manifest(slot.release_id).local_names
    except StoreCorrupted:  # the running agent says so, and mends it
        local = []
    return {**slot.as_json(), "local": local}


def _endpoint(folder: Path) -> str | None:
    try:
        url: str = json.loads((folder / "endpoint.json").read_bytes())["url"]
    except (OSError, ValueError, KeyError):
        return None
    return url
