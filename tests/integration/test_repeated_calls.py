"""Idempotency-Key: a call that is sent again is answered as before, and does nothing again."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Event
from uuid import uuid4

import pytest
from fastapi import FastAPI
from fleet_calls import made
from http_calls import Api, as_scope
from sqlalchemy import func, select, update

from sprat_server.access import tokens
from sprat_server.access.models import AuditRecord, KeptAnswer, OperatorToken
from sprat_server.access.tokens import Scope
from sprat_server.db.projects import DEFAULT_PROJECT
from sprat_server.flows import upkeep

TOKENS = "/api/v1/tokens"
BODY = {"name": "robot", "scopes": ["viewer"]}


def keyed(key: str) -> dict[str, str]:
    return {"Idempotency-Key": key}


def count(app: FastAPI, table: type) -> int:
    with app.state.database.across_projects() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def test_a_call_sent_again_under_its_key_is_answered_as_before_and_does_nothing(app: FastAPI, admin: Api) -> None:
    key = str(uuid4())
    first = admin.post(TOKENS, json=BODY, headers=keyed(key))
    records, there = count(app, AuditRecord), count(app, OperatorToken)
    again = admin.post(TOKENS, json=BODY, headers=keyed(f'"{key}"'))
    assert (again.status_code, again.json()) == (201, first.json())
    assert again.headers["Idempotency-Replayed"] == "true"
    assert "Idempotency-Replayed" not in first.headers
    assert (count(app, AuditRecord), count(app, OperatorToken)) == (records, there)


def test_an_answer_without_a_body_is_given_again_too(admin: Api) -> None:
    token = made(admin.post(TOKENS, json=BODY))
    key = keyed(str(uuid4()))
    answers = [admin.delete(f"{TOKENS}/{token['id']}", headers=key) for _ in range(2)]
    assert [(answer.status_code, answer.content) for answer in answers] == [(204, b""), (204, b"")]
    assert ["Idempotency-Replayed" in answer.headers for answer in answers] == [False, True]


def test_another_request_under_the_same_key_is_refused(admin: Api) -> None:
    key = keyed(str(uuid4()))
    made(admin.post(TOKENS, json=BODY, headers=key))
    other = admin.post(TOKENS, json=BODY | {"name": "another"}, headers=key)
    assert (other.status_code, other.json()["code"]) == (422, "request.key-reused")
    elsewhere = admin.post("/api/v1/enrolment-tokens", json={"uses": 1}, headers=key)
    assert elsewhere.json()["code"] == "request.key-reused"


def test_the_same_key_of_another_caller_is_another_key(app: FastAPI, admin: Api) -> None:
    key = keyed(str(uuid4()))
    made(admin.post(TOKENS, json=BODY, headers=key))
    other = as_scope(app, Scope.ADMIN).post(TOKENS, json=BODY, headers=key)
    assert other.json()["code"] == "token.exists"


def test_a_call_that_failed_may_be_tried_again_under_its_key(admin: Api) -> None:
    taken = made(admin.post(TOKENS, json=BODY))
    key = keyed(str(uuid4()))
    assert admin.post(TOKENS, json=BODY, headers=key).status_code == 409
    admin.delete(f"{TOKENS}/{taken['id']}")
    assert admin.post(TOKENS, json=BODY, headers=key).status_code == 201


@pytest.mark.parametrize("key", ["short", "k" * 201, "a key with spaces in it"])
def test_a_key_that_others_could_guess_is_refused(admin: Api, key: str) -> None:
    refused = admin.post(TOKENS, json=BODY, headers=keyed(key))
    assert (refused.status_code, refused.json()["code"]) == (422, "request.bad-key")


def test_kept_answers_hold_no_secret_in_clear(app: FastAPI, admin: Api) -> None:
    key = str(uuid4())
    text = made(admin.post(TOKENS, json=BODY, headers=keyed(key)))["token"]
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        kept = session.scalars(select(KeptAnswer)).one()
    assert text.encode() not in kept.answer
    assert key.encode() not in kept.key_sha256 + kept.request_sha256 + kept.answer


def test_after_a_day_a_key_is_forgotten(app: FastAPI, admin: Api) -> None:
    key = keyed(str(uuid4()))
    made(admin.post(TOKENS, json=BODY, headers=key))
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        session.execute(update(KeptAnswer).values(at=datetime.now(UTC) - timedelta(hours=25)))
    assert admin.post(TOKENS, json=BODY, headers=key).json()["code"] == "token.exists"
    upkeep.forget_expired(app.state.database)
    assert count(app, KeptAnswer) == 0


def test_two_at_once_are_carried_out_once(admin: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = Event(), Event()
    create = tokens.create

    def slowly(*args: object, **said: object) -> object:
        begun.set()
        assert go_on.wait(20)
        return create(*args, **said)  # type: ignore[arg-type]

    monkeypatch.setattr(tokens, "create", slowly)
    key = keyed(str(uuid4()))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(admin.post, TOKENS, json=BODY, headers=key)
        assert begun.wait(20)
        second = admin.post(TOKENS, json=BODY, headers=key)
        go_on.set()
        assert first.result(20).status_code == 201
    assert (second.status_code, second.json()["code"]) == (409, "request.still-running")
    assert second.headers["Retry-After"] == "1"
    assert admin.post(TOKENS, json=BODY, headers=key).headers["Idempotency-Replayed"] == "true"


def test_a_key_does_not_answer_whoever_lost_the_right(app: FastAPI, admin: Api) -> None:
    token = made(admin.post(TOKENS, json=BODY | {"name": "leaving", "scopes": ["admin"]}))
    caller, key = Api(app, token["token"]), keyed(str(uuid4()))
    made(caller.post(TOKENS, json=BODY, headers=key))
    admin.delete(f"{TOKENS}/{token['id']}")
    assert caller.post(TOKENS, json=BODY, headers=key).status_code == 401
