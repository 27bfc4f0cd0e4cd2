"""Calls sent again under their `Idempotency-Key`: the answer that was given goes out again, and nothing is done twice.

A call passes three points: `read` before anything (what is asked), `begin` once it is known who calls (was it asked
before?), `keep` with its answer, in the transaction that it tells of.
"""

import base64
import hashlib
import json
from dataclasses import dataclass
from typing import Final

from anyio import to_thread
from fastapi import FastAPI, Request
from fastapi.responses import Response
from sqlalchemy.orm import Session

from sprat_server.access import idempotency
from sprat_server.access.idempotency import Call
from sprat_server.access.tokens import Identity

HEADER: Final = "Idempotency-Key"
REPLAYED: Final = "Idempotency-Replayed"
_KEPT_HEADERS: Final = ("content-type", "location")


class GivenAgain(Exception):
    """The call was carried out before; this is its answer. Raised, so that the transaction of this one ends."""

    def __init__(self, answer: Response) -> None:
        super().__init__(answer.status_code)
        self.answer = answer


@dataclass(frozen=True, slots=True)
class _Kept:
    """A call that is being carried out, whose answer is to be kept."""

    session: Session
    call: Call


def install(app: FastAPI) -> None:
    """Have `app` give the answers that were given."""
    app.add_exception_handler(GivenAgain, _give_again)


async def read(request: Request) -> None:
    """Remember what a call under a key asks; its body is held whole, as the route's own reading holds it."""
    if HEADER in request.headers:
        target = f"{request.method} {request.url.path}?{request.url.query}\n"
        request.state.asked = hashlib.sha256(target.encode() + await request.body()).digest()


def begin(request: Request, session: Session, identity: Identity) -> None:
    """Look for the answer that a call which changes something was given before.

    Raises:
        GivenAgain: here it is.
        InvalidInput: the key cannot be one, or came with another request.
        StillRunning: the call is being carried out.
    """
    asked: bytes | None = getattr(request.state, "asked", None)
    if asked is None:
        return
    call = Call(key=request.headers[HEADER].strip('"'), actor_id=identity.id, request=asked)
    kept = idempotency.recall(session, call)
    if kept is not None:
        said = json.loads(kept)
        body = base64.b64decode(said["body"])
        raise GivenAgain(Response(body, said["status"], said["headers"] | {REPLAYED: "true"}))
    request.state.kept = _Kept(session, call)


async def keep(request: Request, response: Response) -> None:
    """Keep the answer of a call that was begun."""
    kept: _Kept | None = getattr(request.state, "kept", None)
    if kept is None:
        return
    headers = {name: response.headers[name] for name in _KEPT_HEADERS if name in response.headers}
    body = base64.b64encode(bytes(response.body)).decode()
    answer = json.dumps({"status": response.status_code, "headers": headers, "body": body}).encode()
    await to_thread.run_sync(idempotency.keep, kept.session, kept.call, answer)


async def _give_again(_request: Request, given: Exception) -> Response:
    assert isinstance(given, GivenAgain)  # noqa: S101 - registered for this class
    return given.answer
