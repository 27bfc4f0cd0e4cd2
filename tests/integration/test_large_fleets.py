"""Fleets beyond PostgreSQL's 65,535 parameters of one statement: devices are named by one array (`db.sets.among`)."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from fastapi import FastAPI
from fleet_calls import made, published
from http_calls import Api
from sqlalchemy import event, text
from sqlalchemy.orm import Session

import sprat_server
from sprat_server.db.projects import ACROSS, DEFAULT_PROJECT
from sprat_server.db.session import Database
from sprat_server.fleet import service as fleet
from sprat_server.flows import gating as gates
from sprat_server.flows import rollout_steps, targeting
from sprat_server.rollouts import gating
from sprat_server.rollouts import service as rollouts
from sprat_server.rollouts.models import Rollout
from sprat_shared.errors import NotFound

MANY = 70_000
_JOIN = text(
    "INSERT INTO device (project_id, id, name, public_key, device_group, labels, attributes, assignment_counter,"
    " report_sequence, profile, agent) SELECT :project, gen_random_uuid(), 'device-' || i,"
    " decode(md5('a' || i) || md5('b' || i), 'hex'), 'line-' || i % 5, '{}', '{}', 0, 0, 'arm', 'test'"
    " FROM generate_series(1, :count) AS i"
)


@pytest.fixture
def rollout(app: FastAPI, releaser: Api) -> UUID:
    """The draft of a rollout, of a model with two releases."""
    published(app)
    published(app, base=1)
    return UUID(made(releaser.post("/api/v1/rollouts", json={"model": "mnist", "release": 2}))["id"])


def join(database: Database, count: int) -> None:
    """Add devices that never call."""
    with database.across_projects() as session:
        session.execute(_JOIN, {"project": DEFAULT_PROJECT, "count": count}, execution_options=ACROSS)


@contextmanager
def counted(app: FastAPI) -> Iterator[dict[str, int]]:
    """Give, at the end, each statement but INSERTs with its number of parameters; SQLAlchemy bounds those itself."""
    seen: dict[str, int] = {}

    def count(_connection: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        if not statement.startswith("INSERT"):
            each = parameters if isinstance(parameters, list) else [parameters]
            seen[statement] = max(seen.get(statement, 0), *(len(one) for one in each))

    engine = app.state.database.engine
    event.listen(engine, "before_cursor_execute", count)
    try:
        yield seen
    finally:
        event.remove(engine, "before_cursor_execute", count)


def test_no_statement_has_a_parameter_for_each_device(app: FastAPI, releaser: Api, database: Database) -> None:
    published(app)
    published(app, base=1)
    join(database, 300)
    with database.transaction(DEFAULT_PROJECT) as session:
        named = [str(device) for device in fleet.live_devices(session)]
    plan = {"model": "mnist", "release": 2, "waves": ["50%", "100%"], "devices": named, "control": "5%"}
    with counted(app) as seen:
        one = f"/api/v1/rollouts/{made(releaser.post('/api/v1/rollouts', json=plan))['id']}"
        for move in ("prefetch", "start", "promote"):
            made(releaser.post(f"{one}/{move}", json={"reason": "a test"}))
        assert made(releaser.get(one))["exposed"] > 200
        made(releaser.get(f"{one}/why"))
        made(releaser.post(f"{one}/abort", json={"reason": "a test"}))
        with database.across_projects() as session:
            fleet.mark_seen(session, dict.fromkeys(map(UUID, named), datetime.now(UTC)))
    most = max(seen, key=lambda statement: seen[statement])
    assert len(seen) > 50
    assert seen[most] < 100, most


UNKNOWN = [uuid4() for _ in range(MANY)]
Call = Callable[[Session, Rollout], object]


QUESTIONS: dict[str, Call] = {
    "assign": lambda session, one: fleet.assign(session, one.model_id, dict.fromkeys(UNKNOWN, 2), "rollout"),
    "current_assignments": lambda session, one: fleet.current_assignments(
        session, device_ids=UNKNOWN, model_id=one.model_id
    ),
    "assigned": lambda session, _one: fleet.assigned(session, dict.fromkeys(UNKNOWN, 1)),
    "require_played": lambda session, _one: fleet.require_played(session, UNKNOWN),
    "mark_seen": lambda session, _one: fleet.mark_seen(session, dict.fromkeys(UNKNOWN, datetime.now(UTC))),
    "parts": lambda session, one: rollouts.parts(session, one, UNKNOWN),
    "forget_prefetches": lambda session, one: rollouts.forget_prefetches(session, one.model_id, UNKNOWN, but=None),
    "had": lambda session, one: rollout_steps.had(session, one, UNKNOWN),
    "begin": lambda session, one: gates.begin(session, one, UNKNOWN),
    "devices_heard": lambda session, one: gating.devices_heard(session, one, UNKNOWN, "exposed"),
    "segments_of": lambda session, one: gating.segments_of(session, one, UNKNOWN),
    "matching": lambda session, _one: targeting.matching(session, 'site = "press"', UNKNOWN),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_each_question_about_devices_takes_more_than_a_statement_has_parameters(
    question: str, rollout: UUID, database: Database
) -> None:
    with database.transaction(DEFAULT_PROJECT) as session:
        QUESTIONS[question](session, rollouts.get(session, rollout))


def test_the_first_of_many_devices_that_is_not_there_is_named(database: Database) -> None:
    with database.transaction(DEFAULT_PROJECT) as session, pytest.raises(NotFound, match=str(UNKNOWN[0])):
        fleet.require_live(session, UNKNOWN)


def test_devices_are_named_by_an_array_everywhere() -> None:
    folder = Path(sprat_server.__file__).parent
    strays = [
        f"{file.relative_to(folder)}: {line.strip()}"
        for file in sorted(folder.rglob("*.py"))
        for line in file.read_text().splitlines()
        if re.search(r"\b(?:device_id|Device\.id)\.in_\(", line)
    ]
    assert not strays, f"write among(column, values), of db.sets: {strays}"


@pytest.mark.crash
@pytest.mark.skipif("SPRAT_CRASH_TIMES" not in os.environ, reason="takes minutes: make crash")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("waves", [["10", "100%"], ["100%"]])
def test_a_rollout_starts_over_more_devices_than_a_statement_has_parameters(
    releaser: Api, database: Database, rollout: UUID, waves: list[str]
) -> None:
    made(releaser.post(f"/api/v1/rollouts/{rollout}/abort", json={"reason": "a test"}))
    join(database, MANY)
    body = {"model": "mnist", "release": 2, "waves": waves}
    one = f"/api/v1/rollouts/{made(releaser.post('/api/v1/rollouts', json=body))['id']}"
    started = made(releaser.post(f"{one}/start", json={"reason": "a test"}))
    assert started["exposed"] == (MANY if len(waves) == 1 else 10)
    assert made(releaser.get(one))["state"] == "running"
