"""Carries out jobs: begins an attempt, runs its task, writes down how it ended, and takes up what dead workers left.

Our row decides; procrastinate's row only brings the job to a worker. Giving a job to another worker makes a new row
in the queue, so whatever a worker that was wrongly taken for dead still says about the old one changes nothing.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from threading import Event
from typing import Any, Final
from uuid import UUID

import structlog
from sqlalchemy import select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from sprat_server.db.blobs import Blobs
from sprat_server.db.session import Database
from sprat_server.jobs.models import CANCELLED, ENDED, FAILED, QUEUED, RUNNING, SUCCEEDED, Job
from sprat_server.jobs.service import TASK_NAME, defer, tell_ended
from sprat_server.jobs.tasks import JobCancelled, JobContext, JobInterrupted, JobLost, task_of
from sprat_server.observe import tracing
from sprat_server.settings import Settings
from sprat_shared.errors import SpratError, TryLater

_log = structlog.get_logger(__name__)

_ABANDONED: Final = text(
    # brought to a worker that is silent or gone; or ended in the queue without our row knowing (database away)
    "SELECT job.id FROM job JOIN procrastinate_jobs AS queued ON queued.id = job.queue_id"
    " LEFT JOIN procrastinate_workers AS worker ON worker.id = queued.worker_id"
    " WHERE job.state IN ('queued', 'running') AND queued.task_name = :task AND ("
    "  queued.status NOT IN ('todo', 'doing') OR queued.status = 'doing' AND ("
    "   worker.id IS NULL OR worker.last_heartbeat < now() - make_interval(secs => :silent_s)))"
    " ORDER BY job.id FOR UPDATE OF job SKIP LOCKED"
)
_ALIVE: Final = text(
    "UPDATE procrastinate_workers SET last_heartbeat = now()"
    " WHERE id IN (SELECT worker_id FROM procrastinate_jobs WHERE id = ANY(:queue_ids))"
)
_END_QUEUED: Final = text(
    "UPDATE procrastinate_jobs SET status = 'failed', abort_requested = false"
    " WHERE id = :queue_id AND status IN ('todo', 'doing')"
)


@dataclass(frozen=True, slots=True)
class _Begun:
    """An attempt that has begun, and the span of the request that asked for the job."""

    ctx: JobContext
    kind: str
    args: Mapping[str, Any]
    traceparent: str | None


class Runner:
    """Carries out the jobs of one worker process.

    Args:
        database: where jobs are.
        blobs: handed to tasks.
        settings: of the worker.
    """

    def __init__(self, *, database: Database, blobs: Blobs, settings: Settings) -> None:
        self._database, self._blobs, self._settings = database, blobs, settings
        self._running: dict[UUID, tuple[int, int]] = {}  # job -> attempt, id in the queue
        self.stopping = Event()
        """Set it to have running tasks stop at their next check and their jobs done again by another worker."""

    def run(self, job_id: UUID, queue_id: int) -> None:
        """Carry out a job that the queue brought.

        Errors of the task end in the job's row, not here. Only a database that is away passes.
        """
        begun = self._begin(job_id, queue_id)
        if begun is None:
            return
        ctx, kind = begun.ctx, begun.kind
        self._running[job_id] = ctx.attempt, queue_id
        about = {
            "sprat.job": str(job_id),
            "sprat.job.kind": kind,
            "sprat.job.attempt": ctx.attempt,
            "sprat.project": str(ctx.project_id),
        }
        try:
            with (
                tracing.span(f"job {kind}", kind="consumer", attributes=about, link=begun.traceparent),
                structlog.contextvars.bound_contextvars(job=str(job_id), kind=kind, attempt=ctx.attempt),
            ):
                self._attempt(ctx, kind, begun.args)
        finally:
            self._running.pop(job_id, None)

    def take_up_abandoned(self) -> list[UUID]:
        """Queue again the jobs whose worker is silent or gone; fail those that met too many setbacks.

        Returns:
            The jobs that were found.
        """
        with self._database.across_projects() as session:
            silent_s = self._settings.worker_lost_after_s
            found = list(session.scalars(_ABANDONED, {"task": TASK_NAME, "silent_s": silent_s}))
            for job_id in found:
                job = session.get_one(Job, job_id)
                _log.warning("job.taken-up", job=str(job_id), kind=job.kind, attempt=job.attempt)
                self._again(session, job, setback=f"the worker of attempt {job.attempt} is gone")
        return found

    def say_alive(self) -> None:
        """Renew the heartbeat of what runs here: the queue's own stops when its worker is told to stop."""
        queue_ids = [queue_id for _, queue_id in list(self._running.values())]
        if queue_ids:
            with self._database.across_projects() as session:
                session.execute(_ALIVE, {"queue_ids": queue_ids})

    def give_back(self) -> None:
        """Queue again what still runs here, at once: this process is about to end."""
        for job_id, (attempt, _) in list(self._running.items()):
            with self._database.across_projects() as session:
                job = _owned(session, job_id, attempt)
                if job is not None:
                    self._again(session, job, setback=None)

    def _begin(self, job_id: UUID, queue_id: int) -> _Begun | None:
        with self._database.across_projects() as session:
            job = session.scalar(select(Job).where(Job.id == job_id).with_for_update())
            if job is None or job.state in ENDED or job.queue_id != queue_id:
                return None
            if job.cancel_requested:
                _end(session, job, CANCELLED)
                return None
            job.attempt += 1
            job.state, job.started_at = RUNNING, datetime.now(UTC)
            job.progress_step, job.progress_fraction, job.progress_message = "", 0.0, ""
            ctx = JobContext(
                job_id=job_id,
                project_id=job.project_id,
                attempt=job.attempt,
                database=self._database,
                blobs=self._blobs,
                settings=self._settings,
                stopping=self.stopping,
            )
            return _Begun(ctx, job.kind, dict(job.args), job.traceparent)

    def _attempt(self, ctx: JobContext, kind: str, args: Mapping[str, Any]) -> None:
        _log.info("job.begins")
        try:
            result = dict(task_of(kind)(ctx, args))
            json.dumps(result, allow_nan=False)  # a result that is no JSON is the task's error, told as such
        except JobCancelled:
            self._finish(ctx, CANCELLED)
        except JobInterrupted:
            self._requeue(ctx, setback=None)
        except JobLost as e:
            tracing.fail(e.code)
            _log.warning("job.lost", error=str(e))
        except (OperationalError, TryLater) as e:
            tracing.fail("setback")
            _log.warning("job.setback", exc_info=e)
            self._requeue(ctx, setback=str(getattr(e, "orig", e)))
        except SpratError as e:
            _log.warning("job.failed", code=e.code, error=str(e))
            self._finish(ctx, FAILED, error={"code": e.code, "message": str(e)})
        except Exception as e:  # noqa: BLE001 - a task's bug ends its job, not the worker
            _log.exception("job.failed")
            self._finish(ctx, FAILED, error={"code": "server.bug", "message": f"{type(e).__name__}: {e}"})
        else:
            self._finish(ctx, SUCCEEDED, result=result)

    def _finish(
        self,
        ctx: JobContext,
        state: str,
        *,
        result: Mapping[str, Any] | None = None,
        error: Mapping[str, str] | None = None,
    ) -> None:
        with self._database.across_projects() as session:
            job = _owned(session, ctx.job_id, ctx.attempt)
            if job is not None:
                _end(session, job, state, result=result, error=error)
        # None: the task ended it itself (JobContext.complete), or another attempt has begun
        tracing.note({"sprat.job.outcome": state})
        if error is not None:
            tracing.fail(error["code"])
        _log.info("job.ended", outcome=state, by="runner" if job is not None else "task or another attempt")

    def _requeue(self, ctx: JobContext, *, setback: str | None) -> None:
        with self._database.across_projects() as session:
            job = _owned(session, ctx.job_id, ctx.attempt)
            if job is not None:
                self._again(session, job, setback=setback)

    def _again(self, session: Session, job: Job, *, setback: str | None) -> None:
        session.execute(_END_QUEUED, {"queue_id": job.queue_id})
        if job.cancel_requested:
            _end(session, job, CANCELLED)
            return
        if setback is not None:
            job.setbacks += 1
            if job.setbacks >= self._settings.job_max_setbacks:
                message = f"given up after {job.setbacks} setbacks; the last: {setback}"
                _end(session, job, FAILED, error={"code": "job.given-up", "message": message})
                return
        job.state = QUEUED
        job.queue_id = defer(session, job.id)


def _owned(session: Session, job_id: UUID, attempt: int) -> Job | None:
    """Return the job, locked, if this attempt still owns it and it runs."""
    job = session.scalar(select(Job).where(Job.id == job_id).with_for_update())
    return job if job is not None and job.attempt == attempt and job.state == RUNNING else None


def _end(
    session: Session,
    job: Job,
    state: str,
    *,
    result: Mapping[str, Any] | None = None,
    error: Mapping[str, str] | None = None,
) -> None:
    job.state, job.ended_at = state, datetime.now(UTC)
    job.result = None if result is None else dict(result)
    job.error = None if error is None else dict(error)
    if state == SUCCEEDED:
        job.progress_fraction = 1.0
    tell_ended(session, job)
