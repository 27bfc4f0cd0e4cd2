"""/api/v1/tasks: what sites can be asked for, as typed graphs over modules (docs/site-plans.md)."""

from typing import Annotated, Final

from fastapi import Path
from sqlalchemy import select

from sprat_server.access import audit
from sprat_server.api.auth import Operator, Releaser, Viewer
from sprat_server.api.described import raises
from sprat_server.api.paging import Page, Paging
from sprat_server.api.ports import BlobsDep
from sprat_server.api.preconditions import Seen
from sprat_server.api.routes import operators_router
from sprat_server.db.paging import take_page
from sprat_server.db.session import SessionDep
from sprat_server.flows import site_plans as flow
from sprat_server.jobs.schemas import JobAccepted, JobView
from sprat_server.sites import records
from sprat_server.sites.models import SiteTask
from sprat_server.sites.schemas import NewTaskGraph, NewTaskSplit, TaskView

router = operators_router(prefix="/tasks", tags=["tasks"])

Name = Annotated[str, Path(max_length=63, description="Of the task.")]
_TASK: Final = raises(not_found=["task.unknown"])


@router.post(
    "",
    status_code=202,
    responses=raises(
        not_found=["dataset.unknown", "model.unknown", "release.unknown"],
        conflict=["task.exists"],
        invalid=["task.invalid"],
    ),
)
def create_task(body: NewTaskGraph, session: SessionDep, operator: Operator) -> JobAccepted:
    """Have a worker check a task against its modules' newest releases, edge by edge, and keep it."""
    job = flow.ask_task(session, body, operator)
    asked = body.model_dump(mode="json") | {"job": str(job.id)}
    audit.record(session, operator, "task.create", f"task:{body.name}", after=asked)
    return JobAccepted(job=JobView.of(job))


@router.post(
    "/split",
    status_code=202,
    responses=raises(not_found=["blob.unknown"], conflict=["task.exists"]),
)
def split_task(body: NewTaskSplit, session: SessionDep, releaser: Releaser, blobs: BlobsDep) -> JobAccepted:
    """Have a worker take a torch module apart into models, register them, and make the task of them: all or nothing."""
    job = flow.ask_split(session, blobs, body, releaser)
    asked = body.model_dump(mode="json") | {"job": str(job.id)}
    audit.record(session, releaser, "task.split", f"task:{body.name}", after=asked)
    return JobAccepted(job=JobView.of(job))


@router.get("")
def list_tasks(session: SessionDep, _viewer: Viewer, page: Paging) -> Page[TaskView]:
    """List tasks, by name."""
    rows, following = take_page(
        session,
        select(SiteTask),
        key=SiteTask.name,
        parse=str,
        cursor=page.cursor,
        limit=page.limit,
        newest_first=False,
    )
    return Page(items=[_view(session, row) for row in rows], next=following)


@router.get("/{name}", responses=_TASK)
def get_task(name: Name, session: SessionDep, _viewer: Viewer) -> TaskView:
    """Show a task."""
    return _view(session, records.get_task(session, name))


@router.delete("/{name}", responses=raises(not_found=["task.unknown"], conflict=["task.in-use"]))
def delete_task(name: Name, session: SessionDep, operator: Operator, seen: Seen) -> TaskView:
    """Delete a task of which no plan is signed."""
    seen.require(session, f"task:{name}", lambda: _view(session, records.get_task(session, name)))
    task = records.get_task(session, name)
    shown = _view(session, task)
    records.remove_task(session, task)
    audit.record(session, operator, "task.delete", f"task:{name}", before=shown.model_dump(mode="json"))
    return shown


def _view(session: SessionDep, task: SiteTask) -> TaskView:
    return TaskView.of(task, records.plans_with_task(session, task.name))
