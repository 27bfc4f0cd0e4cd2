"""Devices without a token: they wait for an operator's word, few of them, and not for ever."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi import FastAPI
from fleet_calls import device_of, enrol, made, published
from http_calls import Api
from sqlalchemy import func, select, update

from sprat_server.app import create_app
from sprat_server.db.projects import DEFAULT_PROJECT
from sprat_server.fleet.models import EnrolmentRequest
from sprat_server.flows import upkeep
from sprat_server.settings import Settings
from sprat_shared.protocol.enrol import EnrolPending, fingerprint


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Settings of a server where few may wait."""
    return settings.model_copy(update={"enrolment_queue": 5, "enrolment_queue_per_address": 3})


@pytest.fixture
def key(app: FastAPI) -> Ed25519PrivateKey:
    """The key of a device, with a server that has metadata."""
    published(app)
    return Ed25519PrivateKey.generate()


def waiting(api: Api) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = made(api.get("/api/v1/enrolment-requests"))["items"]
    return items


def test_a_device_waits_is_seen_by_its_fingerprint_is_accepted_and_works(
    app: FastAPI, operator: Api, viewer: Api, key: Ed25519PrivateKey
) -> None:
    asked = enrol(app, None, "press-7", key)
    assert asked.status_code == 202
    said = EnrolPending.from_json(asked.content)
    assert said.fingerprint == fingerprint(key.public_key().public_bytes_raw())
    assert enrol(app, None, "press-7", key).status_code == 202, "it asks again and waits on"
    (row,) = waiting(viewer)
    assert (row["name"], row["fingerprint"], row["address"]) == ("press-7", said.fingerprint, "127.0.0.1")
    accepted = made(operator.post(f"/api/v1/enrolment-requests/{row['id']}/accept", json={"group": "line-3"}))
    assert (accepted["name"], accepted["group"], accepted["fingerprint"]) == ("press-7", "line-3", said.fingerprint)
    assert waiting(viewer) == []
    answer = enrol(app, None, "press-7", key)
    assert answer.status_code == 201
    assert device_of(app, answer, "press-7", key).poll().status_code == 200
    actions = [record["action"] for record in made(viewer.get("/api/v1/audit"))["items"]]
    assert actions[:2] == ["device.accept", "enrolment.ask"]


def test_a_rejected_device_is_told_so_and_stays_so(
    app: FastAPI, operator: Api, viewer: Api, key: Ed25519PrivateKey
) -> None:
    enrol(app, None, "press-7", key)
    (row,) = waiting(viewer)
    rejected = made(operator.post(f"/api/v1/enrolment-requests/{row['id']}/reject", json={"reason": "not ours"}))
    assert rejected["rejected_at"] is not None
    answer = enrol(app, None, "press-7", key)
    assert (answer.status_code, answer.json()["code"]) == (403, "enrolment.rejected")
    late = operator.post(f"/api/v1/enrolment-requests/{row['id']}/accept", json={})
    assert (late.status_code, late.json()["code"]) == (409, "enrolment.was-rejected")


def test_the_queue_is_bounded_for_an_address_and_in_all(app: FastAPI, viewer: Api) -> None:
    published(app)
    answers = [enrol(app, None, f"press-{number}") for number in range(4)]
    assert [answer.status_code for answer in answers] == [202, 202, 202, 503]
    assert answers[-1].json()["code"] == "enrolment.queue-full"
    assert "retry-after" in answers[-1].headers
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        session.execute(update(EnrolmentRequest).values(address="10.0.0.9"))
    assert [enrol(app, None, f"gate-{number}", None).status_code for number in range(3)] == [202, 202, 503]
    assert len(waiting(viewer)) == 5


def test_an_address_may_ask_so_often(app: FastAPI, operator: Api, key: Ed25519PrivateKey) -> None:
    answers = [enrol(app, None, "press-7", key) for _ in range(31)]
    assert [answer.status_code for answer in answers] == [*[202] * 30, 429]
    assert answers[-1].json()["code"] == "access.too-many-requests"
    assert 0 < int(answers[-1].headers["retry-after"]) <= 60
    token = made(operator.post("/api/v1/enrolment-tokens", json={}))["token"]
    assert enrol(app, token, "press-7", key).status_code == 201, "a token is not asked to wait"


def test_whom_nobody_answers_is_forgotten(app: FastAPI, operator: Api, viewer: Api, key: Ed25519PrivateKey) -> None:
    enrol(app, None, "press-7", key)
    (row,) = waiting(viewer)
    past = datetime.now(UTC) - timedelta(days=2)
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        session.execute(update(EnrolmentRequest).values(created_at=past, expires_at=past + timedelta(days=1)))
    assert waiting(viewer) == []
    assert operator.post(f"/api/v1/enrolment-requests/{row['id']}/accept", json={}).status_code == 404
    upkeep.forget_expired(app.state.database)
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        assert session.scalar(select(func.count()).select_from(EnrolmentRequest)) == 0
    assert enrol(app, None, "press-7", key).status_code == 202, "it may ask anew"


def test_a_device_that_waits_is_not_let_in_under_a_name_that_is_taken(
    app: FastAPI, operator: Api, viewer: Api, key: Ed25519PrivateKey
) -> None:
    token = made(operator.post("/api/v1/enrolment-tokens", json={}))["token"]
    assert enrol(app, token, "press-7").status_code == 201
    enrol(app, None, "press-7", key)
    (row,) = waiting(viewer)
    answer = operator.post(f"/api/v1/enrolment-requests/{row['id']}/accept", json={})
    assert (answer.status_code, answer.json()["code"]) == (409, "enrolment.name-taken")
    assert len(waiting(viewer)) == 1


def test_a_device_that_waits_may_join_with_a_token_instead(
    app: FastAPI, operator: Api, viewer: Api, key: Ed25519PrivateKey
) -> None:
    enrol(app, None, "press-7", key)
    token = made(operator.post("/api/v1/enrolment-tokens", json={}))["token"]
    assert enrol(app, token, "press-7", key).status_code == 201
    assert waiting(viewer) == []


def test_where_there_is_no_queue_a_token_is_asked_for(settings: Settings, app: FastAPI) -> None:
    published(app)
    closed = create_app(settings.model_copy(update={"enrolment_queue": 0}))
    answer = enrol(closed, None, "press-7")
    closed.state.database.close()
    assert (answer.status_code, "enrolment token" in answer.json()["detail"]) == (401, True)
