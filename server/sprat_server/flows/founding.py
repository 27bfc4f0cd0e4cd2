"""A project's beginning: keys and signed metadata of its own, so that its devices trust nobody else's."""

from uuid import UUID

from sqlalchemy.orm import Session

from sprat_server.db import projects
from sprat_server.publish import director_root
from sprat_server.publish.image import open_repository
from sprat_server.settings import Settings


def found(session: Session, settings: Settings, project_id: UUID) -> None:
    """Make a project's keys and first metadata where there are none, and check the keys; the session acts in it then.

    Raises:
        KeysUnusable: a key is missing, unreadable, or not the one that devices trust.
    """
    projects.enter(session, project_id)
    open_repository(session, settings)
    director_root.ensure(session, settings)
