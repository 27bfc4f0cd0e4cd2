"""Who follows events, woken by PostgreSQL: one listening connection for each process, however many follow."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from uuid import UUID

import psycopg
import structlog
from psycopg.conninfo import make_conninfo

from sprat_server.db.session import Database
from sprat_server.observe import metrics
from sprat_server.observe.outbox import CHANNEL
from sprat_shared.errors import TryLater

_RECONNECT_S: Final = 1.0
_KEEPALIVES: Final = {"keepalives_idle": 5, "keepalives_interval": 5, "keepalives_count": 2}

_log = structlog.get_logger(__name__)


class EventHub:
    """Wakes those who follow a project's events. Used from the event loop's thread only.

    `ended` says that the process stops: streams end then.

    Args:
        database: whose notifications are listened to.
        most_streams: so many may follow at once.
    """

    def __init__(self, database: Database, *, most_streams: int) -> None:
        self._database, self._most = database, most_streams
        self._followers: defaultdict[UUID, set[asyncio.Event]] = defaultdict(set)
        self._streams = 0
        self.ended = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listen until the context ends; whoever follows then is let go."""
        listening = asyncio.create_task(self._listen())
        try:
            yield
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            self.end()

    def end(self) -> None:
        """Have all streams end; to be called before the server waits for its answers to end."""
        self.ended = True
        self._wake_all()

    @asynccontextmanager
    async def following(self, project_id: UUID) -> AsyncIterator[asyncio.Event]:
        """Give an event that is set whenever something may have happened in a project.

        Raises:
            TryLater: too many follow already.
        """
        if self._streams >= self._most:
            raise TryLater(
                f"{self._most} callers follow events here already; ask for pages of them, or try again later",
                code="events.too-many-streams",
            )
        waker = asyncio.Event()
        self._streams += 1
        metrics.EVENT_STREAMS.inc()
        self._followers[project_id].add(waker)
        try:
            yield waker
        finally:
            self._streams -= 1
            metrics.EVENT_STREAMS.dec()
            self._followers[project_id].discard(waker)
            if not self._followers[project_id]:
                del self._followers[project_id]

    def _wake(self, project_id: UUID) -> None:
        for waker in self._followers.get(project_id, ()):
            waker.set()

    def _wake_all(self) -> None:
        for project_id in list(self._followers):
            self._wake(project_id)

    async def _listen(self) -> None:
        while True:
            try:
                where = make_conninfo(self._database.conninfo, **_KEEPALIVES)
                connection = await psycopg.AsyncConnection.connect(where, autocommit=True)
                async with connection:
                    await connection.execute(f"LISTEN {CHANNEL}")
                    self._wake_all()  # what was told while nobody listened
                    async for notice in connection.notifies():
                        self._wake(UUID(notice.payload))
            except (psycopg.Error, OSError) as error:
                _log.warning("events.not-listening", error=str(error), retry_s=_RECONNECT_S)
            await asyncio.sleep(_RECONNECT_S)
