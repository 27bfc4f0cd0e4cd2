"""Projects keep apart what belongs to different people: whose rows a session sees, and whose it adds.

A table of the operators takes the mixin `ProjectOwned`. A session acts in one project (`Database.transaction(id)`, or
`enter` as soon as it is known who calls); from then on every query of the ORM is narrowed to that project by the
session itself, subqueries and joins too, and new rows are of that project. Nothing is left to the query.

What works across projects says so: `Database.across_projects()` for a session, the option `ACROSS` for one
statement. A session that knows no project yet refuses queries of such tables, and every session refuses SQL text and
bare tables that name them, for those cannot be narrowed.
"""

import re
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, Final, cast
from uuid import UUID

from sqlalchemy import (
    CheckConstraint,
    ClauseElement,
    Engine,
    ForeignKeyConstraint,
    Insert,
    Join,
    Select,
    Table,
    TextClause,
    UniqueConstraint,
    event,
    false,
    func,
)
from sqlalchemy.engine import Connection
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.orm import (
    LoaderCriteriaOption,
    Mapped,
    ORMExecuteState,
    Session,
    SessionTransaction,
    mapped_column,
    with_loader_criteria,
)
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.sql import visitors

from sprat_server.db.base import Base
from sprat_shared.ids import new_id

DEFAULT_PROJECT: Final = UUID("00000000-0000-7000-8000-000000000001")
"""The project `default`, which every server has: what was there before there were projects is in it."""

SERVER: Final = UUID(int=0)
"""No project: stands in the audit log where somebody acted on the server itself."""

ACROSS: Final[Mapping[str, Any]] = {"sprat_across_projects": True}
"""Options of one statement that must look at every project's rows, such as the search for who shows a token."""

_KEY: Final = "sprat.project"
_EVERY: Final = "every"


class Project(Base):
    """What belongs together: models, devices, rollouts and all else of some people, kept apart from that of others."""

    __tablename__ = "project"
    __table_args__ = (
        UniqueConstraint("name"),
        CheckConstraint("name ~ '^[a-z0-9-]{1,63}$'", name="name_is_plain"),
        CheckConstraint("char_length(title) <= 200", name="title_is_short"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str]
    title: Mapped[str] = mapped_column(default="")  # what people call it
    created_by: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    changed_at: Mapped[datetime] = mapped_column(server_default=func.now())


def _of_the_session(context: Any) -> UUID:
    project = context.connection.info.get(_KEY)
    if not isinstance(project, UUID):
        raise RuntimeError(  # noqa: TRY004 - a bug of ours, not a wrong type
            f"a row of {context.compiled.statement.table.name} is added by a session that acts in no project: "
            "open it with transaction(project), or enter() one"
        )
    return project


class ProjectOwned:
    """A mixin for tables whose rows belong to a project; the session that adds a row says to which."""

    project_id: Mapped[UUID] = mapped_column(default=_of_the_session)


def in_project() -> ForeignKeyConstraint:
    """Return the constraint of a table that belongs to a project by itself, not through another table."""
    return ForeignKeyConstraint(["project_id"], ["project.id"])


def within(table: str, column: str = "", *, ondelete: str | None = None) -> ForeignKeyConstraint:
    """Return the foreign key to a row of the same project: rows of two projects cannot be joined.

    Args:
        table: what is referred to; it has a unique constraint over project_id and id.
        column: that holds the id; `<table>_id` unless given.
        ondelete: as of any foreign key.
    """
    columns = ["project_id", column or f"{table}_id"]
    return ForeignKeyConstraint(columns, [f"{table}.project_id", f"{table}.id"], ondelete=ondelete)


def enter(session: Session, project_id: UUID) -> None:
    """Have a session act in a project from now on; what it added before is of the project of before."""
    session.flush()
    session.info[_KEY] = project_id
    session.connection().info[_KEY] = project_id


def leave(session: Session) -> None:
    """Have a session see the rows of all projects from now on; it must say itself of which one what it adds is."""
    session.flush()
    session.info[_KEY] = _EVERY
    session.connection().info[_KEY] = _EVERY


def project_of(session: Session) -> UUID:
    """Return the project that a session acts in. Raises RuntimeError where it acts in none: a bug."""
    project = session.info.get(_KEY)
    if not isinstance(project, UUID):
        raise RuntimeError("this session acts in no project")  # noqa: TRY004 - a bug of ours, not a wrong type
    return project


def acts_in(connection: Connection) -> UUID | None:
    """Return the project of the session that uses a connection; None: it acts in none, or across all."""
    project = connection.info.get(_KEY)
    return project if isinstance(project, UUID) else None


class ProjectSession(Session):
    """A session that keeps projects apart."""


def forget_at_checkin(engine: Engine) -> None:
    """Have connections that go back to the pool forget for which project they worked."""
    event.listen(engine, "checkin", _forget)


def _forget(_connection: DBAPIConnection, entry: ConnectionPoolEntry) -> None:
    entry.info.pop(_KEY, None)


@event.listens_for(ProjectSession, "after_begin")
def _tell_connection(session: Session, _transaction: SessionTransaction, connection: Connection) -> None:
    connection.info[_KEY] = session.info.get(_KEY)


@event.listens_for(ProjectSession, "do_orm_execute")
def _narrow(state: ORMExecuteState) -> None:
    project = state.session.info.get(_KEY)
    if state.execution_options.get("sprat_across_projects") or project == _EVERY or state.is_column_load:
        return
    if not state.is_orm_statement:
        _refuse_owned(state)
    elif not isinstance(project, UUID) and any(_is_owned(mapper.class_) for mapper in state.all_mappers):
        raise RuntimeError(f"it is not known yet in which project this acts: {state.statement}")
    elif isinstance(state.statement, Insert):
        _narrow_source(state.statement, project)
    else:
        criteria = _criteria(project) if isinstance(project, UUID) else _NOTHING
        state.statement = state.statement.options(criteria)


def _narrow_source(statement: Insert, project: object) -> None:
    """Narrow what rows are made of (INSERT … SELECT, where the ORM does not); whose they are, the column says."""
    if not isinstance(statement.select, Select):
        return
    for source in statement.select.get_final_froms():
        if isinstance(source, Join):
            raise RuntimeError(  # noqa: TRY004 - a bug of ours, not a wrong type
                f"INSERT … SELECT from a join cannot be narrowed to a project: {statement}"
            )
        if "project_id" in source.c:
            statement.select = statement.select.where(source.c.project_id == project)


@lru_cache(maxsize=4096)
def _criteria(project_id: UUID) -> LoaderCriteriaOption:
    return with_loader_criteria(ProjectOwned, lambda cls: cls.project_id == project_id, include_aliases=True)


_NOTHING: Final = with_loader_criteria(ProjectOwned, lambda _cls: false(), include_aliases=True)


def _is_owned(mapped: type) -> bool:
    return issubclass(mapped, ProjectOwned)


def _refuse_owned(state: ORMExecuteState) -> None:
    statement = state.statement
    if isinstance(statement, TextClause):
        words = set(re.findall(r"[a-z_]+", statement.text))
        named = {table for table in _owned_tables() if table in words}
    else:
        there = visitors.iterate(cast("ClauseElement", statement))
        named = {each.name for each in there if isinstance(each, Table)} & _owned_tables()
    if named:
        raise RuntimeError(
            f"{', '.join(sorted(named))}: SQL that is not the ORM's sees every project; say so with ACROSS"
        )


@lru_cache(maxsize=1)
def _owned_tables() -> frozenset[str]:
    return frozenset(mapper.class_.__tablename__ for mapper in Base.registry.mappers if _is_owned(mapper.class_))
