"""How the application answers: errors as problem+json, bounds, pages, metrics, and the commit before the answer."""

import json
from pathlib import Path
from typing import Annotated

import pytest
from fastapi import Depends, FastAPI
from http_calls import Api
from sqlalchemy import text
from sqlalchemy.orm import Session

from sprat_server.app import create_app
from sprat_server.db.projects import DEFAULT_PROJECT
from sprat_server.db.session import Database, SessionDep, one_transaction
from sprat_server.jobs import service as jobs
from sprat_server.observe.actors import SYSTEM
from sprat_server.settings import Settings


@pytest.fixture
def failing_commit(app: FastAPI, database: Database) -> FastAPI:
    """The application with two routes whose INSERT is refused at COMMIT, by a deferred constraint."""
    with database.transaction(DEFAULT_PROJECT) as session:
        session.execute(text("CREATE TABLE parent (id int PRIMARY KEY)"))
        session.execute(text("CREATE TABLE child (id int REFERENCES parent DEFERRABLE INITIALLY DEFERRED)"))

    @app.post("/right")
    def right(session: SessionDep) -> str:
        session.execute(text("INSERT INTO child VALUES (1)"))
        return "done"

    @app.post("/wrong")
    def wrong(session: Annotated[Session, Depends(one_transaction)]) -> str:
        session.execute(text("INSERT INTO child VALUES (1)"))
        return "done"

    return app


def test_a_commit_that_fails_gives_500_and_not_the_answer_of_a_success(failing_commit: FastAPI) -> None:
    answer = Api(failing_commit, None).post("/right")
    assert (answer.status_code, answer.json()["code"]) == (500, "server.bug")


def test_the_default_scope_of_a_dependency_would_have_answered_200(failing_commit: FastAPI) -> None:
    assert Api(failing_commit, None).post("/wrong").status_code == 200  # why SessionDep says scope="function"


def test_every_answer_but_a_polls_says_when_it_was_made_and_by_which_id_it_is_logged(app: FastAPI) -> None:
    for path in ("/healthz", "/nothing-here", "/device/v1/poll"):  # the last is an error here, and says so in full
        answer = Api(app, None).get(path)
        assert {"date", "x-request-id"} <= set(answer.headers), path


def test_a_bug_is_told_as_a_problem_with_the_id_of_the_request_and_no_detail(app: FastAPI) -> None:
    @app.get("/broken")
    def broken() -> str:
        raise KeyError("secret of the inside")

    answer = Api(app, None).get("/broken", headers={"X-Request-Id": "abc"})
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"] == "abc"
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    ("method", "path", "status", "code", "word"),
    [
        ("GET", "/api/v1/nothing", 404, "request.no-such-route", "/api/v1/nothing"),
        ("PUT", "/api/v1/jobs", 405, "request.method", "PUT"),
        ("GET", "/api/v1/jobs/not-an-id", 422, "request.invalid", "path.job_id"),
        ("GET", "/api/v1/jobs?limit=0", 422, "request.invalid", "query.limit"),
        ("GET", "/api/v1/jobs?cursor=%F0%9F%90%9F", 422, "input.invalid", "cursor"),
        ("GET", "/api/v1/jobs?cursor=AAAA", 422, "input.invalid", "cursor"),
        ("GET", "/api/v1/jobs/00000000-0000-7000-8000-000000000000", 404, "job.unknown", "00000000"),
        ("GET", "/blobs/sha256/xyz", 422, "input.invalid", "digest"),
    ],
)
def test_every_error_is_a_problem_that_says_what_and_where(  # noqa: PLR0917 - a row of the table
    viewer: Api, method: str, path: str, status: int, code: str, word: str
) -> None:
    answer = viewer.request(method, path)
    problem = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.status_code, problem["status"], problem["code"]) == (status, status, code)
    assert word in problem["detail"]
    assert set(problem) >= {"type", "title", "status", "detail", "code"}


def test_a_body_with_an_unknown_or_wrong_field_is_refused_and_the_field_is_named(admin: Api) -> None:
    answer = admin.post("/api/v1/tokens", json={"name": "a b", "scopes": ["god"], "colour": "red"})
    assert answer.status_code == 422
    assert {error["field"] for error in answer.json()["errors"]} == {"body.name", "body.scopes.0", "body.colour"}


def test_a_body_that_is_too_large_is_refused_whatever_its_header_says(admin: Api) -> None:
    answer = admin.post("/api/v1/tokens", content=b'{"name": "' + b"x" * (2 << 20) + b'"}')
    assert (answer.status_code, answer.json()["code"]) == (413, "request.too-large")

    async def pieces():
        for _ in range(300):
            yield b"x" * 8192

    answer = admin.post("/api/v1/tokens", content=pieces(), headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (413, "request.too-large")


@pytest.mark.parametrize("body", [b"{", b"[1]", b'{"name": 7}', b"x" * (2 << 20)])
def test_nothing_is_read_of_a_call_without_credentials(anonymous: Api, body: bytes) -> None:
    answer = anonymous.post("/api/v1/tokens", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (401, "access.unauthenticated")
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_healthz_says_503_while_the_database_does_not_answer(tmp_path: Path) -> None:
    settings = Settings(database_url=f"postgresql://sprat@/sprat?host={tmp_path}", data_dir=tmp_path)
    app = create_app(settings)
    answer = Api(app, None).get("/healthz")
    assert (answer.status_code, answer.json()) == (503, {"status": "unavailable"})
    answer = Api(app, "sprat_" + "0" * 32 + "_x").get("/api/v1/jobs")
    assert (answer.status_code, answer.json()["code"]) == (503, "database.away")
    assert "retry-after" in answer.headers


def test_a_list_comes_in_pages_that_rows_added_meanwhile_do_not_shift(viewer: Api, database: Database) -> None:
    def add(count: int) -> None:
        with database.transaction(DEFAULT_PROJECT) as session:
            for number in range(count):
                jobs.enqueue(session, kind="count", args={"number": number}, by=SYSTEM)

    add(5)
    seen, cursor = [], None
    while True:
        page = viewer.get("/api/v1/jobs", params={"limit": 2} | ({"cursor": cursor} if cursor else {})).json()
        seen += [job["args"]["number"] for job in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
        add(1)
    assert seen == [4, 3, 2, 1, 0]


def test_metrics_count_requests_by_route_and_jobs_by_state(viewer: Api, server_viewer: Api, database: Database) -> None:
    with database.transaction(DEFAULT_PROJECT) as session:
        jobs.enqueue(session, kind="count", args={}, by=SYSTEM)
    viewer.get("/api/v1/jobs/00000000-0000-7000-8000-000000000000")
    text_ = server_viewer.get("/metrics").text
    assert 'sprat_http_requests_total{method="GET",route="/api/v1/jobs/{job_id}",status="404"}' in text_
    assert 'sprat_jobs{state="queued"} 1.0' in text_


def test_the_openapi_description_is_of_version_3_1_and_names_the_routes(viewer: Api) -> None:
    described = viewer.get("/api/v1/openapi.json").json()
    assert described["openapi"].startswith("3.1")
    assert "/api/v1/jobs/{job_id}/cancel" in described["paths"]
    assert json.dumps(described)
