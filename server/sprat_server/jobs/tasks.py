"""The worker's side of a job: functions registered by kind, and what each is given to work with.

    @task("retrain")
    def retrain(ctx: JobContext, args: Mapping[str, Any]) -> dict[str, Any]:
        with ctx.session() as session: ...
        ctx.progress("teacher", 0.4, "epoch 3 of 8")
        ctx.check_cancelled()
        return {"release": 2}

A worker can die at any point and another takes the job up from the start, so a task is written to be run again:
what it did in a committed `ctx.session()` is found by the next attempt. A task whose last writes must happen
exactly once ends with `ctx.complete(session, result)` inside that last session. A worker that is only slow, and
whose job was given to another, cannot commit any more: its next session raises `JobLost`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from threading import Event
from typing import Any, Final, TypeVar
from uuid import UUID

import structlog
from sqlalchemy import select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from sprat_server.db.blobs import Blobs
from sprat_server.db.session import Database
from sprat_server.jobs.models import RUNNING, SUCCEEDED, Job
from sprat_server.jobs.service import tell_ended
from sprat_server.settings import Settings
from sprat_shared.errors import SpratError

_log = structlog.get_logger(__name__)


class JobCancelled(SpratError):
    """Someone asked for this job to stop; the task lets this pass."""

    code = "job.cancelled"


class JobLost(SpratError):
    """This worker was taken for dead and its job was given to another; the task lets this pass."""

    code = "job.lost"


class JobInterrupted(SpratError):
    """The worker is told to stop; the task lets this pass and another worker does the job again."""

    code = "job.interrupted"


class JobContext:
    """What a task works with. One per attempt.

    Args:
        job_id: the job.
        project_id: the project in which it was asked for, and in which its sessions act.
        attempt: which attempt this is, from 1; the database lets only the latest commit.
        database: where sessions come from.
        blobs: the blob store.
        settings: the worker's settings.
        stopping: set when the worker is told to stop.
    """

    def __init__(
        self,
        *,
        job_id: UUID,
        project_id: UUID,
        attempt: int,
        database: Database,
        blobs: Blobs,
        settings: Settings,
        stopping: Event,
    ) -> None:
        self.job_id, self.project_id, self.attempt = job_id, project_id, attempt
        self.blobs, self.settings = blobs, settings
        self._database, self._stopping = database, stopping

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Give a transaction of its own, committed at the end only if this attempt still owns the job.

        Raises:
            JobLost: at the end, when another attempt has begun; nothing is committed.
        """
        with self._database.transaction(self.project_id) as session:
            yield session
            self._own(session)

    def progress(self, step: str, fraction: float, message: str = "") -> None:
        """Tell how far the job is. A database that is away for a moment only loses this note.

        Args:
            step: the name of the present step.
            fraction: of the whole job, 0 to 1; what lies outside is cut.
            message: a sentence for people.

        Raises:
            JobLost: another attempt has begun.
            JobCancelled: someone asked for the job to stop.
            JobInterrupted: the worker is told to stop.
        """
        try:
            with self._database.transaction(self.project_id) as session:
                job = self._own(session)
                job.progress_step, job.progress_message = step, message
                job.progress_fraction = min(max(float(fraction), 0.0), 1.0)
        except OperationalError as e:
            _log.warning("job.progress-not-kept", job=str(self.job_id), error=str(e.orig))
        else:
            self._stop_if_asked(job)

    def check_cancelled(self) -> None:
        """Return if the job is to go on; call it between epochs or batches.

        Raises:
            JobCancelled: someone asked for the job to stop.
            JobLost: another attempt has begun.
            JobInterrupted: the worker is told to stop.
        """
        try:
            with self._database.transaction(self.project_id) as session:
                job = self._own(session)
        except OperationalError as e:
            _log.warning("job.not-checked", job=str(self.job_id), error=str(e.orig))
        else:
            self._stop_if_asked(job)

    def complete(self, session: Session, result: Mapping[str, Any]) -> None:
        """Mark the job as succeeded within `session`, so that its last writes and its end are one transaction."""
        job = self._own(session)
        job.state, job.result, job.ended_at = SUCCEEDED, dict(result), datetime.now(UTC)
        job.progress_fraction = 1.0
        session.flush()
        tell_ended(session, job)

    def _own(self, session: Session) -> Job:
        job = session.scalar(
            select(Job).where(Job.id == self.job_id).with_for_update().execution_options(populate_existing=True)
        )
        ours = job is not None and job.attempt == self.attempt and job.state in {RUNNING, SUCCEEDED}
        if job is None or not ours:
            raise JobLost(f"job {self.job_id}: attempt {self.attempt} was taken for dead and another has begun")
        return job

    def _stop_if_asked(self, job: Job) -> None:
        if job.cancel_requested:
            raise JobCancelled(f"job {self.job_id} was cancelled")
        if self._stopping.is_set():
            raise JobInterrupted(f"job {self.job_id} is given back: this worker stops")


Task = Callable[[JobContext, Mapping[str, Any]], Mapping[str, Any]]
"""A function that does the work of one kind of job and returns its result (JSON values)."""

T = TypeVar("T", bound=Task)

TASKS: Final[dict[str, Task]] = {}
"""The registered functions by kind; filled when the worker imports `sprat_server.flows.tasks_*`."""


def task_of(kind: str) -> Task:
    """Return the function registered for this kind.

    Raises:
        SpratError: this worker has none.
    """
    try:
        return TASKS[kind]
    except KeyError:
        known = ", ".join(sorted(TASKS)) or "none"
        raise SpratError(
            f"this worker has no task for jobs of kind {kind!r}; it has: {known}", code="job.kind"
        ) from None


def task(kind: str) -> Callable[[T], T]:
    """Register the decorated function for jobs of this kind.

    Raises:
        ValueError: another function is registered for it.
    """

    def register(function: T) -> T:
        if TASKS.setdefault(kind, function) is not function:
            raise ValueError(f"two functions are registered for jobs of kind {kind!r}")
        return function

    return register
