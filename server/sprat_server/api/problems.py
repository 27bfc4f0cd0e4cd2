"""Errors as problem+json (RFC 9457): {type, title, status, detail, code}. One table from errors to HTTP statuses."""

import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DataError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from sprat_server.observe import tracing
from sprat_shared.errors import (
    AccessDenied,
    Conflict,
    InvalidInput,
    NotFound,
    SpratError,
    TryLater,
    Unauthenticated,
    UpdateRejected,
)

STATUS_OF_CODE: Final[Mapping[str, HTTPStatus]] = {
    "access.too-many-failures": HTTPStatus.TOO_MANY_REQUESTS,
    "access.too-many-requests": HTTPStatus.TOO_MANY_REQUESTS,
    "blob.too-large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "request.changed-meanwhile": HTTPStatus.PRECONDITION_FAILED,
    "request.too-large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
}
"""Codes that differ from their class."""

STATUS_OF_CLASS: Final[Sequence[tuple[type[SpratError], HTTPStatus]]] = (
    (Unauthenticated, HTTPStatus.UNAUTHORIZED),
    (AccessDenied, HTTPStatus.FORBIDDEN),
    (NotFound, HTTPStatus.NOT_FOUND),
    (Conflict, HTTPStatus.CONFLICT),
    (InvalidInput, HTTPStatus.UNPROCESSABLE_ENTITY),
    (UpdateRejected, HTTPStatus.UNPROCESSABLE_ENTITY),
    (TryLater, HTTPStatus.SERVICE_UNAVAILABLE),
)
"""The first class that fits decides; an error of none of them is our bug and stays 500."""

_RETRY_AFTER_S: Final = 5
_log = structlog.get_logger(__name__)


def status_of(error: SpratError) -> HTTPStatus:
    """Return the HTTP status of an error."""
    if error.code in STATUS_OF_CODE:
        return STATUS_OF_CODE[error.code]
    for kind, status in STATUS_OF_CLASS:
        if isinstance(error, kind):
            return status
    return HTTPStatus.INTERNAL_SERVER_ERROR


def problem(
    status: int, detail: str, code: str, *, headers: Mapping[str, str] | None = None, **more: Any
) -> JSONResponse:
    """Return a problem+json answer.

    Args:
        status: the HTTP status.
        detail: the sentence a person reads.
        code: the public code.
        headers: of the answer.
        more: further members, e.g. `errors`.
    """
    tracing.note({"sprat.problem.code": code})
    body = {
        "type": f"urn:sprat:error:{code}",
        "title": HTTPStatus(status).phrase,
        "status": int(status),
        "detail": detail,
        "code": code,
        **more,
    }
    return JSONResponse(body, status, headers, media_type="application/problem+json")


def install(app: FastAPI) -> None:
    """Have `app` answer every error as problem+json."""
    app.add_exception_handler(SpratError, _sprat_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(OperationalError, _database_away)
    app.add_exception_handler(PoolTimeout, _database_away)
    app.add_exception_handler(DataError, _not_storable)
    app.add_exception_handler(UnicodeEncodeError, _not_storable)


def answer_of(error: SpratError) -> JSONResponse:
    """Return the answer for an error; its `members` and `retry_after_s`, where it has them, go with it."""
    status = status_of(error)
    headers = {}
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = 'Bearer realm="sprat"'
    elif status in {HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS} or hasattr(error, "retry_after_s"):
        headers["Retry-After"] = str(math.ceil(getattr(error, "retry_after_s", _RETRY_AFTER_S)))
    elif status == HTTPStatus.INTERNAL_SERVER_ERROR:
        _log.error("request.failed", code=error.code, exc_info=error)
    return problem(status, str(error), error.code, headers=headers, **getattr(error, "members", {}))


async def _sprat_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, SpratError)  # noqa: S101 - registered for this class
    return answer_of(error)


async def _invalid_request(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for this class
    errors = [{"field": ".".join(map(str, item["loc"])), "message": item["msg"]} for item in error.errors()]
    detail = "; ".join(f"{item['field']}: {item['message']}" for item in errors)
    return problem(HTTPStatus.UNPROCESSABLE_ENTITY, detail, "request.invalid", errors=errors)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for this class
    codes = {
        HTTPStatus.NOT_FOUND: ("request.no-such-route", f"there is no {request.url.path} here"),
        HTTPStatus.METHOD_NOT_ALLOWED: (
            "request.method",
            f"{request.method} is not possible on {request.url.path}",
        ),
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE: ("request.too-large", error.detail),
    }
    code, detail = codes.get(HTTPStatus(error.status_code), ("request.invalid", error.detail))
    return problem(error.status_code, detail, code, headers=error.headers)


async def _not_storable(_request: Request, error: Exception) -> JSONResponse:
    """A NUL in a text, half of a surrogate pair, a number beyond 64 bits: valid JSON, and no value of the database."""
    reason = str(error.orig if isinstance(error, DataError) else error).partition("\n")[0]
    detail = f"a value of the request cannot be stored ({reason}); change it"
    return problem(HTTPStatus.UNPROCESSABLE_ENTITY, detail, "request.invalid")


async def _database_away(_request: Request, error: Exception) -> JSONResponse:
    _log.error("database.away", exc_info=error)
    return problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "the database does not answer; try again soon",
        "database.away",
        headers={"Retry-After": str(_RETRY_AFTER_S)},
    )


async def bug(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer for an application that failed; a bare ASGI application."""
    answer = problem(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "the server made a mistake; its log says more under this request's id (X-Request-Id)",
        "server.bug",
    )
    await answer(scope, receive, send)
