"""The worker: takes jobs from the queue in PostgreSQL, one at a time, until it is told to stop.

The parts: procrastinate fetches and listens; `jobs.runner` carries out; a loop beside it takes up what dead workers
left; a second queue sends events to webhooks, some at a time, whatever the first one computes. On SIGTERM or SIGINT the
task is asked to stop at its next check and its job is queued again; what does not stop within the grace is queued again
anyway, and the process ends.
"""

import asyncio
import contextlib
import importlib
import os
import pkgutil
import signal
import sys
import threading
from collections.abc import Callable, MutableMapping
from typing import Final
from uuid import UUID

import procrastinate
import structlog
from procrastinate.exceptions import ConnectorException
from sqlalchemy.exc import SQLAlchemyError

from sprat_server import flows
from sprat_server.access import delivery, webhooks
from sprat_server.db.blobs import Blobs
from sprat_server.db.migrate import require_newest
from sprat_server.db.session import Database
from sprat_server.jobs.runner import Runner
from sprat_server.jobs.service import QUEUE, TASK_NAME
from sprat_server.observe import tracing
from sprat_server.settings import Settings
from sprat_shared.errors import InvalidInput

ONE_THREAD: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""Variables that libraries read when they are loaded: one thread each, for they share the machine."""

_DELIVERIES_AT_ONCE: Final = 4  # they wait for others' servers, beside the one job that computes

_log = structlog.get_logger(__name__)


def limit_threads(environ: MutableMapping[str, str]) -> None:
    """Have numerical libraries that are loaded later use one thread, unless the environment says otherwise."""
    for name in ONE_THREAD:
        environ.setdefault(name, "1")


def load_tasks() -> list[str]:
    """Import every module `sprat_server.flows.tasks_*`, whose functions register themselves; return their names."""
    names = [
        f"{flows.__name__}.{module.name}"
        for module in pkgutil.iter_modules(flows.__path__)
        if module.name.startswith("tasks_")
    ]
    for name in names:
        importlib.import_module(name)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
    return names


def run_worker(settings: Settings, *, parent_fd: int | None = None, load: Callable[[], list[str]] = load_tasks) -> None:
    """Work until told to stop.

    Args:
        settings: of the server.
        parent_fd: the read end of a pipe whose other end the parent holds: when the parent dies, so does the worker.
        load: imports the modules whose tasks this worker has; returns their names.

    Raises:
        InvalidInput: no database URL is set; traces are asked for and cannot be exported.
        SchemaMismatch: the database has another schema.
    """
    if settings.database_url is None:
        raise InvalidInput("SPRAT_DATABASE_URL is not set; set it, or use `sprat-server up` for a private PostgreSQL")
    tracing.configure("worker")
    limit_threads(os.environ)
    if parent_fd is not None:
        threading.Thread(target=_end_with_parent, args=(parent_fd,), daemon=True).start()
    _log.info("worker.tasks", modules=load())
    database = Database(settings.database_url, pool_size=4, statement_timeout_s=None)
    tracing.watch(database.engine)
    try:
        require_newest(database.engine)
        runner = Runner(database=database, blobs=Blobs.open(settings.blobs), settings=settings)
        asyncio.run(_work(runner, database, settings))
    finally:
        database.close()


async def _work(runner: Runner, database: Database, settings: Settings) -> None:
    connector = procrastinate.PsycopgConnector(conninfo=database.conninfo, min_size=1, max_size=4)
    app = procrastinate.App(connector=connector)

    @app.task(name=TASK_NAME, queue=QUEUE, pass_context=True)
    def run(context: procrastinate.JobContext, job_id: str) -> None:
        assert context.job.id is not None  # noqa: S101 - it came out of the database
        runner.run(UUID(job_id), context.job.id)

    @app.task(name=webhooks.TASK_NAME, queue=webhooks.QUEUE)
    def deliver(webhook_id: str, seq: int) -> None:
        delivery.deliver(database, UUID(webhook_id), seq, private=settings.webhook_private)

    async with app.open_async():
        delivering = asyncio.create_task(
            app.run_worker_async(
                name="webhooks",
                queues=[webhooks.QUEUE],
                concurrency=_DELIVERIES_AT_ONCE,
                install_signal_handlers=False,
                fetch_job_polling_interval=settings.worker_heartbeat_s,
                shutdown_graceful_timeout=settings.worker_stop_grace_s,
                delete_jobs="always",  # what became of each is in our own table
                update_heartbeat_interval=settings.worker_heartbeat_s,
                stalled_worker_timeout=settings.worker_lost_after_s,
            )
        )
        work = asyncio.create_task(
            app.run_worker_async(
                queues=[QUEUE],
                concurrency=1,
                install_signal_handlers=False,
                fetch_job_polling_interval=settings.worker_heartbeat_s,
                update_heartbeat_interval=settings.worker_heartbeat_s,
                stalled_worker_timeout=settings.worker_lost_after_s,
            )
        )
        delivering.add_done_callback(lambda _ended: work.cancel())  # a worker that sends nothing is restarted
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, _stop, work, runner, settings.worker_stop_grace_s)
        reaper = asyncio.create_task(_look_after(runner, settings.worker_heartbeat_s))
        try:
            await work
        except asyncio.CancelledError:
            if not runner.stopping.is_set():
                raise
        finally:
            for beside in (reaper, delivering):
                beside.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await beside


def _stop(work: asyncio.Task[None], runner: Runner, grace_s: float) -> None:
    if runner.stopping.is_set():
        return
    _log.info("worker.stops")
    runner.stopping.set()
    work.cancel()  # procrastinate then waits for the running job
    threading.Thread(target=_end_after, args=(runner, grace_s), daemon=True).start()


def _end_after(runner: Runner, grace_s: float) -> None:
    """End the process when its grace is over, whatever its task does; what runs is queued again."""
    threading.Event().wait(grace_s)
    _log.warning("worker.grace-is-over")
    with contextlib.suppress(SQLAlchemyError):
        runner.give_back()
    os._exit(0)


def _end_with_parent(parent_fd: int) -> None:
    while os.read(parent_fd, 1):
        pass
    _log.warning("worker.parent-gone")
    os.kill(os.getpid(), signal.SIGTERM)


async def _look_after(runner: Runner, every_s: float) -> None:
    while True:
        try:
            await asyncio.to_thread(runner.say_alive)
            if not runner.stopping.is_set():
                await asyncio.to_thread(runner.take_up_abandoned)
        except (SQLAlchemyError, ConnectorException) as e:
            _log.warning("worker.cannot-look-for-abandoned-jobs", error=str(e))
        await asyncio.sleep(every_s)
