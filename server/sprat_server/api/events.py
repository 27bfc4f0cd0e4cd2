"""/api/v1/events: what happened, as pages or as a stream (Server-Sent Events) that goes on where it was cut."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from http import HTTPStatus
from typing import Annotated, Any, Final, Self
from uuid import UUID

from anyio import to_thread
from fastapi import Header, Query, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, ConfigDict
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import Receive, Scope, Send

from sprat_server.api.auth import bearer, identify_operator
from sprat_server.api.described import problems, together
from sprat_server.api.event_hub import EventHub
from sprat_server.api.paging import Page, SortedPaging
from sprat_server.api.routes import operators_router
from sprat_server.db.projects import project_of
from sprat_server.db.session import Database
from sprat_server.observe import outbox
from sprat_server.observe.outbox import Event
from sprat_shared.errors import InvalidInput, SpratError

router = operators_router(prefix="/events", tags=["events"])

HEARTBEAT_S: Final = 15.0
_LONGEST_S: Final = 3600.0  # then a stream ends, and its reader asks again from where it was
_AT_ONCE: Final = 100
_EXAMPLE: Final[dict[str, Any]] = {
    "seq": 41,
    "id": "01a229d7-b64f-7047-a776-2de43df6354c",
    "type": "rollout.halted",
    "subject": "rollout:01a229d7-0000-7000-8000-000000000000",
    "data": {"model": "pcb-defects", "release": 7, "reason": "accuracy fell", "returned": 9},
    "timestamp": "2026-11-30T00:00:00Z",
}


class EventView(BaseModel):
    """Something that happened; `seq` counts within the project, in the order of commits."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    seq: int
    id: UUID
    type: str
    subject: str
    data: dict[str, Any]
    timestamp: str

    @classmethod
    def of(cls, event: Event) -> Self:
        """Show this row."""
        return cls(
            seq=event.seq,
            id=event.id,
            type=event.kind,
            subject=event.subject,
            data=event.data,
            timestamp=event.at.isoformat(),
        )


Kinds = Annotated[list[str] | None, Query(alias="type", description="Only these types of events; may be given again.")]


@router.get(
    "",
    response_model=Page[EventView],
    responses=together(
        {200: {"content": {"text/event-stream": {}}, "description": "A page, or a stream."}},
        problems({HTTPStatus.SERVICE_UNAVAILABLE: ["events.too-many-streams"]}),
    ),
)
async def read_events(
    request: Request,
    page: SortedPaging,
    kinds: Kinds = None,
    last_event_id: Annotated[str | None, Header(description="Of a stream: go on after this `seq`.")] = None,
) -> Any:
    """List events, newest first; or follow them, with the header `Accept: text/event-stream`.

    A stream begins with what happens from now on, or after `Last-Event-ID` (0: with the oldest that is kept).
    """
    unknown = sorted(set(kinds or ()) - set(outbox.KINDS))
    if unknown:
        raise InvalidInput(f"{', '.join(unknown)[:200]}: no such type of event; there are {', '.join(outbox.KINDS)}")
    follows = "text/event-stream" in request.headers.get("accept", "")
    if not follows:
        return await to_thread.run_sync(_page, request, page, kinds or [])
    return await _stream(request, kinds or [], last_event_id)


def _page(request: Request, page: Any, kinds: list[str]) -> Page[EventView]:
    database: Database = request.app.state.database
    with database.transaction(None) as session:
        identify_operator(request, session, bearer(request))
        query = select(Event)
        if kinds:
            query = query.where(Event.kind.in_(kinds))
        rows, following = page.take(session, query, key=Event.seq, parse=int)
        return Page(items=[EventView.of(row) for row in rows], next=following)


async def _stream(request: Request, kinds: list[str], last: str | None) -> Response:
    if last is not None and not last.isdecimal():
        raise InvalidInput(f"Last-Event-ID {last[:40]!r} is not the number of an event")
    hub: EventHub = request.app.state.event_hub
    project_id, newest = await to_thread.run_sync(_standing, request)
    begins = newest if last is None else int(last)
    async with AsyncExitStack() as stack:
        waker = await stack.enter_async_context(hub.following(project_id))  # refused before the answer begins
        return _Stream(_lines(request, waker, begins, kinds), stack.pop_all())


class _Stream(StreamingResponse):
    """An answer that lets go of what it holds when it ends, even where its first line was never asked for."""

    def __init__(self, lines: AsyncIterator[bytes], held: AsyncExitStack) -> None:
        super().__init__(lines, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._held:
            await super().__call__(scope, receive, send)


async def _lines(request: Request, waker: asyncio.Event, seq: int, kinds: list[str]) -> AsyncIterator[bytes]:
    """Yield events as they come. No connection to the database is held between looks."""
    ends_s = time.monotonic() + _LONGEST_S
    yield f": sprat events\nid: {seq}\nretry: 3000\n\n".encode()  # so that a stream cut before an event has no gap
    hub: EventHub = request.app.state.event_hub
    while not hub.ended and time.monotonic() < ends_s and not await request.is_disconnected():
        waker.clear()
        try:
            found, seen = await to_thread.run_sync(_look, request, seq, kinds)
        except SpratError as ended:  # the token was revoked meanwhile, or has expired
            said = json.dumps({"code": ended.code, "detail": str(ended)})
            yield f"event: error\ndata: {said}\n\n".encode()
            return
        except SQLAlchemyError:
            return  # whoever follows asks again, and by then the database may answer
        for event in found:
            yield f"id: {event.seq}\nevent: {event.type}\ndata: {event.model_dump_json()}\n\n".encode()
        seq = seen
        if len(found) == _AT_ONCE:
            continue
        try:
            await asyncio.wait_for(waker.wait(), HEARTBEAT_S)
        except TimeoutError:
            yield b": still here\n\n"


def _standing(request: Request) -> tuple[UUID, int]:
    """Return the caller's project and the number of its newest event."""
    database: Database = request.app.state.database
    with database.transaction(None) as session:
        identify_operator(request, session, bearer(request))
        return project_of(session), outbox.newest_seq(session)


def _look(request: Request, seq: int, kinds: list[str]) -> tuple[list[EventView], int]:
    """Return what happened after a number, and up to which it was looked; the caller's token is looked at again."""
    database: Database = request.app.state.database
    with database.transaction(None) as session:
        identify_operator(request, session, bearer(request))
        newest = outbox.newest_seq(session)
        rows = outbox.after(session, seq, kinds=kinds, limit=_AT_ONCE)
        seen = rows[-1].seq if len(rows) == _AT_ONCE else max(newest, seq, *(row.seq for row in rows))
        return [EventView.of(row) for row in rows], seen
