"""How a device joins the fleet, and how it is refused."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi import FastAPI
from fleet_calls import ask_for_token, assertion, enrol, enrol_request, join, made, published
from http_calls import Api
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from tuf.api.metadata import Metadata, Root

from sprat_server.db.projects import DEFAULT_PROJECT
from sprat_server.fleet.models import Device, EnrolmentToken
from sprat_shared.protocol.enrol import EnrolAnswer
from sprat_shared.protocol.report import Outcome, format_signature


@pytest.fixture
def token(app: FastAPI, operator: Api) -> str:
    """A token with which two devices may join."""
    published(app)
    text: str = made(operator.post("/api/v1/enrolment-tokens", json={"uses": 2, "group": "line-3"}))["token"]
    return text


def test_a_device_gets_an_identity_and_the_root_of_trust(app: FastAPI, viewer: Api, token: str) -> None:
    answer = EnrolAnswer.from_json(enrol(app, token, "press-7").content)
    assert isinstance(Metadata[Root].from_bytes(answer.image_root).signed, Root)
    shown = made(viewer.get(f"/api/v1/devices/{answer.device}"))
    assert (shown["name"], shown["group"], shown["attributes"]) == ("press-7", "line-3", {"machine": "x86_64"})
    assert made(viewer.get("/api/v1/audit"))["items"][0]["action"] == "device.enrol"


def test_no_secret_is_given_and_the_token_is_kept_as_a_hash_only(app: FastAPI, token: str) -> None:
    answer = enrol(app, token, "press-7")
    assert set(answer.json()) == {"device", "image_root", "director_root", "poll_interval_s", "report_sequence"}
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        kept = session.scalars(select(EnrolmentToken.token_hash)).all()
    assert all(len(one) == 32 and one != token.encode() for one in kept)


@pytest.mark.parametrize("signed_by", ["another", "nobody"])
def test_a_key_that_did_not_sign_the_request_does_not_join(app: FastAPI, token: str, signed_by: str) -> None:
    body = enrol_request("press-7", Ed25519PrivateKey.generate()).to_json()
    signature = Ed25519PrivateKey.generate().sign(body)
    headers = {"Sprat-Signature": format_signature(signature)} if signed_by == "another" else {}
    answer = Api(app, token).post("/device/v1/enrol", content=body, headers=headers)
    assert answer.status_code == {"another": 403, "nobody": 422}[signed_by]
    assert enrol(app, token, "press-7").status_code == 201


def test_a_token_lets_in_as_many_devices_as_it_says(app: FastAPI, token: str) -> None:
    assert [enrol(app, token, f"press-{i}").status_code for i in range(3)] == [201, 201, 401]
    assert "as often as allowed" in enrol(app, token, "press-9").json()["detail"]


def test_an_expired_token_lets_nobody_in(app: FastAPI, token: str) -> None:
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        past = datetime.now(UTC) - timedelta(seconds=1)
        session.execute(update(EnrolmentToken).values(created_at=past - timedelta(days=1), expires_at=past))
    answer = enrol(app, token, "press-7")
    assert (answer.status_code, answer.json()["code"]) == (401, "enrolment.token")
    assert "expired" in answer.json()["detail"]


@pytest.mark.parametrize("wrong", ["sprate_nonsense", "x", "sprat_0_0"])
def test_an_unknown_token_lets_nobody_in(app: FastAPI, wrong: str) -> None:
    published(app)
    assert enrol(app, wrong, "press-7").json()["code"] == "enrolment.token"


def test_an_operators_token_does_not_enrol_a_device(app: FastAPI, admin: Api) -> None:
    published(app)
    assert admin.token is not None
    assert enrol(app, admin.token, "press-7").status_code == 401


def test_two_devices_cannot_have_one_name(app: FastAPI, token: str) -> None:
    enrol(app, token, "press-7")
    answer = enrol(app, token, "press-7")
    assert (answer.status_code, answer.json()["code"]) == (409, "enrolment.name-taken")
    assert enrol(app, token, "press-8").status_code == 201, "the refused attempt does not use the token up"


def test_a_device_whose_answer_was_lost_asks_again_and_counts_once(app: FastAPI, token: str) -> None:
    key = Ed25519PrivateKey.generate()
    first = enrol(app, token, "press-7", key)
    second = enrol(app, token, "press-7", key)
    assert first.content == second.content
    assert enrol(app, token, "press-8").status_code == 201


def test_a_device_that_lost_its_identity_but_not_its_key_is_itself_again(
    app: FastAPI, operator: Api, releaser: Api
) -> None:
    published(app)
    (device,) = join(app, operator, 1)
    whole = {"model": "mnist", "release": 1, "waves": ["100%"]}
    rollout = made(releaser.post("/api/v1/rollouts", json=whole))
    made(operator.post(f"/api/v1/rollouts/{rollout['id']}/start", json={"reason": "it is time"}))
    device.tell(Outcome.COMMITTED)
    token = made(operator.post("/api/v1/enrolment-tokens", json={"uses": 1}))["token"]
    again = EnrolAnswer.from_json(enrol(app, token, device.name, device.key).content)
    assert (again.device, again.report_sequence) == (device.id, 1)
    assert enrol(app, token, "press-9").status_code == 201, "it did not use the token up"


def test_a_key_does_not_join_under_a_second_name(app: FastAPI, token: str) -> None:
    key = Ed25519PrivateKey.generate()
    assert enrol(app, token, "press-7", key).status_code == 201
    answer = enrol(app, token, "press-8", key)
    assert (answer.status_code, answer.json()["code"]) == (409, "enrolment.key-known")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"),
        (b"[]", "expected a JSON object"),
        (b'{"name": "", "public_key": "", "agent": "0", "protocol": 1, "attributes": {}}', "has 32 bytes, got 0"),
        (b'{"name": "a", "public_key": "!", "agent": "0", "protocol": 1, "attributes": {}}', "not base64"),
    ],
)
def test_a_request_that_cannot_be_read_says_what_is_wrong(app: FastAPI, token: str, body: bytes, words: str) -> None:
    headers = {"Sprat-Signature": format_signature(bytes(64))}
    answer = Api(app, token).post("/device/v1/enrol", content=body, headers=headers)
    assert answer.status_code == 422
    assert words in answer.json()["detail"]


def test_an_enrolment_token_only_wears_out(app: FastAPI, token: str) -> None:
    enrol(app, token, "press-7")
    for change in ({"used": 0}, {"uses": 100}, {"token_hash": bytes(32)}):
        with (
            pytest.raises(IntegrityError, match="wears out"),
            app.state.database.transaction(DEFAULT_PROJECT) as session,
        ):
            session.execute(update(EnrolmentToken).values(**change))


def test_a_revoked_device_is_refused_and_its_name_is_free_again(app: FastAPI, operator: Api) -> None:
    published(app)
    device, other = join(app, operator, 2)
    revoked = made(operator.post(f"/api/v1/devices/{device.id}/revoke", json={"reason": "stolen"}))
    assert revoked["revoked_at"] is not None
    refusals = [device.api.get(path) for path in ("/device/v1/poll", "/tuf/image/timestamp.json")]
    refusals.append(ask_for_token(app, assertion(device.id, device.key)))
    refusals.append(enrol(app, None, device.name, device.key))
    for answer in refusals:
        assert (answer.status_code, answer.json()["code"]) == (401, "device.revoked")
    assert other.poll().status_code == 200
    token = made(operator.post("/api/v1/enrolment-tokens", json={}))["token"]
    assert enrol(app, token, device.name).status_code == 201


def test_the_database_keeps_a_devices_identity_and_its_revocation(app: FastAPI, operator: Api) -> None:
    published(app)
    (device,) = join(app, operator, 1)
    made(operator.post(f"/api/v1/devices/{device.id}/revoke", json={"reason": "stolen"}))
    for change in ({"public_key": bytes(32)}, {"revoked_at": None}):
        with (
            pytest.raises(IntegrityError, match=r"cannot change|stays so"),
            app.state.database.transaction(DEFAULT_PROJECT) as session,
        ):
            session.execute(update(Device).values(**change))
