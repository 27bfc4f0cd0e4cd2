"""What the API's description says of routes, and that answers keep to it."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
from fastapi import FastAPI

from sprat_server.api.described import codes_of

OPERATORS = "/api/v1/"
ANYWHERE = {"request.no-such-route", "request.method", "server.bug"}
"""Codes that no route answers, or none on purpose."""


def operations(description: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield method, path and description of each route."""
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def require_described(app: FastAPI, answer: httpx.Response) -> None:
    """Fail where a route of operators answers with a problem that its description leaves out."""
    path = answer.request.url.path
    if (
        answer.request.method == "HEAD"
        or not path.startswith(OPERATORS)
        or not answer.headers.get("content-type", "").startswith("application/problem")
    ):
        return
    code = answer.json()["code"]
    for method, pattern, known in _table(app):
        if method == answer.request.method and pattern.fullmatch(path):
            said = f"{method} {path} answers {answer.status_code} {code}"
            assert (answer.status_code, code) in known or code in ANYWHERE, f"{said}, which api/described.py leaves out"
            return


_tables: list[list[tuple[str, re.Pattern[str], set[tuple[int, str]]]]] = []


def _table(app: FastAPI) -> list[tuple[str, re.Pattern[str], set[tuple[int, str]]]]:
    if not _tables:  # the same for every application
        _tables.append(
            [
                (method, re.compile(re.sub(r"\{[^}]+\}", "[^/]+", path)), _problems(operation))
                for method, path, operation in sorted(operations(app.openapi()), key=lambda one: "{" in one[1])
            ]
        )
    return _tables[0]


def _problems(operation: Mapping[str, Any]) -> set[tuple[int, str]]:
    return {(int(status), code) for status, response in operation["responses"].items() for code in codes_of(response)}
