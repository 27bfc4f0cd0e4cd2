"""The problems that a route can answer, said in the API's description (`docs/openapi.json`).

    @router.post("/{name}", responses=raises(not_found=["group.unknown"], invalid=["filter.bad"]))

What every route of operators can answer is added by `api.routes`. A test fails where a route answers a code that its
description leaves out.
"""

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, Final

Responses = dict[int | str, dict[str, Any]]

PROBLEM: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "title": "Problem",
        "description": "What went wrong (RFC 9457); `code` is public and stable: docs/errors.md has each.",
        "type": "object",
        "required": ["type", "title", "status", "detail", "code"],
        "properties": {
            "type": {"type": "string", "examples": ["urn:sprat:error:rollout.wrong-state"]},
            "title": {"type": "string", "examples": ["Conflict"]},
            "status": {"type": "integer", "examples": [409]},
            "detail": {
                "type": "string",
                "description": "What happened, to what, and what to do.",
                "examples": ["a rollout that is draft cannot be paused; it stays as it is"],
            },
            "code": {"type": "string", "examples": ["rollout.wrong-state"]},
            "errors": {
                "type": "array",
                "description": "Of `request.invalid`: each field that does not fit.",
                "items": {
                    "type": "object",
                    "properties": {"field": {"type": "string"}, "message": {"type": "string"}},
                },
            },
        },
    }
)
"""The schema of a problem, to which all of them refer."""

_PROBLEM_JSON: Final = "application/problem+json"


def raises(
    *,
    denied: Iterable[str] = (),
    not_found: Iterable[str] = (),
    conflict: Iterable[str] = (),
    invalid: Iterable[str] = (),
) -> Responses:
    """Return the description of problems by codes: of 403, 404, 409 and 422."""
    return problems(
        {
            HTTPStatus.FORBIDDEN: denied,
            HTTPStatus.NOT_FOUND: not_found,
            HTTPStatus.CONFLICT: conflict,
            HTTPStatus.UNPROCESSABLE_ENTITY: invalid,
        }
    )


def problems(codes: Mapping[HTTPStatus, Iterable[str]]) -> Responses:
    """Return the description of problems by status and code."""
    return {int(status): _response(set(each)) for status, each in codes.items() if each}


def together(*parts: Responses | None) -> Responses:
    """Return descriptions as one: of a status that several have, all codes; what is no problem is kept as it is."""
    said: Responses = {}
    for part in parts:
        for status, response in (part or {}).items():
            both = codes_of(response) | codes_of(said.get(status, {}))
            said[status] = _response(both) if both else response
    return said


def codes_of(response: Mapping[str, Any]) -> set[str]:
    """Return the codes of the problems that a described answer may be; none where it is no problem."""
    schema = response.get("content", {}).get(_PROBLEM_JSON, {}).get("schema")
    return set() if schema is None else set(schema["allOf"][1]["properties"]["code"]["enum"])


def with_problem(description: dict[str, Any]) -> dict[str, Any]:
    """Return an OpenAPI description that has the schema of problems."""
    description["components"]["schemas"]["Problem"] = dict(PROBLEM)
    return description


def _response(codes: set[str]) -> dict[str, Any]:
    narrowed = {"properties": {"code": {"enum": sorted(codes)}}}
    schema = {"allOf": [{"$ref": "#/components/schemas/Problem"}, narrowed]}
    return {"description": ", ".join(sorted(codes)), "content": {_PROBLEM_JSON: {"schema": schema}}}
