"""A device whose folder was lost: a new key under the old name, with an operator's word; and devices that go."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi import FastAPI
from fleet_calls import TestDevice, ask_for_token, assertion, device_of, enrol, join, made, published
from http_calls import Api
from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError

from sprat_server.db.projects import DEFAULT_PROJECT
from sprat_server.fleet.models import Device, DeviceSlots, RetiredKey
from sprat_shared.protocol.report import Outcome


@pytest.fixture
def device(app: FastAPI, operator: Api, releaser: Api) -> TestDevice:
    """A device of line 3 that runs mnist@1 and has reported so."""
    published(app)
    (made_one,) = join(app, operator, 1)
    rollout = made(releaser.post("/api/v1/rollouts", json={"model": "mnist", "release": 1, "waves": ["100%"]}))
    made(operator.post(f"/api/v1/rollouts/{rollout['id']}/start", json={"reason": "it is time"}))
    made_one.tell(Outcome.COMMITTED)
    return made_one


@pytest.fixture
def token(operator: Api, device: TestDevice) -> str:
    """The one-time token with which another takes its place."""
    text: str = made(operator.post(f"/api/v1/devices/{device.id}/replace", json={}))["token"]
    return text


def test_a_new_key_takes_the_old_ones_place_with_history_group_and_counters(
    app: FastAPI, viewer: Api, device: TestDevice, token: str
) -> None:
    before = made(viewer.get(f"/api/v1/devices/{device.id}"))
    key = Ed25519PrivateKey.generate()
    again = device_of(app, enrol(app, token, device.name, key), device.name, key)
    assert again.id == device.id
    after = made(viewer.get(f"/api/v1/devices/{device.id}"))
    assert (after["group"], after["enrolled_at"]) == (before["group"], before["enrolled_at"])
    assert after["fingerprint"] != before["fingerprint"]
    joined = made(viewer.get("/api/v1/audit", params={"action": "device.enrol", "limit": 1}))["items"][0]
    assert (joined["before"]["key"], joined["after"]["key"]) == (before["fingerprint"], after["fingerprint"])
    assert len(made(viewer.get(f"/api/v1/devices/{device.id}/reports"))["items"]) == 1
    wish = again.wish()
    assert wish is not None
    assert (wish.release, wish.path) == (1, ("mnist/1/full",)), "its folder is empty: the full update"
    again.tell(Outcome.COMMITTED)
    reports = made(viewer.get(f"/api/v1/devices/{device.id}/reports"))["items"]
    assert [report["sequence"] for report in reports] == [2, 1]


def test_the_old_key_is_dead(app: FastAPI, operator: Api, device: TestDevice, token: str) -> None:
    assert device.poll().status_code == 200, "until another has taken its place"
    assert enrol(app, token, device.name).status_code == 201
    assert device.poll().status_code == 401
    assert ask_for_token(app, assertion(device.id, device.key)).status_code == 401
    more = made(operator.post("/api/v1/enrolment-tokens", json={}))["token"]
    for shown in (more, None):
        answer = enrol(app, shown, device.name, device.key)
        assert (answer.status_code, answer.json()["code"]) == (409, "enrolment.key-retired")


@pytest.mark.parametrize("outcome", [Outcome.COMMITTED, Outcome.FAILED])
def test_a_device_replaced_in_the_middle_of_a_rollout_answers_for_its_part_again(
    app: FastAPI, operator: Api, releaser: Api, device: TestDevice, outcome: Outcome
) -> None:
    join(app, operator, 1)
    published(app, base=1)
    plan = {"model": "mnist", "release": 2, "waves": ["100%"], "devices": [str(device.id)]}
    rollout = made(releaser.post("/api/v1/rollouts", json=plan))
    made(operator.post(f"/api/v1/rollouts/{rollout['id']}/start", json={"reason": "it is time"}))
    text = made(operator.post(f"/api/v1/devices/{device.id}/replace", json={}))["token"]
    key = Ed25519PrivateKey.generate()
    again = device_of(app, enrol(app, text, device.name, key), device.name, key)
    wish = again.wish()
    assert wish is not None
    assert (wish.release, wish.path) == (2, ("mnist/2/full",))
    again.tell(outcome)
    state = made(operator.get(f"/api/v1/rollouts/{rollout['id']}"))["state"]
    assert state == {Outcome.COMMITTED: "succeeded", Outcome.FAILED: "halted"}[outcome]


def test_the_token_is_for_one_device_once(app: FastAPI, device: TestDevice, token: str) -> None:
    other = enrol(app, token, "press-9")
    assert (other.status_code, other.json()["code"]) == (409, "enrolment.other-name")
    key = Ed25519PrivateKey.generate()
    assert enrol(app, token, device.name, key).status_code == 201
    assert enrol(app, token, device.name, key).status_code == 201, "the same device, whose answer was lost"
    assert enrol(app, token, device.name).json()["code"] == "enrolment.token"


def test_without_an_operators_word_a_new_key_does_not_get_an_old_name(
    app: FastAPI, operator: Api, device: TestDevice
) -> None:
    plain = made(operator.post("/api/v1/enrolment-tokens", json={}))["token"]
    answer = enrol(app, plain, device.name)
    assert (answer.status_code, answer.json()["code"]) == (409, "enrolment.name-taken")


def test_a_device_that_was_revoked_is_not_replaced(operator: Api, app: FastAPI, device: TestDevice, token: str) -> None:
    made(operator.post(f"/api/v1/devices/{device.id}/revoke", json={"reason": "stolen"}))
    assert enrol(app, token, device.name).json()["code"] == "device.revoked"
    answer = operator.post(f"/api/v1/devices/{device.id}/replace", json={})
    assert (answer.status_code, answer.json()["code"]) == (409, "device.is-revoked")


def test_the_database_changes_a_key_by_a_replacement_only_and_brings_none_back(
    app: FastAPI, device: TestDevice, token: str
) -> None:
    database = app.state.database
    old = device.key.public_key().public_bytes_raw()
    with pytest.raises(IntegrityError, match="cannot change"), database.transaction(DEFAULT_PROJECT) as session:
        session.execute(update(Device).values(public_key=bytes(32)))
    enrol(app, token, device.name)
    with pytest.raises(IntegrityError, match="was retired"), database.transaction(DEFAULT_PROJECT) as session:
        session.execute(update(Device).values(public_key=old))
    with pytest.raises(IntegrityError, match="are facts"), database.transaction(DEFAULT_PROJECT) as session:
        session.execute(update(RetiredKey).values(public_key=bytes(32)))


def test_a_decommissioned_device_is_refused_holds_nothing_and_leaves_its_name(
    app: FastAPI, operator: Api, viewer: Api, device: TestDevice
) -> None:
    gone = made(operator.post(f"/api/v1/devices/{device.id}/decommission", json={"reason": "scrapped"}))
    assert gone["revoked_at"] is not None
    assert [model["active"] for model in gone["models"]] == [None], "what it should have run is history"
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        assert session.scalar(select(func.count()).select_from(DeviceSlots)) == 0
    assert device.poll().json()["code"] == "device.revoked"
    newest = made(viewer.get("/api/v1/audit"))["items"][0]
    assert (newest["action"], newest["after"]["reason"]) == ("device.decommission", "scrapped")
    assert newest["before"]["key"].startswith("SHA256:")
    plain = made(operator.post("/api/v1/enrolment-tokens", json={}))["token"]
    assert enrol(app, plain, device.name).status_code == 201
