"""Tokens, scopes and the audit log, over HTTP and against the database itself."""

from fastapi import FastAPI
from http_calls import Api


def test_every_route_but_healthz_refuses_a_caller_without_a_token(app: FastAPI, anonymous: Api) -> None:
    asked = 0
    for path, operations in app.openapi()["paths"].items():
        for method in operations:
            if path == "/healthz":
                continue
            answer = anonymous.request(method, path)
            assert answer.status_code == 401, (method, path, answer.text)
            assert answer.headers["www-authenticate"].startswith("Bearer")
            asked += 1
    assert asked > 10


def test_healthz_needs_no_token_and_tells_no_detail(anonymous: Api) -> None:
    answer = anonymous.get("/healthz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
