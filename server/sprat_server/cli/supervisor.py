"""Runs the API in this process and, for `up`, PostgreSQL and a worker as children that are started again if they die.

Order of the start: PostgreSQL, migrations, first token, API, worker; of the stop: API, worker, PostgreSQL. Children
do not see a Ctrl-C of the terminal; the worker ends by itself when this process dies, and PostgreSQL, which does not,
is ended by the next start.
"""

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Final

import structlog
import uvicorn
from fastapi import FastAPI

from sprat_server.access import audit, tokens
from sprat_server.app import check, create_app
from sprat_server.db import migrate
from sprat_server.db.embedded import EmbeddedPostgres
from sprat_server.db.postgres_binaries import PostgresUnusable
from sprat_server.db.projects import SERVER
from sprat_server.db.session import Database
from sprat_server.observe.actors import SYSTEM
from sprat_server.settings import Settings, is_loopback
from sprat_shared.errors import Conflict, InvalidInput, SpratError

Say = Callable[[str, str | None], None]
"""Told the URL, and the first admin token if it was just made, once requests are answered."""

_WATCH_S: Final = 0.1
_GRACEFUL_S: Final = 5
_LONGEST_PAUSE_S: Final = 30.0
_STEADY_S: Final = 10.0
_RESTARTS: Final = 5
_RESTARTS_WITHIN_S: Final = 60.0

_log = structlog.get_logger(__name__)


class _Stopped(BaseException):
    """SIGTERM or SIGINT while nothing runs yet that could be told to stop."""


def run_serve(settings: Settings, say: Say) -> None:
    """Serve the API until SIGTERM or SIGINT.

    Raises:
        InvalidInput: the address cannot be listened on, or not without TLS; no database URL is set.
        SchemaMismatch: the database has another schema.
    """
    check_address(settings)
    app = create_app(settings)
    with _stoppable(), _listening(settings) as listener:
        check(app)
        asyncio.run(_Parts(settings, app, listener, say).run())


def run_up(settings: Settings, say: Say) -> None:
    """Run everything until SIGTERM or SIGINT, with a private PostgreSQL unless a database URL is set.

    Raises:
        FolderInUse: another server uses the data folder.
        PostgresUnusable: PostgreSQL cannot be run here, or died again and again.
        InvalidInput, SchemaMismatch: as `run_serve`.
    """
    check_address(settings)
    with _stoppable(), _listening(settings) as listener, contextlib.ExitStack() as stack:
        postgres = None
        if settings.database_url is None:
            postgres = EmbeddedPostgres(settings.data_dir, user=settings.postgres_user)
            stack.enter_context(postgres)
            given = {"database_url": postgres.url, "auto_sign": settings.auto_sign or "*"}
            settings = settings.model_copy(update=given)
        admin_token = _prepare(settings)
        app = create_app(settings)
        check(app)
        parts = _Parts(
            settings,
            app,
            listener,
            lambda url, _none: say(url, admin_token),
            postgres=postgres,
            worker=True,
        )
        asyncio.run(parts.run())


class _Server(uvicorn.Server):
    """uvicorn without its own handling of signals: we stop several parts, in order."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Parts:
    """The running parts, watched until one of them cannot go on or a signal comes."""

    def __init__(
        self,
        settings: Settings,
        app: FastAPI,
        listener: socket.socket,
        say: Say,
        *,
        postgres: EmbeddedPostgres | None = None,
        worker: bool = False,
    ) -> None:
        self._settings, self._app, self._listener, self._say = settings, app, listener, say
        self._postgres, self._with_worker = postgres, worker
        self._server = _Server(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,  # ObservedRequests adds it where it is wanted
                ssl_certfile=settings.tls_cert,
                ssl_keyfile=settings.tls_key,
                proxy_headers=bool(settings.trusted_proxies),
                forwarded_allow_ips=list(settings.trusted_proxies),
                timeout_graceful_shutdown=_GRACEFUL_S,
                timeout_keep_alive=75,
            )
        )
        self._worker: subprocess.Popen[bytes] | None = None
        self._lifeline = os.pipe()  # closed by the kernel when this process dies
        self._stop = asyncio.Event()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        serving = asyncio.create_task(self._server.serve(sockets=[self._listener]))
        watching: list[asyncio.Task[None]] = []
        try:
            while not self._server.started:
                if serving.done():
                    serving.result()
                    raise SpratError("the API did not start; the log above says why", code="server.not-started")
                await asyncio.sleep(0.01)
            self._say(url_of(self._listener, tls=self._settings.tls_cert is not None), None)
            watching.append(asyncio.create_task(self._wait_for_stop()))
            if self._with_worker:
                watching.append(asyncio.create_task(self._keep_worker()))
            if self._postgres is not None:
                watching.append(asyncio.create_task(self._keep_postgres(self._postgres)))
            done, _ = await asyncio.wait([serving, *watching], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            _log.info("server.stops")
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)
            self._app.state.event_hub.end()
            self._server.should_exit = True
            await asyncio.gather(serving, return_exceptions=True)
            await asyncio.to_thread(self._end_worker)
            if self._postgres is not None:
                await asyncio.to_thread(self._postgres.stop)

    async def _wait_for_stop(self) -> None:
        await self._stop.wait()

    async def _keep_worker(self) -> None:
        pause_s = 1.0
        while True:
            started_s = time.monotonic()
            self._worker = _start_worker(self._settings, self._lifeline[0])
            while (status := self._worker.poll()) is None:  # noqa: ASYNC110 - a process has no event to wait for
                await asyncio.sleep(_WATCH_S)
            pause_s = 1.0 if time.monotonic() - started_s > _STEADY_S else min(pause_s * 2, _LONGEST_PAUSE_S)
            _log.error("worker.died", status=status, again_in_s=pause_s)
            await asyncio.sleep(pause_s)

    async def _keep_postgres(self, postgres: EmbeddedPostgres) -> None:
        restarts: list[float] = []
        while True:
            await asyncio.sleep(_WATCH_S)
            status = postgres.poll()
            if status is None:
                continue
            now_s = time.monotonic()
            restarts = [at_s for at_s in restarts if now_s - at_s < _RESTARTS_WITHIN_S] + [now_s]
            _log.error("postgres.died", status=status)
            if len(restarts) > _RESTARTS:
                raise PostgresUnusable(
                    f"PostgreSQL died {len(restarts)} times within {_RESTARTS_WITHIN_S:.0f} s; "
                    f"{self._settings.data_dir / 'postgres.log'} says why"
                )
            await asyncio.to_thread(postgres.restart)
            _log.warning("postgres.restarted")

    def _end_worker(self) -> None:
        if self._worker is None or self._worker.poll() is not None:
            return
        self._worker.terminate()
        try:
            self._worker.wait(self._settings.worker_stop_grace_s + 5)
        except subprocess.TimeoutExpired:
            self._worker.kill()
            self._worker.wait()


def url_of(listener: socket.socket, *, tls: bool = False) -> str:
    """Return the URL under which a listening socket is reached."""
    host, port = listener.getsockname()[:2]
    return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def _prepare(settings: Settings) -> str | None:
    """Migrate the database; make the first admin token if there is none and return its text."""
    assert settings.database_url is not None  # noqa: S101 - set by the caller
    database = Database(settings.database_url)
    try:
        before, after = migrate.upgrade(database.engine)
        if before != after:
            _log.info("database.upgraded", before=before, after=after)
        with database.transaction(SERVER) as session:
            made = tokens.create_first_admin(session)
            if made is None:
                return None
            token, text = made
            made_of = {"scope": token.scope}
            audit.record(session, SYSTEM, "token.create", f"token:{token.id}", None, made_of, of_server=True)
            return text
    finally:
        database.close()


def _start_worker(settings: Settings, lifeline: int) -> subprocess.Popen[bytes]:
    """Start a worker that ends when the other end of `lifeline`, which only this process holds, is closed."""
    assert settings.database_url is not None  # noqa: S101 - set by the caller
    environment = os.environ | {
        "SPRAT_DATABASE_URL": settings.database_url,
        "SPRAT_BLOB_URL": settings.blobs,
        "SPRAT_DATA_DIR": str(settings.data_dir),
        "SPRAT_AUTO_SIGN": settings.auto_sign or "",
        "PYTHONUNBUFFERED": "1",
    }
    return subprocess.Popen(  # noqa: S603 - ourselves
        [sys.executable, "-m", "sprat_server.cli", "worker", "--parent-fd", str(lifeline)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        pass_fds=(lifeline,),
        start_new_session=True,
    )


def check_address(settings: Settings) -> None:
    """Return if it is safe to listen as the settings say.

    Raises:
        InvalidInput: it would be plain HTTP to other machines, or the certificate cannot be used.
    """
    if settings.tls_cert is not None and settings.tls_key is not None:
        try:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(settings.tls_cert, settings.tls_key, password=lambda: "")
        except (OSError, ValueError) as bad:  # ssl.SSLError is an OSError
            raise InvalidInput(
                f"{settings.tls_cert}, {settings.tls_key}: no certificate with its key (PEM, no passphrase): {bad}",
                code="settings.tls",
            ) from None
    elif not settings.insecure and not is_loopback(settings.host):
        raise InvalidInput(
            f"plain HTTP on {settings.host} can be read and changed on its way; give --tls-cert and --tls-key, listen "
            "on 127.0.0.1 behind a proxy that ends TLS, or say --insecure",
            code="settings.plain-http",
        )


@contextlib.contextmanager
def _listening(settings: Settings) -> Iterator[socket.socket]:
    """Give the listening socket; refused before anything is started when the port is taken."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as e:
        raise InvalidInput(f"cannot listen on {settings.host}: {e}", code="settings.host") from e
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as e:
            raise Conflict(
                f"cannot listen on {settings.host} port {settings.port}: {e.strerror}; give another --port",
                code="settings.port-taken",
            ) from e
        yield listener


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Turn SIGTERM and SIGINT into an ordinary unwinding until the parts run and handle them themselves."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise _Stopped

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    with contextlib.suppress(_Stopped):
        yield
