"""`GET /device/v1/poll`: a bare ASGI app in front of FastAPI. A poll that finds nothing new touches no table.

What answers 304 is kept in memory: for the hash of each device's token the entity tag that was found to name the newest
of all that the device needs, and until when that holds (the director signs again at half of a life). All of it is
forgotten when PostgreSQL notifies of new metadata of the image repository, a new root or another policy, a device's
entry when it notifies of an assignment, a report or a revocation (LISTEN/NOTIFY, by triggers, with the commit), so
every replica of the server may keep its own. While the listening connection is away nothing is remembered and every
poll asks the database.

Answers carry as few headers as HTTP allows. A device knows its entity tag by itself: it names what it holds.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
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
from sprat_server.fleet.authentication import Recognised
from sprat_server.fleet.tokens import hash_token
from sprat_server.flows import poll as flow
from sprat_server.flows.poll import Poller
from sprat_server.settings import Settings
from sprat_shared.errors import InvalidInput, SpratError, Unauthenticated
from sprat_shared.protocol.poll import CONTENT_TYPE, DEFAULT_INLINE_BYTES, INLINE_HEADER, HeldMetadata, parse_tag
from sprat_shared.trust.signed_time import NONCE_HEADER, check_nonce

PATH: Final = "/device/v1/poll"
CHANNEL: Final = "sprat_poll"  # the triggers of migrations 0004, 0005, 0010 and 0013 notify it
MAX_INLINE_BYTES: Final = 8 << 20
_NONCE: Final = NONCE_HEADER.lower().encode()
_SEEN_EVERY_S: Final = 5.0
_RECONNECT_S: Final = 1.0
_RETRY_AFTER_S: Final = 5

# A listening connection that died without a word must be noticed: until then revocations would be missed.
_KEEPALIVES: Final = {"keepalives_idle": 5, "keepalives_interval": 5, "keepalives_count": 2}

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Remembered:
    """A poll that found nothing new: who asked, with which entity tag, and until when the answer is the same."""

    poller: Poller
    tag: str
    until: datetime


class PollMemory:
    """What is remembered between polls. Used from the event loop's thread only."""

    def __init__(self) -> None:
        self.listening = False
        self.generation = 0  # rises with every notification: what was read before one is not remembered after it
        self.seen: dict[UUID, datetime] = {}
        self._current: dict[bytes, Remembered] = {}
        self._tokens: dict[UUID, bytes] = {}

    def who_is_current(self, token_hash: bytes, tag: str, now: datetime) -> Poller | None:
        """Return who polls with this token, if it is remembered that nothing is newer than what this tag names."""
        known = self._current.get(token_hash)
        if known is None or known.tag != tag or now >= known.until or known.poller.expired(now):
            return None
        return known.poller

    def remember(self, token_hash: bytes, current: Remembered, generation: int) -> None:
        """Keep what was read from the database when `generation` held."""
        if self.listening and generation == self.generation:
            self._current[token_hash] = current
            self._tokens[current.poller.device] = token_hash

    def forget(self, notice: str) -> None:
        """Drop what a notification makes stale: `device=<id>` that device's; all else, as a timestamp, everyone's."""
        kind, _, value = notice.partition("=")
        if kind != "device":
            self.forget_all(listening=self.listening)
            return
        self.generation += 1
        if (token_hash := self._tokens.pop(UUID(value), None)) is not None:
            self._current.pop(token_hash, None)

    def forget_all(self, *, listening: bool) -> None:
        """Drop everything."""
        self.generation += 1
        self.listening = listening
        self._current.clear()
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
            scope["sprat.bare"] = answer.status_code < HTTPStatus.BAD_REQUEST
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
        tag = headers.get(b"if-none-match", "")
        inline_bytes = _inline(headers.get(INLINE_HEADER.lower().encode(), str(DEFAULT_INLINE_BYTES)))
        memory, token_hash = self.memory, hash_token(shown)
        nonce = check_nonce(headers[_NONCE]) if _NONCE in headers else None
        now = datetime.now(UTC)
        poller = memory.who_is_current(token_hash, tag, now)
        if poller is not None and nonce is None:
            self._seen(scope, poller, now)
            return Response(status_code=304)
        held = parse_tag(tag) if tag else []
        generation = memory.generation
        with self._lockout.watching(address_of(scope), pardoned=Recognised):
            read = await to_thread.run_sync(self._read, shown, held, inline_bytes, nonce)
        self._seen(scope, read.poller, now)
        if read.body is None:
            memory.remember(token_hash, Remembered(read.poller, tag, read.due_at), generation)
            return Response(status_code=304)
        return Response(read.body, media_type=CONTENT_TYPE)

    def _read(self, shown: str, held: list[HeldMetadata], inline_bytes: int, nonce: str | None) -> "_Read":
        with self._database.transaction(None) as session:
            poller = flow.identify(session, shown)
            reading = flow.read(
                session, self._settings, poller.device, held=held, inline_bytes=inline_bytes, nonce=nonce
            )
        body = None if reading.draft is None else reading.draft.pack(self._blobs)
        return _Read(poller, reading.due_at, body)

    def _seen(self, scope: Scope, poller: Poller, now: datetime) -> None:
        scope.setdefault("state", {})["actor"] = poller.actor
        self.memory.seen[poller.device] = now

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
        with self._database.across_projects() as session:
            fleet.mark_seen(session, seen)


@dataclass(frozen=True, slots=True)
class _Read:
    """What the database said: who polls, until when, and the body unless nothing changed."""

    poller: Poller
    due_at: datetime
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
