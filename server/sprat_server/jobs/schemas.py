"""What a job looks like in answers."""

from datetime import datetime
from typing import Any, Self
from uuid import UUID

from pydantic import BaseModel

from sprat_server.jobs.models import Job


class ProgressView(BaseModel):
    """How far a job is: `fraction` of the whole, 0 to 1."""

    step: str
    fraction: float
    message: str


class JobError(BaseModel):
    """Why a job failed."""

    code: str
    message: str


class JobView(BaseModel):
    """A job."""

    id: UUID
    kind: str
    state: str
    args: dict[str, Any]
    requested_by: str
    attempt: int
    cancel_requested: bool
    progress: ProgressView
    result: dict[str, Any] | None
    error: JobError | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None

    @classmethod
    def of(cls, job: Job) -> Self:
        """Show this row."""
        return cls(
            id=job.id,
            kind=job.kind,
            state=job.state,
            args=job.args,
            requested_by=job.requested_by,
            attempt=job.attempt,
            cancel_requested=job.cancel_requested,
            progress=ProgressView(step=job.progress_step, fraction=job.progress_fraction, message=job.progress_message),
            result=job.result,
            error=None if job.error is None else JobError.model_validate(job.error),
            created_at=job.created_at,
            started_at=job.started_at,
            ended_at=job.ended_at,
        )


class JobAccepted(BaseModel):
    """The answer 202 to a request that a worker will carry out."""

    job: JobView
