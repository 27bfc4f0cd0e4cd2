"""Lets releases that failed too often on a device be tried again."""

from pathlib import Path
from typing import Any

from sprat_client.agent.durable import PosixDisk
from sprat_client.agent.identity import Identity
from sprat_client.agent.journal import Journal
from sprat_client.agent.lock import FolderLock
from sprat_shared.errors import NotFound


def retry(folder: Path, model: str) -> dict[str, Any]:
    """Hold nothing against any release of a model any more; the standing assignment is tried at the next start.

    Raises:
        NotFound: the folder is not enrolled, or the device has no such model.
        Conflict: an agent runs on the folder, which keeps what it knows in memory.
    """
    Identity.load(folder)
    with FolderLock(folder / "run.lock"):
        journal = Journal(folder / "journal.json", PosixDisk())
        if model not in journal.models:
            raise NotFound(
                f"model {model!r} is not on this device; it has: {', '.join(sorted(journal.models)) or 'none'}"
            )
        record = journal.record(model)
        journal.store(model, record.retried())
    return {"model": model, "failures_forgotten": dict(record.failures)}
