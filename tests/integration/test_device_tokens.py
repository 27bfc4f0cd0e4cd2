"""Proof of possession: an assertion signed with the device's key, once, for a token that ends soon."""

import base64
import json
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi import FastAPI
from fleet_calls import TestDevice, ask_for_token, assertion, join, made, published
from http_calls import Api
from sqlalchemy import func, select, update

from sprat_server.db.projects import DEFAULT_PROJECT
from sprat_server.fleet.models import Device, SpentAssertion
from sprat_server.flows import upkeep
from sprat_shared.protocol.token import ASSERTION_TYPE, AUDIENCE, GRANT_TYPE

LONG = f"grant_type={GRANT_TYPE}&client_assertion_type={ASSERTION_TYPE}&client_assertion={'x' * 5000}".encode()


@pytest.fixture
def fleet(app: FastAPI, operator: Api) -> list[TestDevice]:
    """Two devices."""
    published(app)
    return join(app, operator, 2)


@pytest.fixture
def device(fleet: list[TestDevice]) -> TestDevice:
    """One of them."""
    return fleet[0]


def test_a_signed_assertion_gives_a_token_that_says_when_it_ends(app: FastAPI, device: TestDevice) -> None:
    answer = ask_for_token(app, assertion(device.id, device.key))
    said = made(answer)
    assert (said["token_type"], said["expires_in"]) == ("Bearer", 3600)
    assert answer.headers["cache-control"] == "no-store"
    assert Api(app, said["access_token"]).get("/device/v1/poll").status_code == 200


def test_a_newer_token_ends_the_one_before(app: FastAPI, device: TestDevice) -> None:
    newer = made(ask_for_token(app, assertion(device.id, device.key)))["access_token"]
    assert device.poll().status_code == 401
    assert Api(app, newer).get("/device/v1/poll").status_code == 200


def test_the_token_is_kept_as_a_hash_with_its_end(app: FastAPI, device: TestDevice) -> None:
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        row = session.scalars(select(Device).where(Device.id == device.id)).one()
    assert row.token_hash is not None
    assert row.token_expires_at is not None
    assert device.api.token is not None
    assert device.api.token.encode() not in row.token_hash
    assert timedelta(0) < row.token_expires_at - datetime.now(UTC) <= timedelta(seconds=3600)


def test_a_token_that_has_expired_is_refused_everywhere(app: FastAPI, device: TestDevice) -> None:
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        session.execute(update(Device).values(token_expires_at=datetime.now(UTC) - timedelta(seconds=1)))
    for path in ("/device/v1/poll", "/tuf/image/timestamp.json"):
        answer = device.api.get(path)
        assert (answer.status_code, answer.json()["code"]) == (401, "device.token-expired")


def test_an_assertion_counts_once_even_when_it_is_shown_many_times_at_once(app: FastAPI, device: TestDevice) -> None:
    signed = assertion(device.id, device.key)
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: ask_for_token(app, signed), range(6)))
    codes = sorted(answer.json().get("code", "made") for answer in answers)
    assert codes == [*["device.assertion-replayed"] * 5, "made"]


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": "https://another.example/token"},
        {"aud": None},
        {"iss": str(uuid4())},
        {"iss": "nobody"},
        {"iss": None},
        {"sub": str(uuid4())},
        {"jti": None},
        {"jti": ""},
        {"jti": "x" * 65},
        {"jti": 7},
        {"jti": "\x00"},
        {"iat": None},
        {"exp": None},
        {"exp": "soon"},
        {"exp": 1e300},
    ],
)
def test_an_assertion_with_a_wrong_claim_is_refused_in_one_way(
    app: FastAPI, device: TestDevice, changes: dict[str, Any]
) -> None:
    answer = ask_for_token(app, assertion(device.id, device.key, **changes))
    assert (answer.status_code, answer.json()["code"]) == (401, "device.assertion")


def test_an_assertion_of_another_key_is_refused_though_it_names_the_device(
    app: FastAPI, fleet: list[TestDevice]
) -> None:
    first, second = fleet
    for key in (second.key, Ed25519PrivateKey.generate()):
        assert ask_for_token(app, assertion(first.id, key)).json()["code"] == "device.assertion"


@pytest.mark.parametrize("header", [{"alg": "none"}, {"alg": "HS256"}, {"alg": "RS256"}, {}, {"alg": None}])
def test_an_assertion_without_a_signature_of_the_key_is_refused(
    app: FastAPI, device: TestDevice, header: dict[str, Any]
) -> None:
    _, claims, signature = assertion(device.id, device.key).split(".")
    head = base64.urlsafe_b64encode(json.dumps(header).encode()).decode().rstrip("=")
    for last in ("", signature):
        assert ask_for_token(app, f"{head}.{claims}.{last}").json()["code"] == "device.assertion"
    # the public key as the secret of an HMAC
    confused = jwt.encode(
        {"iss": str(device.id), "sub": str(device.id), "aud": AUDIENCE, "iat": 0, "exp": 2**40, "jti": "x"},
        device.key.public_key().public_bytes_raw(),
        algorithm="HS256",
    )
    assert ask_for_token(app, confused).json()["code"] == "device.assertion"


def test_an_assertion_may_not_live_long(app: FastAPI, device: TestDevice) -> None:
    now_s = int(time.time())
    answer = ask_for_token(app, assertion(device.id, device.key, iat=now_s, exp=now_s + 121))
    assert (answer.status_code, "120 s" in answer.json()["detail"]) == (401, True)
    assert ask_for_token(app, assertion(device.id, device.key, iat=now_s, exp=now_s + 120)).status_code == 200


@pytest.mark.parametrize("wrong_by_s", [-90_000, -91, 61, 10 * 365 * 86400])
def test_a_device_whose_clock_is_wrong_is_told_the_time_and_gets_in_by_it(
    app: FastAPI, device: TestDevice, wrong_by_s: int
) -> None:
    then_s = int(time.time()) + wrong_by_s
    answer = ask_for_token(app, assertion(device.id, device.key, iat=then_s, exp=then_s + 60))
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (401, "device.clock")
    assert problem["server_time"] == pytest.approx(time.time(), abs=5)
    told_s = int(problem["server_time"])
    signed = assertion(device.id, device.key, iat=told_s, exp=told_s + 60)
    assert ask_for_token(app, signed).status_code == 200


def test_the_time_is_told_to_nobody_who_did_not_sign(app: FastAPI, device: TestDevice) -> None:
    answer = ask_for_token(app, assertion(device.id, Ed25519PrivateKey.generate(), iat=1, exp=2))
    assert "server_time" not in answer.json()


@pytest.mark.parametrize("body", [b"", b"grant_type=client_credentials", b"\xff", b"{}", b"a=b&" * 500, LONG])
def test_a_token_request_that_is_no_form_says_what_to_send(app: FastAPI, body: bytes) -> None:
    answer = Api(app, None).post("/device/v1/token", content=body)
    assert (answer.status_code, "client_assertion" in answer.json()["detail"]) == (422, True)


def test_spent_assertions_are_forgotten_when_they_would_be_too_old_anyway(app: FastAPI, device: TestDevice) -> None:
    database = app.state.database
    past = datetime.now(UTC) - timedelta(hours=1)
    with database.transaction(DEFAULT_PROJECT) as session:
        session.execute(update(SpentAssertion).values(expires_at=past))
    ask_for_token(app, assertion(device.id, device.key))
    with database.transaction(DEFAULT_PROJECT) as session:
        kept = session.scalars(select(SpentAssertion).where(SpentAssertion.device_id == device.id)).all()
        assert [row.expires_at > past for row in kept] == [True]
    upkeep.forget_expired(database)
    with database.transaction(DEFAULT_PROJECT) as session:
        assert session.scalar(select(func.count()).select_from(SpentAssertion)) == 1, "the other device's went too"
