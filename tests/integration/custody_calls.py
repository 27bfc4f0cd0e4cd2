"""People with keys: `sprat` in this process against the application on loopback; clients that follow its metadata."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
import uvicorn
from fastapi import FastAPI
from http_calls import as_scope
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig
from tuf_calls import OverHttp
from typer.testing import CliRunner

from sprat_client.cli.app import app as sprat_app
from sprat_client.cli.invocation import Invocation
from sprat_server.access.tokens import Scope
from sprat_server.db.projects import DEFAULT_PROJECT
from sprat_server.publish import repository
from sprat_shared.errors import SpratError


def updater(app: FastAPI, folder: Path, fetcher: FetcherInterface | None = None) -> Updater:
    """A client that trusts the first root, as a device that enrolled long ago does."""
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        root = repository.read_metadata(session, [("root", 1)])["root", 1]
    folder.mkdir(exist_ok=True)
    return Updater(
        str(folder),
        "http://sprat.test/tuf/image/",
        fetcher=fetcher or OverHttp(as_scope(app, Scope.VIEWER)),
        config=UpdaterConfig(prefix_targets_with_hash=False),
        bootstrap=root,
    )


@dataclass
class Desk:
    """A folder with keys, and `sprat` with a token of the server; without one it is a machine without a network."""

    folder: Path
    env: dict[str, str]

    def sprat(self, *words: str) -> list[dict[str, Any]]:
        """Run a command with --json; return the objects it printed. Its error passes as it is."""
        typer.main.get_command(sprat_app)
        ended = CliRunner().invoke(sprat_app, [*words, "--json"], obj=Invocation(), env=self.env)
        if isinstance(ended.exception, SpratError):
            raise ended.exception
        assert ended.exit_code == 0, (words, ended.output, ended.exception)
        return [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]

    def one(self, *words: str) -> dict[str, Any]:
        """Run a command that prints one object."""
        (said,) = self.sprat(*words)
        return said

    def key(self, name: str) -> str:
        """Make a key with a passphrase; return the path of its public half."""
        secret = self.folder / "passphrase"
        if not secret.exists():
            secret.touch(0o600)
            secret.write_text("correct horse battery staple\n")
        self.one("keys", "generate", name, "--folder", str(self.folder), "--passphrase-file", str(secret))
        return str(self.folder / f"{name}.pub.json")

    def signing(self, name: str) -> list[str]:
        """The options with which the key of `name` signs."""
        return ["--key", f"file2:{self.folder / name}.pem", "--passphrase-file", str(self.folder / "passphrase")]


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """Serve the application on loopback; give its URL."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def desk(app: FastAPI, tmp_path: Path) -> Iterator[Desk]:
    """The desk of a release engineer, with an admin's token."""
    folder = tmp_path / "desk"
    folder.mkdir()
    token = as_scope(app, Scope.ADMIN).token or ""
    with serving(app) as url:
        yield Desk(folder, {"SPRAT_SERVER": url, "SPRAT_TOKEN": token, "SPRAT_CONFIG": str(folder / "none")})


@pytest.fixture
def vault(desk: Desk) -> Desk:
    """A machine with the same keys and no network at all."""
    return Desk(desk.folder, {"SPRAT_SERVER": "", "SPRAT_TOKEN": "", "SPRAT_CONFIG": str(desk.folder / "none")})
