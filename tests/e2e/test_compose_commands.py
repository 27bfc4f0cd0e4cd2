"""The commands that docker-compose.yml has its containers run, run here: same words, other folders and ports."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from psycopg.conninfo import conninfo_to_dict

from sprat_server.db.embedded import EmbeddedPostgres
from sprat_server.db.session import Database

ROOT = Path(__file__).resolve().parents[2]
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
PROGRAMS = {"api": "sprat-server", "worker": "sprat-server"}  # build target: entry point of its image
PATIENCE_S = 60


class Containers:
    """Stands for the engine: turns paths, host and port of the containers into those of this test."""

    def __init__(self, folder: Path, database_url: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.words = {
            "postgresql://sprat@db:5432/sprat?passfile=/run/sprat/pgpass": database_url,
            "/var/lib/sprat-agent": str(folder / "agent"),
            "/var/lib/sprat": str(folder / "server"),
            "/run/sprat": str(folder / "secrets"),
            "/run/fleet": str(folder / "fleet"),
            "http://server:8470": f"http://127.0.0.1:{port}",
            "127.0.0.1:8470": f"127.0.0.1:{port}",
            "0.0.0.0": "127.0.0.1",
            "8470": str(port),
            "$$": "$",
        }
        for name in ("agent", "server", "secrets", "fleet"):
            (folder / name).mkdir()

    def here(self, text: str) -> str:
        """The text with the containers' words replaced."""
        for there, word in self.words.items():
            text = text.replace(there, word)
        return text

    def environment(self, service: str) -> Mapping[str, str]:
        """What the service sees: its own variables and none of ours that are sprat's."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith("SPRAT_")}
        bin_folder = str(Path(sys.executable).parent)
        own = {
            name: self.here(str(value))
            for name, value in SERVICES[service].get("environment", {}).items()
            if not str(value).startswith("${")
        }
        return {**ours, "PATH": f"{bin_folder}{os.pathsep}{ours['PATH']}", "OMP_NUM_THREADS": "1", **own}

    def command(self, service: str) -> list[str]:
        """The words that the service's container would run."""
        described = SERVICES[service]
        target = described.get("build", {}).get("target")
        entrypoint = described.get("entrypoint") or [PROGRAMS[target]]
        return [self.here(word) for word in (*entrypoint, *described["command"])]

    def run(self, service: str) -> None:
        """Run a service that ends by itself."""
        done = subprocess.run(
            self.command(service),
            env=self.environment(service),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, f"{service}: {done.stdout}{done.stderr}"

    @contextmanager
    def up(self, service: str) -> Iterator[None]:
        """Run a lasting service until the block ends; inside the block its health check has passed."""
        log = Path(self.here("/var/lib/sprat")).parent / f"{service}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                self.command(service), env=self.environment(service), stdout=output, stderr=subprocess.STDOUT
            )
        try:
            check = [self.here(word) for word in SERVICES[service]["healthcheck"]["test"][1:]]
            until = time.monotonic() + PATIENCE_S
            while subprocess.run(check, env=self.environment(service), capture_output=True, check=False).returncode:
                assert process.poll() is None, f"{service} ended: {log.read_text()}"
                assert time.monotonic() < until, f"{service} is not healthy: {log.read_text()}"
                time.sleep(0.2)
            yield
        finally:
            process.terminate()
            assert process.wait(PATIENCE_S) == 0, f"{service} did not stop as asked: {log.read_text()}"


@pytest.fixture
def containers(tmp_path: Path) -> Iterator[Containers]:
    with EmbeddedPostgres(tmp_path / "postgres") as postgres:
        yield Containers(tmp_path, postgres.url)


@pytest.mark.e2e
def test_the_containers_commands_bring_up_a_healthy_fleet_that_enrols_by_itself(containers: Containers) -> None:
    containers.run("migrate")
    with containers.up("server"), containers.up("worker"):
        containers.run("enrolment")
        with containers.up("agent-1"):
            enrolled = containers.here("/var/lib/sprat-agent/agent.json")
            identity = Path(enrolled).read_bytes()
        with containers.up("agent-1"):
            assert Path(enrolled).read_bytes() == identity
        containers.run("enrolment")


def test_the_password_of_the_database_is_made_once_and_kept(tmp_path: Path) -> None:
    containers = Containers(tmp_path, database_url="")
    containers.run("secrets")
    folder = Path(containers.here("/run/sprat"))
    password, pgpass = (folder / "db-password").read_text(), folder / "pgpass"
    assert pgpass.read_text() == f"db:5432:sprat:sprat:{password}\n"
    assert pgpass.stat().st_mode & 0o777 == 0o600
    assert len(password) > 40
    containers.run("secrets")
    assert (folder / "db-password").read_text() == password


def test_the_servers_processes_read_the_password_from_the_file_that_was_made() -> None:
    database = Database(SERVICES["server"]["environment"]["SPRAT_DATABASE_URL"])
    assert conninfo_to_dict(database.conninfo) == {
        "host": "db",
        "port": "5432",
        "user": "sprat",
        "dbname": "sprat",
        "passfile": "/run/sprat/pgpass",
    }
    database.close()
