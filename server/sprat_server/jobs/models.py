"""The table of jobs: what was asked, how far it is, how it ended."""

from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import CheckConstraint, Index, UniqueConstraint, func
from sqlalchemy.orm import Mapped, mapped_column

from sprat_server.db.base import Base
from sprat_server.db.projects import ProjectOwned, in_project
from sprat_shared.ids import new_id

QUEUED: Final = "queued"
RUNNING: Final = "running"
SUCCEEDED: Final = "succeeded"
FAILED: Final = "failed"
CANCELLED: Final = "cancelled"
ENDED: Final = frozenset({SUCCEEDED, FAILED, CANCELLED})


class Job(ProjectOwned, Base):
    """One piece of work for a worker. The database refuses a state that contradicts its times, result or error."""

    __tablename__ = "job"
    __table_args__ = (
        in_project(),
        UniqueConstraint("project_id", "id"),
        CheckConstraint("state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')", name="state_is_known"),
        CheckConstraint(
            "(ended_at IS NOT NULL) = (state IN ('succeeded', 'failed', 'cancelled'))", name="ended_jobs_have_an_end"
        ),
        CheckConstraint("state <> 'running' OR started_at IS NOT NULL", name="running_jobs_were_started"),
        CheckConstraint("(result IS NOT NULL) = (state = 'succeeded')", name="only_success_has_a_result"),
        CheckConstraint("(error IS NOT NULL) = (state = 'failed')", name="only_failure_has_an_error"),
        CheckConstraint("error IS NULL OR (error ? 'code' AND error ? 'message')", name="errors_have_code_and_message"),
        CheckConstraint("progress_fraction BETWEEN 0 AND 1", name="progress_is_a_fraction"),
        CheckConstraint("attempt >= 0", name="attempts_are_counted_from_zero"),
        CheckConstraint("setbacks >= 0", name="setbacks_are_counted_from_zero"),
        CheckConstraint(
            "traceparent ~ '^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$'", name="traceparent_is_of_the_first_version"
        ),
        Index("ix_job_created_at", "created_at"),
        Index("ix_job_running", "state", postgresql_where="state IN ('queued', 'running')"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    kind: Mapped[str]
    args: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(default=QUEUED)
    requested_by: Mapped[str]
    traceparent: Mapped[str | None]  # the span in which it was asked for, where there was one
    queue_id: Mapped[int] = mapped_column(unique=True)  # the id in procrastinate_jobs, of the same transaction
    attempt: Mapped[int] = mapped_column(default=0)  # how many workers have begun it
    setbacks: Mapped[int] = mapped_column(default=0)  # attempts without an answer: worker died, database away
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    progress_step: Mapped[str] = mapped_column(default="")
    progress_fraction: Mapped[float] = mapped_column(default=0.0)
    progress_message: Mapped[str] = mapped_column(default="")
    result: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
