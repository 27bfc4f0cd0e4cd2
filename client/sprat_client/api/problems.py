"""From an answer of the server to an error of sprat: problem+json (RFC 9457) in, `SpratError` out."""

import json
from http import HTTPStatus
from typing import Any, Final

import httpx

from sprat_shared import errors

# Codes outrank statuses: the code is the public contract, the status is only its nearest HTTP word.
_BY_CODE: Final[dict[str, type[errors.SpratError]]] = {
    kind.code: kind
    for kind in (
        errors.InvalidInput,
        errors.NotFound,
        errors.Conflict,
        errors.AccessDenied,
        errors.Unauthenticated,
        errors.UpdateRejected,
        errors.MalformedUpdate,
        errors.WireVersionUnsupported,
        errors.BaseMismatch,
        errors.LimitExceeded,
        errors.UntrustedUpdate,
        errors.UnsafeArithmetic,
        errors.TryLater,
    )
}
_BY_STATUS: Final[dict[int, type[errors.SpratError]]] = {
    HTTPStatus.BAD_REQUEST: errors.InvalidInput,
    HTTPStatus.UNAUTHORIZED: errors.Unauthenticated,
    HTTPStatus.FORBIDDEN: errors.AccessDenied,
    HTTPStatus.NOT_FOUND: errors.NotFound,
    HTTPStatus.CONFLICT: errors.Conflict,
    HTTPStatus.PRECONDITION_FAILED: errors.Conflict,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: errors.InvalidInput,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: errors.InvalidInput,
    HTTPStatus.UNPROCESSABLE_ENTITY: errors.InvalidInput,
    HTTPStatus.LOCKED: errors.Conflict,
    HTTPStatus.REQUEST_TIMEOUT: errors.TryLater,
    HTTPStatus.TOO_MANY_REQUESTS: errors.TryLater,
    HTTPStatus.BAD_GATEWAY: errors.TryLater,
    HTTPStatus.SERVICE_UNAVAILABLE: errors.TryLater,
    HTTPStatus.GATEWAY_TIMEOUT: errors.TryLater,
}


def error_of(response: httpx.Response) -> errors.SpratError:
    """Return the error that an answer of status 400 and above stands for; its body must have been read."""
    problem = _problem(response)
    code = problem.get("code")
    detail = problem.get("detail") or problem.get("title")
    if not isinstance(detail, str):
        detail = f"the server answered {response.status_code} {response.reason_phrase} and gave no reason"
    kind = _BY_STATUS.get(response.status_code, errors.SpratError)
    if isinstance(code, str):
        kind = _BY_CODE.get(code, kind)
    return kind(detail, code=code if isinstance(code, str) else None)


def unreachable(url: httpx.URL | str, cause: httpx.HTTPError) -> errors.TryLater:
    """Return the error of a request that got no answer from the server at `url`."""
    origin = httpx.URL(url).copy_with(path="/", query=None)
    if isinstance(cause, httpx.TimeoutException):
        return errors.TryLater(f"{origin} did not answer in time; check its load and the link, then try again")
    if isinstance(cause, httpx.ConnectError):
        return errors.TryLater(f"nothing answers at {origin}; is sprat-server running, and is --server right?")
    return errors.TryLater(f"the connection to {origin} broke ({cause}); try again")


def _problem(response: httpx.Response) -> dict[str, Any]:
    try:
        body = json.loads(response.content)
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}
