"""Lets releases that failed too often on a device be tried again."""

from pathlib import Path
from typing import Any

from sprat_client.agent.control import give_order
from sprat_client.agent.durable import PosixDisk
from sprat_client.agent.identity import Identity
from sprat_client.agent.journal import Journal
from sprat_client.agent.lock import FolderLock
from sprat_shared.errors import NotFound


def retry(folder: Path, model: str) -> dict[str, Any]:
    """Hold nothing against any release of a model any more; the standing assignment is tried again.

    The agent that runs on the folder does it, at once; where none runs, the next start will find it done.

    Raises:
        NotFound: the folder is not enrolled, or the device has no such model.
        TryLater: the agent is busy.
    """
    Identity.load(folder)
    if (done := give_order(folder, {"do": "retry", "model": model})) is not None:
        return done
    with FolderLock(folder / "run.lock"):
        journal = Journal(folder / "journal.json", PosixDisk())
        if model not in journal.models:
            raise NotFound(
                f"model {model!r} is not on this device; it has: {', '.join(sorted(journal.models)) or 'none'}"
            )
        record = journal.record(model)
        journal.store(model, record.retried())
    return {"model": model, "failures_forgotten": dict(record.failures)}
