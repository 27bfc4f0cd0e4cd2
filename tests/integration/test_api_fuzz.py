"""Requests out of the OpenAPI description, right and wrong, for every route and scope: no answer is a 5xx.

Over real HTTP, on a real PostgreSQL. Half of the requests name things that exist.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import requests
import schemathesis
from fastapi import FastAPI
from fleet_calls import enrol, join, made, published
from http_calls import as_scope, served
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from route_scopes import ANYONE, DEVICE, OPERATORS, PROVEN, TABLE, callers, routes_of
from schemathesis import GenerationMode
from schemathesis.core.errors import IncorrectUsage

from sprat_server.access.tokens import Scope
from sprat_server.app import create_app
from sprat_server.settings import Settings

pytestmark = pytest.mark.crash
MANY = int(os.environ.get("SPRAT_CRASH_TIMES", "1"))  # `make crash` has it higher
SEED = int(os.environ.get("SPRAT_FUZZ_SEED", "4"))
REFUSED = {400, 401, 403, 404, 405, 422}  # a path may be broken so that it is another route's, or none's
WHO = ("nobody", *OPERATORS, DEVICE)


@dataclass
class Place:
    """A running server with something of everything, and the tokens of everybody who may call."""

    url: str
    app: FastAPI
    tokens: Mapping[str, str | None]
    known: Mapping[str, str]
    session: requests.Session = field(default_factory=requests.Session)
    statuses: list[int] = field(default_factory=list)


@pytest.fixture
def place(settings: Settings, app: FastAPI) -> Iterator[Place]:
    """Devices, a release, a rollout, a job, a device that waits."""
    unlimited = {"auth_failures_per_minute": 10**9, "enrolment_queue_per_address": 10**9}
    patient = create_app(settings.model_copy(update=unlimited))
    admin = as_scope(app, Scope.ADMIN)
    published(app)
    caller, victim = join(app, admin, 2)
    enrol(app, None, "press-9")
    rollout = made(admin.post("/api/v1/rollouts", json={"model": "mnist", "release": 1, "waves": ["50%", "100%"]}))
    blob = made(admin.post("/api/v1/blobs", content=b"samples"))
    job = made(admin.post("/api/v1/datasets", json={"name": "digits", "blob": blob["digest"]}))
    spare = made(admin.post("/api/v1/tokens", json={"name": "spare", "scopes": ["viewer"]}))
    waiting = made(admin.get("/api/v1/enrolment-requests"))["items"][0]
    known = {
        "device_id": str(victim.id),
        "request_id": waiting["id"],
        "rollout_id": rollout["id"],
        "job_id": job["job"]["id"],
        "token_id": spare["id"],
        "name": "mnist",
        "number": "1",
        "digest": blob["digest"],
        "hex_digest": blob["digest"].removeprefix("sha256:"),
        "file": "timestamp.json",
    }
    tokens = {name: as_scope(app, Scope.of(name)).token for name in OPERATORS}
    with served(patient) as url:
        yield Place(url, patient, {"nobody": None, DEVICE: caller.api.token, **tokens}, known)


def described(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI description, with the routes that it leaves out."""
    description: dict[str, Any] = app.openapi()
    for method, path in sorted(routes_of(app)):
        operations = description["paths"].setdefault(path, {})
        if method.lower() not in operations:
            shown = operations.get("get", {"responses": {"200": {"description": "found"}}})
            operations[method.lower()] = {**shown, "operationId": f"{method} {path}"}
    return description


def attack(place: Place, operation: Any, mode: GenerationMode, cases: int) -> None:
    """Send so many requests to an operation, each as everybody."""
    route = (operation.method.upper(), operation.path)

    @seed(SEED)
    @settings(
        max_examples=cases,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode), knows=st.booleans())
    def send(case: Any, knows: bool) -> None:  # noqa: FBT001 - drawn
        for name in case.path_parameters or {}:
            if knows and name in place.known:
                case.path_parameters[name] = place.known[name]
        case.headers = {name: text for name, text in (case.headers or {}).items() if name.lower() != "authorization"}
        for who in WHO:
            ask(place, route, case, who)

    try:
        send()
    except (IncorrectUsage, Unsatisfiable):
        assert mode is GenerationMode.NEGATIVE, "an operation without parameters cannot be asked wrongly"


def ask(place: Place, route: tuple[str, str], case: Any, who: str) -> None:
    """Send a request as one caller."""
    token = place.tokens[who]
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    answer = case.call(base_url=place.url, headers=headers, session=place.session, timeout=30)
    place.statuses.append(answer.status_code)
    assert answer.status_code < 500, (route, who, answer.text, case.as_curl_command())
    least = TABLE[route]
    if least not in {ANYONE, PROVEN} and who not in callers(least):
        assert answer.status_code in REFUSED, (route, who, answer.status_code)


@pytest.mark.timeout(7200)
def test_no_request_to_any_route_from_anybody_is_answered_5xx(place: Place) -> None:
    schema = schemathesis.openapi.from_dict(described(place.app))
    operations = [found.ok() for found in schema.get_all_operations()]
    assert {(one.method.upper(), one.path) for one in operations} == set(TABLE)
    for operation in operations:
        attack(place, operation, GenerationMode.POSITIVE, MANY)
        attack(place, operation, GenerationMode.NEGATIVE, MANY)
    seen = {status: place.statuses.count(status) for status in sorted(set(place.statuses))}
    assert sum(seen.values()) >= (2_000 if MANY >= 10 else 200), seen
    assert {200, 401, 403, 404, 422} <= set(seen), seen
    print(f"{sum(seen.values())} requests, answered {seen}")  # noqa: T201 - shown by `pytest -s`
