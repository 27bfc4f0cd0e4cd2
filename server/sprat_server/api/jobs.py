"""/api/v1/jobs: what workers do, and stopping it."""

from typing import Annotated, Literal
from uuid import UUID

from fastapi import Query
from sqlalchemy import select

from sprat_server.access import audit
from sprat_server.api.auth import Operator, Viewer
from sprat_server.api.described import raises
from sprat_server.api.paging import Page, SortedPaging
from sprat_server.api.routes import operators_router
from sprat_server.db.session import SessionDep
from sprat_server.jobs import service
from sprat_server.jobs.models import Job
from sprat_server.jobs.schemas import JobView

router = operators_router(prefix="/jobs", tags=["jobs"])


@router.get("")
def list_jobs(
    session: SessionDep,
    _viewer: Viewer,
    page: SortedPaging,
    kind: Annotated[str | None, Query(description="Only jobs of this kind.")] = None,
    state: Annotated[Literal["queued", "running", "succeeded", "failed", "cancelled"] | None, Query()] = None,
) -> Page[JobView]:
    """List jobs, newest first."""
    query = select(Job)
    if kind is not None:
        query = query.where(Job.kind == kind)
    if state is not None:
        query = query.where(Job.state == state)
    rows, following = page.take(session, query, key=Job.id, parse=UUID)
    return Page(items=[JobView.of(job) for job in rows], next=following)


@router.get("/{job_id}", responses=raises(not_found=["job.unknown"]))
def get_job(job_id: UUID, session: SessionDep, _viewer: Viewer) -> JobView:
    """Show one job."""
    return JobView.of(service.get(session, job_id))


@router.post("/{job_id}/cancel", responses=raises(not_found=["job.unknown"], conflict=["job.ended"]))
def cancel_job(job_id: UUID, session: SessionDep, operator: Operator) -> JobView:
    """Cancel a job: at once while it is queued, at its task's next check while it runs."""
    before = service.get(session, job_id).state
    job = service.cancel(session, job_id)
    audit.record(session, operator, "job.cancel", f"job:{job.id}", {"state": before}, {"state": job.state})
    return JobView.of(job)
