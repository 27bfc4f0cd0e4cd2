"""One real PostgreSQL for the run, a fresh database for each test, and clients that talk to the real application."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psycopg
import pytest
from fastapi import FastAPI
from http_calls import MADE, Api, as_scope
from starlette.routing import BaseRoute

from sprat_server.access.tokens import Scope
from sprat_server.app import create_app
from sprat_server.db import migrate
from sprat_server.db.blobs import Blob, Blobs
from sprat_server.db.embedded import EmbeddedPostgres
from sprat_server.db.projects import DEFAULT_PROJECT
from sprat_server.db.session import Database
from sprat_server.observe import logs
from sprat_server.registry import service as registry
from sprat_server.settings import Settings

_FAST: Final = (  # no power cut is tested on this one, and a database lives for a second
    "fsync = off",
    "synchronous_commit = off",
    "full_page_writes = off",
    "autovacuum = off",
    "checkpoint_timeout = '1h'",
)
_MEMORY: Final = Path("/dev/shm")
_ROOM_BYTES: Final = 12 << 30
_ROUTES: list[BaseRoute] = []
"""The same for every application, and FastAPI takes a tenth of a second to make ready those of one."""


def _has_room(folder: Path) -> bool:
    return folder.is_dir() and shutil.disk_usage(folder).free > _ROOM_BYTES


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """The embedded PostgreSQL, with a migrated database `template_sprat` to copy."""
    logs.configure(log_format="json", log_level="warning")
    folder = Path(tempfile.mkdtemp(prefix="sprat-test-", dir=_MEMORY if _has_room(_MEMORY) else None))
    try:
        with EmbeddedPostgres(folder / "data") as server:
            _admin(server, "CREATE DATABASE template_sprat")
            for setting in _FAST:
                _admin(server, f"ALTER SYSTEM SET {setting}")
            _admin(server, "SELECT pg_reload_conf()")
            database = Database(_url(server, "template_sprat"))
            migrate.upgrade(database.engine)
            database.close()
            yield server
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def database_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """The URL of a fresh database with the newest schema."""
    name = f"test_{os.getpid()}_{next(MADE)}"
    _admin(postgres, f"CREATE DATABASE {name} TEMPLATE template_sprat")
    yield _url(postgres, name)
    _admin(postgres, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def empty_database_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """The URL of a fresh database with nothing in it."""
    name = f"test_{os.getpid()}_{next(MADE)}"
    _admin(postgres, f"CREATE DATABASE {name}")
    yield _url(postgres, name)
    _admin(postgres, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A fresh database."""
    opened = Database(database_url)
    yield opened
    opened.close()


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    """Settings of a server on the fresh database, its data in the test's folder."""
    return Settings(database_url=database_url, data_dir=tmp_path / "data", auto_sign="*")


class Uploads(Blobs):
    """A blob store whose blobs are the default project's, as if its people had uploaded them."""

    database: Database

    def put_bytes(self, data: bytes | memoryview) -> Blob:
        return self._own(super().put_bytes(data))

    def put_file(self, path: Path) -> Blob:
        return self._own(super().put_file(path))

    def _own(self, blob: Blob) -> Blob:
        with self.database.transaction(DEFAULT_PROJECT) as session:
            registry.own_blob(session, blob.digest)
        return blob


@pytest.fixture
def blobs(settings: Settings, database: Database) -> Uploads:
    """The blob store of these settings, for uploads to the default project."""
    opened = Uploads.open(settings.blobs)
    opened.database = database
    return opened


@pytest.fixture
def app(settings: Settings) -> Iterator[FastAPI]:
    """The real application on the fresh database."""
    made = create_app(settings)
    if not _ROUTES:
        _ROUTES.extend(made.router.routes)
    made.router.routes = list(_ROUTES)  # a test may add one of its own
    yield made
    made.state.database.close()


@pytest.fixture
def admin(app: FastAPI) -> Api:
    """A client with an admin's token."""
    return as_scope(app, Scope.ADMIN)


@pytest.fixture
def releaser(app: FastAPI) -> Api:
    """A client with a releaser's token."""
    return as_scope(app, Scope.RELEASER)


@pytest.fixture
def operator(app: FastAPI) -> Api:
    """A client with an operator's token."""
    return as_scope(app, Scope.OPERATOR)


@pytest.fixture
def viewer(app: FastAPI) -> Api:
    """A client with a viewer's token."""
    return as_scope(app, Scope.VIEWER)


@pytest.fixture
def server_admin(app: FastAPI) -> Api:
    """A client with an admin's token of the whole server."""
    return as_scope(app, Scope.ADMIN, None)


@pytest.fixture
def server_viewer(app: FastAPI) -> Api:
    """A client with a viewer's token of the whole server."""
    return as_scope(app, Scope.VIEWER, None)


@pytest.fixture
def anonymous(app: FastAPI) -> Api:
    """A client without a token."""
    return Api(app, None)


def _url(server: EmbeddedPostgres, database: str) -> str:
    return server.url.replace("@/sprat?", f"@/{database}?")


def _admin(server: EmbeddedPostgres, statement: str) -> None:
    with psycopg.connect(_url(server, "postgres"), autocommit=True) as connection:
        connection.execute(statement)  # type: ignore[arg-type] # names made here
