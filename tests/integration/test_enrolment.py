"""How a device joins the fleet, and how it is refused."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi import FastAPI
from fleet_calls import enrol, join, made, published
from http_calls import Api
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from tuf.api.metadata import Metadata, Root

from sprat_server.fleet.models import Device, EnrolmentToken
from sprat_shared.protocol.enrol import EnrolAnswer
from sprat_shared.protocol.report import Outcome


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


def test_secrets_are_kept_as_hashes_only(app: FastAPI, token: str) -> None:
    device_token = EnrolAnswer.from_json(enrol(app, token, "press-7").content).token
    with app.state.database.transaction() as session:
        kept = [*session.scalars(select(Device.token_hash)), *session.scalars(select(EnrolmentToken.token_hash))]
    assert all(len(one) == 32 for one in kept)
    assert not {token.encode(), device_token.encode()} & set(kept)


def test_a_token_lets_in_as_many_devices_as_it_says(app: FastAPI, token: str) -> None:
    assert [enrol(app, token, f"press-{i}").status_code for i in range(3)] == [201, 201, 401]
    assert "as often as allowed" in enrol(app, token, "press-9").json()["detail"]


def test_an_expired_token_lets_nobody_in(app: FastAPI, token: str) -> None:
    with app.state.database.transaction() as session:
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
    first = EnrolAnswer.from_json(enrol(app, token, "press-7", key).content)
    second = EnrolAnswer.from_json(enrol(app, token, "press-7", key).content)
    assert first.device == second.device
    assert first.token != second.token
    assert Api(app, first.token).get("/device/v1/poll").status_code == 401
    assert Api(app, second.token).get("/device/v1/poll").status_code == 200
    assert enrol(app, token, "press-8").status_code == 201


def test_a_key_that_is_at_work_is_not_enrolled_again(app: FastAPI, operator: Api, releaser: Api) -> None:
    published(app)
    (device,) = join(app, operator, 1)
    whole = {"model": "mnist", "release": 1, "waves": ["100%"]}
    rollout = made(releaser.post("/api/v1/rollouts", json=whole))
    made(operator.post(f"/api/v1/rollouts/{rollout['id']}/start", json={}))
    device.tell(Outcome.COMMITTED)
    token = made(operator.post("/api/v1/enrolment-tokens", json={"uses": 2}))["token"]
    answer = enrol(app, token, device.name, device.key)
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
    answer = Api(app, token).post("/device/v1/enrol", content=body)
    assert answer.status_code == 422
    assert words in answer.json()["detail"]


def test_an_enrolment_token_only_wears_out(app: FastAPI, token: str) -> None:
    enrol(app, token, "press-7")
    for change in ({"used": 0}, {"uses": 100}, {"token_hash": bytes(32)}):
        with pytest.raises(IntegrityError, match="wears out"), app.state.database.transaction() as session:
            session.execute(update(EnrolmentToken).values(**change))


def test_a_revoked_device_is_refused_and_its_name_is_free_again(app: FastAPI, operator: Api) -> None:
    published(app)
    device, other = join(app, operator, 2)
    revoked = made(operator.post(f"/api/v1/devices/{device.id}/revoke", json={"reason": "stolen"}))
    assert revoked["revoked_at"] is not None
    for path in ("/device/v1/poll", "/tuf/image/timestamp.json"):
        answer = device.api.get(path)
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
            app.state.database.transaction() as session,
        ):
            session.execute(update(Device).values(**change))
