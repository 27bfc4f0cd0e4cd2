"""/api/v1/projects: what keeps the models, devices and all else of different people apart."""

from uuid import UUID

from sqlalchemy import select

from sprat_server.access import audit, projects
from sprat_server.access.schemas import NewProject, ProjectChange, ProjectView
from sprat_server.api.auth import ServerAdmin, Viewer
from sprat_server.api.described import raises
from sprat_server.api.paging import Page, SortedPaging
from sprat_server.api.ports import SettingsDep
from sprat_server.api.preconditions import Seen
from sprat_server.api.routes import operators_router
from sprat_server.db.projects import Project, project_of
from sprat_server.db.session import SessionDep
from sprat_server.flows import founding

router = operators_router(prefix="/projects", tags=["projects"])


@router.post("", status_code=201, responses=raises(conflict=["project.exists"]))
def create_project(body: NewProject, session: SessionDep, settings: SettingsDep, admin: ServerAdmin) -> ProjectView:
    """Make a project, with signing keys and metadata of its own; tokens for it are made in it."""
    project = projects.create(session, name=body.name, title=body.title, by=admin)
    after = body.model_dump(mode="json")
    audit.record(session, admin, "project.create", f"project:{project.id}", after=after, of_server=True)
    founding.found(session, settings, project.id)
    return ProjectView.of(project)


@router.get("")
def list_projects(session: SessionDep, viewer: Viewer, page: SortedPaging) -> Page[ProjectView]:
    """List projects, newest first: all of them for a token of the whole server, else the token's own."""
    query = select(Project)
    if not viewer.whole_server:
        query = query.where(Project.id == project_of(session))
    rows, following = page.take(session, query, key=Project.id, parse=UUID)
    return Page(items=[ProjectView.of(project) for project in rows], next=following)


@router.get("/{project}")
def get_project(project: str, session: SessionDep, viewer: Viewer) -> ProjectView:
    """Show a project."""
    found = projects.find(session, project)
    if not viewer.whole_server and found.id != project_of(session):
        raise projects.ProjectUnknown(project)
    return ProjectView.of(found)


@router.patch("/{project}")
def change_project(
    project: str, body: ProjectChange, session: SessionDep, admin: ServerAdmin, seen: Seen
) -> ProjectView:
    """Give a project another title."""
    found = projects.find(session, project)
    seen.require(session, f"project:{project}", lambda: ProjectView.of(found))
    before = {"title": found.title}
    projects.change(session, found, title=body.title)
    after = body.model_dump(mode="json")
    audit.record(session, admin, "project.change", f"project:{found.id}", before, after, of_server=True)
    return ProjectView.of(found)
