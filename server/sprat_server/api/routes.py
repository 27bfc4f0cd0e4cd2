"""What all routes of operators do around their own work: entity tags, refused preconditions, answers given again.

    router = operators_router(prefix="/groups", tags=["groups"])

FastAPI commits a route's transaction after its handler (`get_route_handler`) has returned and before the answer
leaves, so what is done here to an answer is part of that transaction.
"""

import inspect
import json
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any, Final, get_args

from fastapi import APIRouter, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute

from sprat_server.access import idempotency
from sprat_server.api import repeats
from sprat_server.api.described import problems, together
from sprat_server.api.preconditions import SeenState, entity_tag, tags_of
from sprat_shared.errors import InvalidInput

_SAFE: Final = frozenset({"GET", "HEAD"})

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


_ALWAYS: Final = problems(
    {
        HTTPStatus.UNAUTHORIZED: ["access.unauthenticated", "oidc.expired"],
        HTTPStatus.FORBIDDEN: ["access.scope", "access.whole-server", "oidc.no-scope", "oidc.which-project"],
        HTTPStatus.NOT_FOUND: ["project.unknown"],
        HTTPStatus.UNPROCESSABLE_ENTITY: ["input.invalid", "request.invalid"],
        HTTPStatus.TOO_MANY_REQUESTS: ["access.too-many-failures"],
        HTTPStatus.SERVICE_UNAVAILABLE: ["database.away", "oidc.issuer-away"],
    }
)
_OF_CHANGES: Final = problems(
    {
        HTTPStatus.CONFLICT: ["request.still-running"],
        HTTPStatus.UNPROCESSABLE_ENTITY: ["request.bad-key", "request.key-reused"],
    }
)
_TOO_LARGE: Final = problems({HTTPStatus.REQUEST_ENTITY_TOO_LARGE: ["request.too-large"]})
_SEEN: Final = problems({HTTPStatus.PRECONDITION_FAILED: ["request.changed-meanwhile"]})
_UNSEEN: Final = problems({HTTPStatus.UNPROCESSABLE_ENTITY: ["request.no-precondition"]})
_KEY: Final = {
    "name": repeats.HEADER,
    "in": "header",
    "required": False,
    "description": "A random text of the caller's: sent again under it within a day, a call is answered as before.",
    "schema": {"type": "string", "minLength": idempotency.SHORTEST, "maxLength": idempotency.LONGEST},
}


class StreamedRoute(APIRoute):
    """A route below /api/v1 that takes or answers a stream: neither entity tags nor answers given again."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **how: Any) -> None:
        how["responses"] = together(how.get("responses"), _ALWAYS, _TOO_LARGE)
        super().__init__(path, endpoint, **how)


class OperatorsRoute(APIRoute):
    """A route below /api/v1 that answers JSON."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **how: Any) -> None:
        methods = set(how.get("methods") or _SAFE)
        if methods <= _SAFE:
            how["responses"] = together(how.get("responses"), _ALWAYS)
        else:
            precondition = _SEEN if _takes_precondition(endpoint) else _UNSEEN
            how["responses"] = together(how.get("responses"), _ALWAYS, _TOO_LARGE, _OF_CHANGES, precondition)
            how["openapi_extra"] = {"parameters": [_KEY]} | (how.get("openapi_extra") or {})
        super().__init__(path, endpoint, **how)

    def get_route_handler(self) -> Handler:
        """Return what answers a request."""
        handle = super().get_route_handler()
        if (self.methods or _SAFE) <= _SAFE:
            return _tagged(handle)
        return _once(handle, seen=_takes_precondition(self.endpoint))


def operators_router(**how: Any) -> APIRouter:
    """Return a router whose routes are of that kind; arguments as `APIRouter` takes them."""
    return APIRouter(route_class=OperatorsRoute, **how)


def _once(handle: Handler, *, seen: bool) -> Handler:
    """Return a handler that refuses preconditions which the route does not know, and keeps answers under a key."""

    async def answer(request: Request) -> Response:
        if "if-match" in request.headers and not seen:
            raise InvalidInput(
                f"{request.method} {request.url.path} takes no If-Match: leave it out (docs/api.md says what does)",
                code="request.no-precondition",
            )
        await repeats.read(request)
        response = await handle(request)
        await repeats.keep(request, response)
        return response

    return answer


def _tagged(handle: Handler) -> Handler:
    """Return a handler that gives JSON its entity tag, and 304 to whoever has it."""

    async def answer(request: Request) -> Response:
        response = await handle(request)
        if response.status_code != HTTPStatus.OK or response.headers.get("content-type") != "application/json":
            return response
        tag = entity_tag(json.loads(bytes(response.body)))
        headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
        if tags_of(request.headers.get("if-none-match", "")) & {tag, f"W/{tag}", "*"}:
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
        response.headers.update(headers)
        return response

    return answer


def _takes_precondition(endpoint: Callable[..., Any]) -> bool:
    parameters = inspect.signature(endpoint).parameters.values()
    return any(SeenState in get_args(parameter.annotation) for parameter in parameters)
