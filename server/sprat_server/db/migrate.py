"""Bring a database to the schema of this sprat: the numbered, linear migrations of `migrations/`, through Alembic."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import OperationalError

import sprat_server
from sprat_shared.errors import Conflict, TryLater

LOCK_TIMEOUT_S: Final = 4
"""A migration gives up rather than queue behind a long transaction and block everyone behind itself."""

_UPGRADE_LOCK: Final = 0x5350_5241_5402  # an advisory lock: one upgrade at a time


class SchemaMismatch(Conflict):
    """The database has another schema than this sprat needs."""

    code = "database.schema-mismatch"


def migrations_dir() -> Path:
    """Return the folder of the migrations: in a wheel inside the package, in a checkout at its root."""
    package = Path(sprat_server.__file__).parent
    for folder in (package / "migrations", package.parent.parent / "migrations"):
        if (folder / "env.py").is_file():
            return folder
    raise FileNotFoundError(f"no migrations beside {package}; install sprat again")


def alembic_config(connection: Connection | None = None) -> Config:
    """Return Alembic's configuration for our migrations, run on `connection`."""
    config = Config()
    config.set_main_option("script_location", str(migrations_dir()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def compared(name: str | None, kind: str, _parents: object) -> bool:
    """Say whether a table belongs to our metadata: procrastinate's do not."""
    return kind != "table" or not (name or "").startswith("procrastinate_")


def newest_revision() -> str:
    """Return the name of the newest migration of this sprat."""
    (head,) = ScriptDirectory.from_config(alembic_config()).get_heads()
    return head


def current_revision(connection: Connection) -> str | None:
    """Return the name of the newest migration that the database has; None: it is empty."""
    return MigrationContext.configure(connection).get_current_revision()


def upgrade(engine: Engine, revision: str = "head") -> tuple[str | None, str | None]:
    """Apply the migrations up to `revision`, each in a transaction of its own, one upgrade at a time.

    Returns:
        The revision before and the one after.

    Raises:
        SchemaMismatch: the database was upgraded by a newer sprat.
        TryLater: a lock was not to be had within `LOCK_TIMEOUT_S`; what was applied before stays.
    """
    with engine.connect() as connection:
        before = _prepare(connection)
        if revision == "head" and before is not None:
            known = {script.revision for script in ScriptDirectory.from_config(alembic_config()).walk_revisions()}
            if before not in known:
                raise SchemaMismatch(
                    f"the database is at {before}, which this sprat does not know; use the newer sprat that made it"
                )
        with _giving_up():
            command.upgrade(alembic_config(connection), revision)
        return before, current_revision(connection)


def downgrade(engine: Engine, revision: str) -> None:
    """Undo the migrations after `revision`, each in a transaction of its own. What their tables held is lost.

    Raises:
        TryLater: as `upgrade`.
    """
    with engine.connect() as connection:
        _prepare(connection)
        with _giving_up():
            command.downgrade(alembic_config(connection), revision)


def require_newest(engine: Engine) -> None:
    """Return if the database has exactly the schema of this sprat.

    Raises:
        SchemaMismatch: it is older or newer; the message says what to run.
    """
    with engine.connect() as connection:
        current = current_revision(connection)
    if current != newest_revision():
        raise SchemaMismatch(
            f"the database is at {current or 'no schema'}, this sprat needs {newest_revision()}: "
            "run `sprat-server db upgrade`, or use the sprat that fits the database"
        )


@contextmanager
def _giving_up() -> Iterator[None]:
    try:
        yield
    except OperationalError as e:
        raise TryLater(
            f"the database did not let the migration through ({e.orig}); nothing of the failed step was kept: "
            "end long transactions and run it again",
            code="database.busy",
        ) from e


def _prepare(connection: Connection) -> str | None:
    connection.detach()  # closed at the end, not pooled: lock and settings below end with it
    connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _UPGRADE_LOCK})
    connection.execute(text(f"SET lock_timeout = '{LOCK_TIMEOUT_S}s'"))
    connection.execute(text("SET statement_timeout = 0"))
    current = current_revision(connection)
    connection.commit()
    return current
