"""Queue, read and cancel jobs. The queue is procrastinate's, in the same PostgreSQL and the same transaction."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import and_, func, or_, select, text
from sqlalchemy.orm import Session

from sprat_server.jobs.models import CANCELLED, ENDED, FAILED, QUEUED, RUNNING, Job
from sprat_server.observe import outbox, tracing
from sprat_server.observe.actors import Actor
from sprat_shared.errors import Conflict, NotFound
from sprat_shared.ids import new_id

QUEUE: Final = "sprat"
"""The procrastinate queue that every worker takes from."""

TASK_NAME: Final = "sprat.job"
"""The one procrastinate task: it is given the id of our row and runs the function registered for its kind."""

_DEFER: Final = text(
    "SELECT procrastinate_defer_jobs_v1(ARRAY[ROW("
    " :queue, :task, 0, NULL, NULL, jsonb_build_object('job_id', CAST(:job_id AS text)), NULL"
    ")::procrastinate_job_to_defer_v1])"
)
_CANCEL: Final = text("SELECT procrastinate_cancel_job_v1(:queue_id, false, false)")


class JobUnknown(NotFound):
    """There is no job of this id."""

    code = "job.unknown"

    def __init__(self, job_id: UUID) -> None:
        super().__init__(f"there is no job {job_id}")


class JobEnded(Conflict):
    """The job has ended and cannot be cancelled any more."""

    code = "job.ended"


def enqueue(session: Session, *, kind: str, args: Mapping[str, Any], by: Actor) -> Job:
    """Queue a job in the caller's transaction: it exists for workers if and when that commits.

    Args:
        session: the caller's transaction.
        kind: the name under which a worker's function is registered with `@task(kind)`.
        args: what that function is given; JSON values only.
        by: who asks.
    """
    job_id = new_id()
    job = Job(
        id=job_id,
        kind=kind,
        args=dict(args),
        requested_by=str(by),
        traceparent=tracing.traceparent(),
        queue_id=defer(session, job_id),
    )
    session.add(job)
    session.flush()
    session.refresh(job)
    return job


def enqueue_once(session: Session, *, kind: str, args: Mapping[str, Any], by: Actor, pause_s: float) -> Job | None:
    """Queue a job as `enqueue` does, unless one of this kind with these arguments is queued or runs; return it then.

    Of two transactions that ask at the same time one gets the job and the other None, without waiting. None as well
    where such a job failed or was cancelled less than `pause_s` seconds ago: what nobody waits for is not tried at
    once again.
    """
    what = f"{kind} {json.dumps(dict(args), sort_keys=True)}"
    if not session.scalar(select(func.pg_try_advisory_xact_lock(func.hashtextextended(what, 0)))):
        return None
    lately = and_(Job.state.in_([FAILED, CANCELLED]), Job.ended_at > datetime.now(UTC) - timedelta(seconds=pause_s))
    same = select(Job.id).where(Job.kind == kind, Job.args == dict(args)).limit(1)
    if session.scalar(same.where(or_(Job.state.in_([QUEUED, RUNNING]), lately))) is not None:
        return None
    return enqueue(session, kind=kind, args=args, by=by)


def defer(session: Session, job_id: UUID) -> int:
    """Put a job into the queue in the caller's transaction; return the id of the queue's row."""
    row = session.execute(_DEFER, {"queue": QUEUE, "task": TASK_NAME, "job_id": str(job_id)})
    queue_id: int = row.scalar_one()[0]
    return queue_id


def get(session: Session, job_id: UUID) -> Job:
    """Return the job.

    Raises:
        JobUnknown: there is none of this id.
    """
    job = session.get(Job, job_id)
    if job is None:
        raise JobUnknown(job_id)
    return job


def cancel(session: Session, job_id: UUID) -> Job:
    """Cancel a job: at once while it is queued; while it runs, its task stops at its next check.

    Asking again for a job that is being cancelled, or was, changes nothing.

    Raises:
        JobUnknown: there is none of this id.
        JobEnded: it has succeeded or failed already.
    """
    job = session.scalar(select(Job).where(Job.id == job_id).with_for_update())
    if job is None:
        raise JobUnknown(job_id)
    if job.state == CANCELLED:
        return job
    if job.state in ENDED:
        raise JobEnded(f"job {job_id} has {job.state} already; there is nothing to cancel")
    job.cancel_requested = True
    if job.state == QUEUED:
        session.execute(_CANCEL, {"queue_id": job.queue_id})
        job.state = CANCELLED
        job.ended_at = datetime.now(UTC)
        tell_ended(session, job)
    session.flush()
    return job


def tell_ended(session: Session, job: Job) -> None:
    """Write the event that a job has ended; its state, result and error say how."""
    data = {"job_kind": job.kind, "requested_by": job.requested_by, "result": job.result, "error": job.error}
    outbox.tell(session, f"job.{job.state}", f"job:{job.id}", data, project_id=job.project_id)


def counts(session: Session) -> dict[str, int]:
    """Return how many jobs are in each state."""
    return dict(session.execute(select(Job.state, func.count()).group_by(Job.state)).all())
