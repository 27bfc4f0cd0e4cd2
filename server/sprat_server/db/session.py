"""Connections and transactions: one request, one transaction, committed before the answer leaves.

A `yield` dependency of FastAPI that commits does so *after* the answer was sent unless it is declared with
`scope="function"`: a failed commit would still answer 200. `SessionDep` is declared so; use it and nothing else.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Request
from sqlalchemy import Engine, create_engine
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.orm import Session, sessionmaker

from sprat_server.db import projects
from sprat_shared.errors import InvalidInput


def database_url(text: str) -> URL:
    """Return `text` (postgresql://…) as the URL that SQLAlchemy opens with psycopg 3.

    Raises:
        InvalidInput: it is no URL, or of another database.
    """
    try:
        url = make_url(text)
    except ArgumentError:
        raise InvalidInput("SPRAT_DATABASE_URL is not a URL; write postgresql://user:password@host/database") from None
    if url.get_backend_name() not in {"postgresql", "postgres"}:
        raise InvalidInput(f"SPRAT_DATABASE_URL names {url.drivername!r}; sprat needs postgresql://…")
    return url.set(drivername="postgresql+psycopg")


class Database:
    """The engine and its sessions; one for each process.

    Args:
        url: postgresql://…; a Unix socket is `postgresql://user@/name?host=/folder`.
        pool_size: connections kept open; as many again may be opened under load.
        statement_timeout_s: after this a statement is given up; None: never (a worker's long reads).
    """

    def __init__(self, url: str, *, pool_size: int = 10, statement_timeout_s: float | None = 30.0) -> None:
        options = ["-c timezone=UTC", "-c application_name=sprat"]
        if statement_timeout_s is not None:
            options.append(f"-c statement_timeout={round(statement_timeout_s * 1000)}")
        self.url = database_url(url)
        self.engine: Engine = create_engine(
            self.url,
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_pre_ping=True,
            hide_parameters=True,  # values of a failed statement stay out of logs
            connect_args={"options": " ".join(options), "connect_timeout": 10},
        )
        projects.forget_at_checkin(self.engine)
        self._sessions = sessionmaker(self.engine, class_=projects.ProjectSession, expire_on_commit=False)

    @property
    def conninfo(self) -> str:
        """The URL in the form that psycopg itself takes."""
        return self.url.set(drivername="postgresql").render_as_string(hide_password=False)

    @contextmanager
    def transaction(self, project_id: UUID | None) -> Iterator[Session]:
        """Give a session whose one transaction is committed at the end, or rolled back when an error passes.

        Args:
            project_id: whose rows it sees and adds; None: that is found out in it, and then said (`projects.enter`).
        """
        with self._sessions() as session, session.begin():
            if project_id is not None:
                projects.enter(session, project_id)
            yield session

    @contextmanager
    def across_projects(self) -> Iterator[Session]:
        """Give a session as `transaction` does, which sees every project: for what the server does by itself."""
        with self._sessions() as session, session.begin():
            projects.leave(session)
            yield session

    def close(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()


def one_transaction(request: Request) -> Iterator[Session]:
    """Give the request its session; commit before the answer leaves (see the top of this file).

    It acts in no project until the caller has said who it is (`api.auth`).
    """
    database: Database = request.app.state.database
    with database.transaction(None) as session:
        yield session


SessionDep = Annotated[Session, Depends(one_transaction, scope="function")]
