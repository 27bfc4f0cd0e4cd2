"""Each route lets in who the table says, and answers everybody else 401 or 403 before it looks at anything."""

import json
import re
import uuid

import pytest
from fastapi import APIRouter, FastAPI
from fleet_calls import TestDevice, join, published
from http_calls import Api
from route_scopes import ANYONE, DEVICE, OF_SERVER, OPERATORS, PROVEN, TABLE, callers, routes_of

CALLERS = (*OPERATORS, *OF_SERVER, DEVICE)


@pytest.fixture
def device(app: FastAPI, operator: Api) -> TestDevice:
    """A device of the fleet."""
    published(app)
    return join(app, operator, 1)[0]


def call(api: Api, method: str, path: str) -> tuple[int, str | None]:
    """Call a route with ids that name nothing; return status and code."""
    url = re.sub(r"\{[a-z_]*(id|digest)\}", str(uuid.UUID(int=7)), path).replace("{number}", "7").replace("{plan}", "7")
    url = re.sub(r"\{[a-z_]+\}", "nothing", url)
    body = {"content": json.dumps({"reason": "because"}), "headers": {"Content-Type": "application/json"}}
    answer = api.request(method, url, **(body if method == "POST" else {}))
    problem = answer.headers.get("content-type") == "application/problem+json" and method != "HEAD"
    return answer.status_code, answer.json()["code"] if problem else None


def test_the_table_names_every_route_and_no_other(app: FastAPI) -> None:
    assert routes_of(app) == set(TABLE)


def test_a_route_that_is_added_must_be_put_into_the_table(app: FastAPI) -> None:
    router = APIRouter()
    router.add_api_route("/new", lambda: "open to all", methods=["POST"])
    app.include_router(router, prefix="/api/v1")
    assert routes_of(app) - set(TABLE) == {("POST", "/api/v1/new")}


@pytest.mark.parametrize(("method", "path"), TABLE, ids=[" ".join(route) for route in TABLE])
def test_a_route_lets_in_who_the_table_says_and_nobody_else(
    request: pytest.FixtureRequest, app: FastAPI, device: TestDevice, method: str, path: str
) -> None:
    least = TABLE[method, path]
    apis: dict[str, Api] = {name: request.getfixturevalue(name) for name in (*OPERATORS, *OF_SERVER)} | {
        DEVICE: device.api
    }
    if least in {ANYONE, PROVEN}:
        status, _ = call(Api(app, None), method, path)
        assert status == (200 if least == ANYONE else 422), "it asks for its proof"
        return
    for shown in (None, "sprat_made-up", "spratd_made-up", "a.b.c"):
        assert call(Api(app, shown), method, path)[0] == 401, shown
    for name, api in apis.items():
        status, code = call(api, method, path)
        if name in callers(least):
            assert status not in {401, 403}, (name, status, code)
            assert status < 500, (name, status, code)
        else:
            assert status in {401, 403}, (name, status, code)
            assert (status == 403) == (name != DEVICE and least in {*OPERATORS, *OF_SERVER}), (
                "401 for another kind of caller"
            )


def test_the_last_row_of_each_kind_is_there() -> None:
    assert set(TABLE.values()) == {ANYONE, PROVEN, "reader", *CALLERS}
