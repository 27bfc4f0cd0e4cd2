"""What the other members may ask: a bare ASGI application, over connections that `listener` has let in.

    GET  /v2/health/ready                                  whether the plan is held and not over
    GET  /v2/models/<model>/versions/<release>             what a module takes and gives
    GET  /v2/models/<model>/versions/<release>/ready       whether it is loaded under this plan
    POST /v2/models/<model>/versions/<release>/infer       a safetensors body, answered in kind; ?output=NAME, repeated
The plan is the connection's (TLS asks for it by name), and each request names it once more (`Sprat-Plan`).
"""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any, Final, TypeAlias
from urllib.parse import parse_qs

from sprat_client.agent.kserve import described
from sprat_client.agent.settings import SiteSettings
from sprat_client.agent.site.failures import PROBLEM_TYPE, Busy, NotHeld, OtherPlan, problem_body, status_of
from sprat_client.agent.site.held_plan import HeldPlan
from sprat_client.agent.site.modules import LoadedModule
from sprat_client.agent.site.peer import SAFETENSORS
from sprat_client.agent.site.peer_headers import (
    DEADLINE,
    LARGEST_DEADLINE_MS,
    PLAN,
    REQUEST,
    TIMES,
    TRACE,
    request_or_none,
    trace_or_none,
)
from sprat_client.runtime.tensor_bodies import decode_tensors, encode_tensors
from sprat_shared.errors import InvalidInput, NotFound, SpratError

_log = logging.getLogger(__name__)
_BODY_S: Final = 30.0  # for a body to come, where the request's deadline is later
_MOST_HEADERS: Final = 50
_BODIES: Final = 8  # of the largest size, that may be in memory at once
_CODEC_THREADS: Final = 4
_GRACE_S: Final = 0.5  # an answer is waited for a little past the deadline: who asked decides whether it came too late
_BAD: Final = "site.request"
_JSON: Final = "application/json"

_Scope: TypeAlias = Mapping[str, Any]
_Receive: TypeAlias = Callable[[], Awaitable[Mapping[str, Any]]]
_Send: TypeAlias = Callable[[Mapping[str, Any]], Awaitable[None]]
_Reply: TypeAlias = tuple[int, str, bytes, dict[str, str]]


class PeerRoutes:
    """The ASGI application; it runs on the server's event loop.

    Args:
        settings: bounds.
    """

    def __init__(self, settings: SiteSettings) -> None:
        self._most_bytes = settings.most_body_bytes
        self._room = _BODIES * settings.most_body_bytes
        self._codec = ThreadPoolExecutor(_CODEC_THREADS, thread_name_prefix="site-bodies")

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Answer one request; whatever goes wrong is answered by its name."""
        held: HeldPlan = scope["state"]["held"]
        try:
            with held.in_use():
                status, kind, body, extra = await self._route(held, scope, receive)
        except Exception as any_bad:  # noqa: BLE001  # a bug as well is answered by its name, and ends nothing
            bad = any_bad if isinstance(any_bad, SpratError) else SpratError(f"this device made a mistake: {any_bad!r}")
            if bad is not any_bad:
                _log.exception("a member's request failed")
            status, kind, body, extra = status_of(bad), PROBLEM_TYPE, problem_body(bad), {}
            if isinstance(bad, Busy):
                extra["Retry-After"] = "1"
            if scope["method"] == "POST":
                extra["Connection"] = "close"  # of its body something may not have been read
        headers = {"Content-Type": kind, "Content-Length": str(len(body)), PLAN: held.plan.title, **extra}
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": body})

    async def _route(self, held: HeldPlan, scope: _Scope, receive: _Receive) -> _Reply:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if len(scope["headers"]) > _MOST_HEADERS:
            raise InvalidInput(f"{len(scope['headers'])} headers; {_MOST_HEADERS} may come", code=_BAD)
        if (named := headers.get(PLAN.lower())) != held.plan.title:
            raise OtherPlan(f"the request is under plan {str(named)[:100]}, its connection under {held.plan.title}")
        held.require_fresh()
        match (scope["method"], scope["path"].strip("/").split("/")):
            case "GET", ["v2", "health", "ready"]:
                return _said({"ready": True, "plan": held.plan.title})
            case "GET", ["v2", "models", model, "versions", release]:
                return _said(described(model, [release], _module(held, model, release).host))
            case "GET", ["v2", "models", model, "versions", release, "ready"]:
                _module(held, model, release)
                return _said({"name": model, "version": release, "ready": True})
            case "POST", ["v2", "models", model, "versions", release, "infer"]:
                module = _module(held, model, release)
                with self._body_room(headers) as size:
                    return await self._infer(module, headers, scope, receive, size)
            case _:
                raise NotFound(f"{scope['method']} {scope['path'][:200]}: no such route", code="site.no-such-route")

    async def _infer(
        self, module: LoadedModule, headers: Mapping[str, str], scope: _Scope, receive: _Receive, size: int
    ) -> _Reply:
        until = time.monotonic() + _deadline_s(headers)
        request = request_or_none(headers.get(REQUEST.lower())) or "-"
        trace = trace_or_none(headers.get(TRACE))
        if headers.get("content-type") != SAFETENSORS:
            raise InvalidInput(f"Content-Type must be {SAFETENSORS}", code=_BAD)
        wanted = parse_qs(scope["query_string"].decode("latin-1")).get("output", [])
        names = {port.name for port in module.host.outputs}
        if unknown := sorted(set(wanted) - names):
            raise InvalidInput(f"{module.model} gives no output {unknown[0]!r:.100}", code=_BAD)
        try:
            body = await asyncio.wait_for(_read(receive, size), min(_BODY_S, until - time.monotonic()))
        except TimeoutError:
            raise InvalidInput(f"of the body's {size} bytes not all came in time", code=_BAD) from None
        loop = asyncio.get_running_loop()
        inputs = await loop.run_in_executor(self._codec, decode_tensors, body)
        del body
        future = module.queue.ask(inputs, until)
        try:
            ran = await asyncio.wait_for(asyncio.wrap_future(future), until - time.monotonic() + _GRACE_S)
        except TimeoutError:
            raise Busy(f"{module.model}@{module.release} still computes; the deadline is over") from None
        outputs = {name: value for name, value in ran.outputs.items() if not wanted or name in wanted}
        answer = await loop.run_in_executor(self._codec, encode_tensors, outputs)
        _log.debug(
            "answered a member",
            extra={"request": request, "trace": trace, "model": module.model, "release": module.release},
        )
        times = f"{1000 * ran.waited_s:.3f},{1000 * ran.ran_s:.3f},{ran.together}"
        return HTTPStatus.OK, SAFETENSORS, answer, {TIMES: times, REQUEST: request}

    @contextlib.contextmanager
    def _body_room(self, headers: Mapping[str, str]) -> Iterator[int]:
        """Take room for a request's body, whose length it must say; yield that, bytes."""
        said = headers.get("content-length", "")
        if not said.isdecimal() or len(said) > 15:  # noqa: PLR2004 - digits of a petabyte
            raise InvalidInput("a request says Content-Length", code=_BAD)
        size = int(said)
        if size > self._most_bytes:
            raise InvalidInput(f"the body takes {size} bytes; {self._most_bytes} may come", code=_BAD)
        if size > self._room:
            raise Busy("the bodies of other requests fill what they may; ask again in a second")
        self._room -= size
        try:
            yield size
        finally:
            self._room += size

    def close(self) -> None:
        """Let go of its threads."""
        self._codec.shutdown(wait=False, cancel_futures=True)


def _module(held: HeldPlan, model: str, release: str) -> LoadedModule:
    module = held.modules.get(model)
    if module is None or str(module.release) != release:
        raise NotHeld(f"{model[:100]}@{release[:20]} is not held here under plan {held.plan.title}")
    return module


def _deadline_s(headers: Mapping[str, str]) -> float:
    said = headers.get(DEADLINE.lower(), "")
    if not said.isdecimal() or not 0 < int(said[:12]) <= LARGEST_DEADLINE_MS:
        raise InvalidInput(f"{DEADLINE} must be 1 to {LARGEST_DEADLINE_MS}", code=_BAD)
    return int(said) / 1000


async def _read(receive: _Receive, size: int) -> bytes:
    pieces, have = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise InvalidInput("the request was cut", code=_BAD)
        pieces.append(message.get("body", b""))
        have += len(pieces[-1])
        if have > size:
            raise InvalidInput(f"the body takes more than the {size} bytes that it says", code=_BAD)
        if not message.get("more_body"):
            return b"".join(pieces)


def _said(value: Any) -> _Reply:
    return HTTPStatus.OK, _JSON, json.dumps(value).encode(), {}
