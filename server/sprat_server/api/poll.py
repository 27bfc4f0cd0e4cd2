"""`GET /device/v1/poll`: a bare ASGI app in front of FastAPI. A poll that finds nothing new touches no table.

What answers 304 is kept in memory: the hash of each device's token, until it expires, with the counter of its newest
assignment, and the version of the newest timestamp. It is filled by the first poll of a device and forgotten when
PostgreSQL notifies of a change (LISTEN/NOTIFY, by triggers, with the commit), so every replica of the server may keep
its own. While the listening connection is away nothing is remembered and every poll asks the database.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import psycopg
import structlog
from anyio import to_thread
from psycopg.conninfo import make_conninfo
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from sprat_server.access.limits import Lockout
from sprat_server.api.auth import address_of
from sprat_server.api.problems import answer_of, problem
from sprat_server.db.blobs import Blobs
from sprat_server.db.session import Database
from sprat_server.fleet import service as fleet
from sprat_server.fleet.tokens import hash_token
from sprat_server.flows import poll as flow
from sprat_server.flows.poll import Poller
from sprat_server.settings import Settings
from sprat_shared.errors import InvalidInput, SpratError, Unauthenticated
from sprat_shared.protocol.poll import CONTENT_TYPE, HAVE_HEADER, INLINE_HEADER, HeldMetadata, parse_have

PATH: Final = "/device/v1/poll"
CHANNEL: Final = "sprat_poll"  # the triggers of migrations 0004 and 0005 notify it
MAX_INLINE_BYTES: Final = 8 << 20
_SEEN_EVERY_S: Final = 5.0
_RECONNECT_S: Final = 1.0
_RETRY_AFTER_S: Final = 5

# A listening connection that died without a word must be noticed: until then revocations would be missed.
_KEEPALIVES: Final = {"keepalives_idle": 5, "keepalives_interval": 5, "keepalives_count": 2}

_log = structlog.get_logger(__name__)


class PollMemory:
    """What is remembered between polls. Used from the event loop's thread only."""

    def __init__(self) -> None:
        self.listening = False
        self.timestamp: int | None = None
        self.generation = 0  # rises with every notification: what was read before one is not remembered after it
        self.seen: dict[UUID, datetime] = {}
        self._pollers: dict[bytes, Poller] = {}
        self._tokens: dict[UUID, bytes] = {}

    def get(self, token_hash: bytes) -> Poller | None:
        """Return who polls with this token, if that is remembered."""
        return self._pollers.get(token_hash)

    def remember(self, token_hash: bytes, poller: Poller, timestamp: int, generation: int) -> None:
        """Keep what was read from the database when `generation` held."""
        if self.listening and generation == self.generation:
            self.timestamp = timestamp
            self._pollers[token_hash] = poller
            self._tokens[poller.device] = token_hash

    def forget(self, notice: str) -> None:
        """Drop what a notification makes stale."""
        self.generation += 1
        kind, _, value = notice.partition("=")
        if kind == "timestamp":
            self.timestamp = None
        elif kind == "device" and (token_hash := self._tokens.pop(UUID(value), None)) is not None:
            self._pollers.pop(token_hash, None)

    def forget_all(self, *, listening: bool) -> None:
        """Drop everything: the listening connection came or went."""
        self.generation += 1
        self.listening, self.timestamp = listening, None
        self._pollers.clear()
        self._tokens.clear()


class PollApp:
    """Answers polls; passes every other request on to `app`.

    Args:
        app: what stands behind it.
        poll: the state, shared with the application's lifespan.
    """

    def __init__(self, app: ASGIApp, poll: "Poll") -> None:
        self._app, self._poll = app, poll

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a poll, or pass the request on."""
        if scope["type"] == "http" and scope["path"] == PATH and scope["method"] == "GET":
            scope["sprat.route"] = PATH
            answer = await self._poll.answer(scope)
            await answer(scope, receive, send)
        else:
            await self._app(scope, receive, send)


class Poll:
    """The poll of one process: its memory, its listening connection, its batches of last-seen times.

    Args:
        database: where to read what is not remembered.
        blobs: where payloads are.
        settings: of the server.
        lockout: counts failed authentications; what is remembered needs none.
    """

    def __init__(self, database: Database, blobs: Blobs, settings: Settings, lockout: Lockout) -> None:
        self._database, self._blobs, self._settings, self._lockout = database, blobs, settings, lockout
        self.memory = PollMemory()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listen and write last-seen times until the context ends."""
        tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._write_seen())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            with suppress(SQLAlchemyError):
                await self._flush_seen()

    async def answer(self, scope: Scope) -> Response:
        """Return the answer to one poll."""
        headers = {name: str(value, "latin-1") for name, value in scope["headers"]}
        try:
            return await self._answer(scope, headers)
        except SpratError as error:
            return answer_of(error)
        except SQLAlchemyError as error:
            _log.error("database.away", exc_info=error)
            wait = {"Retry-After": str(_RETRY_AFTER_S)}
            return problem(503, "the database does not answer; try again soon", "database.away", headers=wait)

    async def _answer(self, scope: Scope, headers: Mapping[bytes, str]) -> Response:
        shown = _bearer(headers)
        held = parse_have(headers.get(HAVE_HEADER.lower().encode(), ""))
        inline_bytes = _inline(headers.get(INLINE_HEADER.lower().encode(), "0"))
        asked = headers.get(b"if-none-match", "")
        memory = self.memory
        poller = memory.get(hash_token(shown))
        if (
            poller is not None
            and not poller.expired(datetime.now(UTC))
            and memory.timestamp is not None
            and asked == flow.etag_of(poller.counter, memory.timestamp)
        ):
            self._seen(scope, poller)
            return _not_modified(asked)
        generation = memory.generation
        with self._lockout.watching(address_of(scope)):
            read = await to_thread.run_sync(self._read, shown, asked, held, inline_bytes)
        memory.remember(hash_token(shown), read.poller, read.timestamp, generation)
        self._seen(scope, read.poller)
        if read.body is None:
            return _not_modified(asked)
        headers_out = {"ETag": flow.etag_of(read.poller.counter, read.timestamp), "Cache-Control": "no-store"}
        return Response(read.body, headers=headers_out, media_type=CONTENT_TYPE)

    def _read(self, shown: str, asked: str, held: list[HeldMetadata], inline_bytes: int) -> "_Read":
        with self._database.transaction() as session:
            poller = flow.identify(session, shown)
            timestamp = flow.timestamp_version(session)
            if asked == flow.etag_of(poller.counter, timestamp):
                return _Read(poller, timestamp, None)
            draft = flow.build_answer(session, self._settings, poller.device, held=held, inline_bytes=inline_bytes)
        return _Read(poller, timestamp, draft.pack(self._blobs))

    def _seen(self, scope: Scope, poller: Poller) -> None:
        scope.setdefault("state", {})["actor"] = poller.actor
        self.memory.seen[poller.device] = datetime.now(UTC)

    async def _listen(self) -> None:
        while True:
            try:
                where = make_conninfo(self._database.conninfo, **_KEEPALIVES)
                connection = await psycopg.AsyncConnection.connect(where, autocommit=True)
                async with connection:
                    await connection.execute(f"LISTEN {CHANNEL}")
                    self.memory.forget_all(listening=True)
                    async for notice in connection.notifies():
                        self.memory.forget(notice.payload)
            except (psycopg.Error, OSError) as error:
                _log.warning("poll.not-listening", error=str(error), retry_s=_RECONNECT_S)
            finally:
                self.memory.forget_all(listening=False)
            await asyncio.sleep(_RECONNECT_S)

    async def _write_seen(self) -> None:
        while True:
            await asyncio.sleep(_SEEN_EVERY_S)
            try:
                await self._flush_seen()
            except SQLAlchemyError as error:
                _log.warning("poll.seen-not-written", error=str(error))

    async def _flush_seen(self) -> None:
        seen, self.memory.seen = self.memory.seen, {}
        if seen:
            await to_thread.run_sync(self._mark_seen, seen)

    def _mark_seen(self, seen: Mapping[UUID, datetime]) -> None:
        with self._database.transaction() as session:
            fleet.mark_seen(session, seen)


@dataclass(frozen=True, slots=True)
class _Read:
    """What the database said: who polls, the newest timestamp's version, and the body unless nothing changed."""

    poller: Poller
    timestamp: int
    body: bytes | None


def _bearer(headers: Mapping[bytes, str]) -> str:
    scheme, _, shown = headers.get(b"authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not shown.strip():
        raise Unauthenticated("this needs a device token: send the header `Authorization: Bearer <token>`")
    return shown.strip()


def _inline(text: str) -> int:
    if not text.isdecimal():
        raise InvalidInput(f"{INLINE_HEADER}: {text[:40]!r} is not a number of bytes")
    return min(int(text), MAX_INLINE_BYTES)


def _not_modified(etag: str) -> Response:
    return Response(status_code=304, headers={"ETag": etag, "Cache-Control": "no-store"})
