"""Projects: made, found, listed. What they keep apart, and how, is in `db.projects`. Callers own the transaction."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from sprat_server.db.projects import Project
from sprat_server.observe.actors import Actor
from sprat_shared.errors import Conflict, NotFound

DEFAULT_NAME: Final = "default"


class ProjectUnknown(NotFound):
    """There is no project of this name, or none that the caller may know of."""

    code = "project.unknown"

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no project called {name[:80]!r} for this token; `sprat project list` shows them")


def find(session: Session, name: str) -> Project:
    """Return the project of this name.

    Raises:
        ProjectUnknown: there is none.
    """
    project = session.scalar(select(Project).where(Project.name == name))
    if project is None:
        raise ProjectUnknown(name)
    return project


def ids(session: Session) -> Sequence[UUID]:
    """Return the ids of all projects, the oldest first."""
    return session.scalars(select(Project.id).order_by(Project.id)).all()


def create(session: Session, *, name: str, title: str, by: Actor) -> Project:
    """Make a project; nothing is in it.

    Raises:
        Conflict: there is one of this name.
    """
    project = Project(name=name, title=title, created_by=str(by))
    try:
        with session.begin_nested():
            session.add(project)
    except IntegrityError as clash:
        if "uq_project_name" not in str(clash.orig):
            raise
        raise Conflict(f"a project called {name!r} exists; choose another name", code="project.exists") from clash
    session.refresh(project)
    return project


def change(session: Session, project: Project, *, title: str) -> None:
    """Give a project another title. Its name stays: it stands in scripts."""
    project.title, project.changed_at = title, datetime.now(UTC)
    session.flush()
