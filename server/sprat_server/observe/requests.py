"""One log line, one id and the metrics for each request: a bare ASGI layer around the whole application."""

import re
import time
from contextlib import AbstractContextManager, nullcontext
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Final

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sprat_server.observe import metrics, tracing
from sprat_shared.ids import new_id

_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_QUIET: Final = frozenset({"/healthz", "/metrics"})

_log = structlog.get_logger(__name__)


class ObservedRequests:
    """Gives each request an id (the caller's `X-Request-Id` where it is plain, else a new one) and records it.

    The id and the date are in every answer but those that the application marked as bare (`scope["sprat.bare"]`): on a
    thin link they would be a third of an idle poll.

    Args:
        app: what answers.
        failed: answers for `app` when an exception comes out of it before an answer has begun.
    """

    def __init__(self, app: ASGIApp, *, failed: ASGIApp) -> None:
        self._app, self._failed = app, failed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request through; anything else (lifespan) untouched."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _given_id(scope) or str(new_id())
        started_s = time.perf_counter()
        seen: dict[str, Any] = {"status": 500, "bytes": 0, "begun": False}

        async def observed_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen["status"], seen["begun"] = message["status"], True
                if not scope.get("sprat.bare"):
                    message["headers"] = [*message.get("headers", ()), *_own_headers(request_id)]
            elif message["type"] == "http.response.body":
                seen["bytes"] += len(message.get("body", b""))
            await send(message)

        client = scope.get("client")
        address = client[0] if client else None
        with (
            _traced(scope, request_id),
            structlog.contextvars.bound_contextvars(request_id=request_id, address=address),
        ):
            try:
                await self._app(scope, receive, observed_send)
            except Exception:
                _log.exception("request.failed")
                if seen["begun"]:
                    raise  # the connection is cut: half an answer must not look whole
                await self._failed(scope, receive, observed_send)
            finally:
                _record(scope, seen["status"], seen["bytes"], time.perf_counter() - started_s)


def _traced(scope: Scope, request_id: str) -> AbstractContextManager[None]:
    if scope["path"] in _QUIET or not tracing.is_on():
        return nullcontext()
    wanted = {b"traceparent", b"tracestate"}
    caller = {str(name, "latin-1"): str(value, "latin-1") for name, value in scope["headers"] if name in wanted}
    method = scope["method"]
    attributes = {"http.request.method": method, "url.path": scope["path"], "sprat.request_id": request_id}
    return tracing.span(method, kind="server", attributes=attributes, caller=caller)  # _record gives it its name


def _own_headers(request_id: str) -> list[tuple[bytes, bytes]]:
    return [(b"x-request-id", request_id.encode()), (b"date", formatdate(usegmt=True).encode())]


def _given_id(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return str(value, "ascii")
    return None


def _template(scope: Scope) -> str:
    """Return the route's path with its parameters' names, e.g. /api/v1/jobs/{job_id}: few, whatever is asked for."""
    if "sprat.route" in scope:
        return str(scope["sprat.route"])  # an application mounted before FastAPI
    path: str | None = getattr(scope.get("route"), "path", None)
    if path is None:
        return "unmatched"
    prefix = scope["path"].split("/")[: -(path.count("/"))]  # of the router, which the route does not know
    return f"{'/'.join(prefix)}{path}"


def _record(scope: Scope, status: int, sent_bytes: int, seconds: float) -> None:
    route = _template(scope)
    method = scope["method"]
    metrics.REQUESTS.labels(method, route, str(status)).inc()
    metrics.REQUEST_SECONDS.labels(method, route).observe(seconds)
    metrics.SENT_BYTES.labels(route).inc(sent_bytes)
    level = "debug" if scope["path"] in _QUIET or status == HTTPStatus.NOT_MODIFIED else "info"  # idle polls are many
    actor = scope.get("state", {}).get("actor")
    tracing.rename(f"{method} {route}")
    tracing.note(
        {
            "http.route": route,
            "http.response.status_code": int(status),
            "http.response.body.size": sent_bytes,
            "sprat.actor.kind": None if actor is None else actor.kind,
        }
    )
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        tracing.fail(str(int(status)))
    _log.log(
        {"debug": 10, "info": 20}[level],
        "request",
        method=method,
        path=scope["path"],
        route=route,
        status=int(status),
        sent_bytes=sent_bytes,
        ms=round(seconds * 1000, 1),
        actor=None if actor is None else str(actor),
    )
