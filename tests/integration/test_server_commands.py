"""`sprat-server` from outside: up under kills, serve and worker alone, db upgrade, refusals and exit codes."""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sprat_server.db.postgres_processes import living, postmaster_of

SPRAT_SERVER = [sys.executable, "-m", "sprat_server.cli"]


def environment(**more: str) -> dict[str, str]:
    """Return this environment without settings of sprat, and with these."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SPRAT_")} | more


class Up:
    """A running `sprat-server up` on a data folder."""

    def __init__(self, data_dir: Path, log: Path) -> None:
        self.data_dir, self.log = data_dir, log
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [*SPRAT_SERVER, "up", "--data-dir", data_dir, "--port", "0", "--json"],
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env=environment(SPRAT_WORKER_HEARTBEAT_S="0.5"),
            )
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], 120)
        assert ready, log.read_text()
        self.said: dict[str, Any] = json.loads(self.process.stdout.readline() or log.read_text())
        self.url: str = self.said["url"]

    def get(self, path: str, token: str | None = None) -> httpx.Response:
        """GET with a token."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return httpx.get(self.url + path, headers=headers, timeout=30)

    @property
    def postgres(self) -> int | None:
        """The pid of its PostgreSQL."""
        return postmaster_of(self.data_dir / "postgres")

    def workers(self) -> list[int]:
        """The pids of its worker."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdecimal() and b"sprat_server.cli\0worker" in (entry / "cmdline").read_bytes():
                    names = dict(item.partition(b"=")[::2] for item in (entry / "environ").read_bytes().split(b"\0"))
                    if names.get(b"SPRAT_DATA_DIR") == os.fsencode(self.data_dir):
                        found.append(int(entry.name))
            except OSError:
                continue
        return found


def wait_for(condition: Callable[[], object], what: str, timeout_s: float = 90) -> None:
    """Return when the condition holds; fail after the timeout."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"waited {timeout_s} s for: {what}"
        time.sleep(0.05)


@pytest.fixture
def data_dir() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="sprat-test-"))
    yield folder / "data"
    cluster = folder / "data" / "postgres"
    if (cluster / "postmaster.pid").exists():
        shutil.rmtree((cluster / "postmaster.pid").read_text().splitlines()[4], ignore_errors=True)
    for pid in living(cluster):
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def up(data_dir: Path, tmp_path: Path) -> Iterator[Callable[[], Up]]:
    """Starts `sprat-server up`; what still runs at the end is killed, with its worker and PostgreSQL."""
    started: list[Up] = []

    def start() -> Up:
        started.append(Up(data_dir, tmp_path / "up.log"))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.wait()
        if each.process.stdout is not None:
            each.process.stdout.close()
    for each in started:
        wait_for(lambda each=each: not each.workers(), "the end of the worker")


@pytest.fixture(scope="module")
def shared_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One running `sprat-server up` for tests that leave it running."""
    folder = tmp_path_factory.mktemp("up")
    running = Up(folder / "data", folder / "up.log")
    yield running
    running.process.terminate()
    assert running.process.wait(60) == 0
    assert running.process.stdout is not None
    running.process.stdout.close()


def run(*arguments: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(
        [*SPRAT_SERVER, *arguments], env=environment(**more), capture_output=True, text=True, timeout=120, check=False
    )


def test_up_starts_everything_says_the_token_once_and_stops_cleanly(up: Callable[[], Up]) -> None:
    first = up()
    token = first.said["admin_token"]
    assert first.url.startswith("http://127.0.0.1:")
    assert first.get("/healthz").status_code == 200
    assert first.get("/api/v1/jobs").status_code == 401
    assert first.get("/api/v1/jobs", token).status_code == 200
    wait_for(first.workers, "the worker")
    assert (first.data_dir / "keys").stat().st_mode & 0o077 == 0
    first.process.terminate()
    assert first.process.wait(60) == 0
    assert (first.postgres, first.workers()) == (None, [])
    assert token not in first.log.read_text()

    second = up()
    assert second.said["admin_token"] is None
    assert second.get("/api/v1/jobs", token).status_code == 200
    assert "last 5 minutes" not in second.log.read_text()
    second.process.send_signal(signal.SIGINT)
    assert second.process.wait(60) == 0


def test_up_goes_on_when_postgres_or_the_worker_is_killed(up: Callable[[], Up]) -> None:
    running = up()
    token = running.said["admin_token"]
    postgres = running.postgres
    assert postgres is not None
    os.kill(postgres, signal.SIGKILL)
    wait_for(lambda: running.postgres not in {None, postgres}, "another PostgreSQL")
    wait_for(lambda: running.get("/healthz").status_code == 200, "health")
    assert running.get("/api/v1/jobs", token).status_code == 200
    wait_for(running.workers, "the worker")
    (worker,) = running.workers()
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: running.workers() not in ([], [worker]), "another worker")


def test_after_up_was_killed_its_worker_ends_and_the_next_up_serves_the_same_data(up: Callable[[], Up]) -> None:
    first = up()
    token = first.said["admin_token"]
    wait_for(first.workers, "the worker")
    old = first.workers()
    first.process.kill()
    first.process.wait()
    second = up()
    assert second.get("/api/v1/jobs", token).status_code == 200
    wait_for(lambda: second.workers() and not set(old) & set(second.workers()), "only the new worker")
    os.kill(second.postgres or 0, signal.SIGKILL)
    second.process.kill()
    second.process.wait()
    third = up()
    assert third.get("/api/v1/jobs", token).status_code == 200


def test_a_second_up_on_the_same_folder_is_refused(shared_up: Up) -> None:
    done = run("up", "--data-dir", shared_up.data_dir, "--port", "0", "--json")
    error = json.loads(done.stderr.splitlines()[-1])["error"]
    assert (done.returncode, error["code"]) == (73, "postgres.folder-in-use")
    assert f"pid {shared_up.process.pid}" in error["detail"]
    assert shared_up.get("/healthz").status_code == 200


def test_a_lost_token_is_replaced_beside_a_running_server(shared_up: Up) -> None:
    done = run("db", "token", "--name", "me", "--scope", "admin", "--data-dir", shared_up.data_dir, "--json")
    token = json.loads(done.stdout)["token"]
    assert shared_up.get("/api/v1/tokens", token).status_code == 200
    newest = shared_up.get("/api/v1/audit?of_server=true", token).json()["items"][0]
    assert (newest["actor"], newest["action"], newest["after"]) == (
        "system:sprat",
        "token.create",
        {"name": "me", "scope": "admin"},
    )


def test_the_directors_key_is_replaced_beside_a_running_server(shared_up: Up) -> None:
    keys = shared_up.data_dir / "keys"
    (before,) = keys.glob("director-online-*.pem")
    done = run("db", "rotate-director", "--data-dir", shared_up.data_dir, "--json")
    assert json.loads(done.stdout)["old"] == str(before), done.stderr
    (after,) = keys.glob("director-online-*.pem")
    assert after != before
    root_key = keys / "director-root.pem"
    away = root_key.rename(root_key.with_suffix(".away"))
    refused = run("db", "rotate-director", "--data-dir", shared_up.data_dir)
    away.rename(root_key)
    assert (refused.returncode, list(keys.glob("director-online-*.pem"))) == (78, [after])
    assert "bring it back" in refused.stderr
    rooted = run("db", "rotate-director", "--root", "--data-dir", shared_up.data_dir, "--json")
    (new_root,) = keys.glob("director-root*.pem")
    assert json.loads(rooted.stdout) == {"old": str(root_key), "new": str(new_root)}, rooted.stderr


@pytest.mark.parametrize(
    ("arguments", "more", "code", "words"),
    [
        (["up", "--host", "0.0.0.0", "--port", "0"], {}, 65, "settings.plain-http"),
        (["up", "--host", "192.0.2.1", "--port", "0"], {}, 65, "settings.plain-http"),
        (["up"], {"SPRAT_PROT": "1"}, 65, "did you mean SPRAT_PORT"),
        (["serve"], {}, 65, "SPRAT_DATABASE_URL is not set"),
        (["worker"], {}, 65, "SPRAT_DATABASE_URL is not set"),
        (["serve"], {"SPRAT_DATABASE_URL": "mysql://x/y"}, 65, "needs postgresql://"),
        (["serve"], {"SPRAT_DATABASE_URL": "postgresql://x/y", "SPRAT_BLOB_URL": "ftp://x"}, 65, "s3://bucket/prefix"),
        (["up", "--port", "70000"], {}, 2, "65535"),
    ],
)
def test_what_cannot_work_is_refused_by_name_before_anything_starts(
    tmp_path: Path, arguments: list[str], more: dict[str, str], code: int, words: str
) -> None:
    done = run(*arguments, **({"SPRAT_DATA_DIR": str(tmp_path / "data")} | more))
    assert (done.returncode, words in done.stderr) == (code, True), done.stderr
    assert not (tmp_path / "data" / "postgres").exists()


def test_a_port_that_is_taken_is_named(shared_up: Up, tmp_path: Path) -> None:
    port = shared_up.url.rpartition(":")[2]
    done = run("up", "--data-dir", tmp_path / "other", "--port", port)
    assert (done.returncode, "settings.port-taken" in done.stderr) == (73, True)
    assert not (tmp_path / "other").exists()


def test_the_parts_alone_serve_a_database_that_was_upgraded(empty_database_url: str, tmp_path: Path) -> None:
    more = {"SPRAT_DATABASE_URL": empty_database_url, "SPRAT_DATA_DIR": str(tmp_path / "data")}
    refused = run("serve", "--port", "0", **more)
    assert (refused.returncode, "sprat-server db upgrade" in refused.stderr) == (73, True)
    refused = run("worker", **more)
    assert (refused.returncode, "sprat-server db upgrade" in refused.stderr) == (73, True)
    assert json.loads(run("db", "upgrade", "--json", **more).stdout)["before"] is None
    assert "already" in run("db", "upgrade", **more).stdout
    token = run("db", "token", "--name", "me", **more).stdout.strip()
    with subprocess.Popen(
        [*SPRAT_SERVER, "serve", "--port", "0", "--json"],
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as serving:
        assert serving.stdout is not None
        url = json.loads(serving.stdout.readline())["url"]
        try:
            answer = httpx.get(f"{url}/api/v1/tokens?of_server=true", headers={"Authorization": f"Bearer {token}"})
            assert [item["name"] for item in answer.json()["items"]] == ["me"]
        finally:
            serving.terminate()
        assert serving.wait(60) == 0


def test_every_command_has_help_with_an_example() -> None:
    for command in ([], ["up"], ["serve"], ["worker"], ["db", "upgrade"], ["db", "token"], ["db", "rotate-director"]):
        done = run(*command, "--help")
        assert (done.returncode, "Example:" in done.stdout) == (0, True), done.stdout
    assert "Exit codes:" in run("--help").stdout
    assert run("--version").stdout.startswith("sprat-server ")
