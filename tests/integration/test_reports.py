"""Reports: signed by the device's key, each taken once, kept as they came."""

from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi import FastAPI
from fleet_calls import TestDevice, Wished, join, made, published
from http_calls import Api
from sqlalchemy import delete, select, update
from sqlalchemy.exc import IntegrityError

from sprat_server.db.projects import DEFAULT_PROJECT
from sprat_server.fleet.models import Assignment, Device, DeviceReport, DeviceSlots
from sprat_shared.protocol.holdout_report import HoldoutReport
from sprat_shared.protocol.report import Evidence, Outcome, Report, TrustReport, format_signature
from sprat_shared.protocol.watched import Watched


@pytest.fixture
def fleet(app: FastAPI, operator: Api, releaser: Api) -> list[TestDevice]:
    """Two devices that should run mnist@1."""
    published(app)
    devices = join(app, operator, 2)
    body = {"model": "mnist", "release": 1, "waves": ["100%"]}
    rollout = made(releaser.post("/api/v1/rollouts", json=body))
    made(operator.post(f"/api/v1/rollouts/{rollout['id']}/start", json={"reason": "it is time"}))
    return devices


@pytest.fixture
def device(fleet: list[TestDevice]) -> TestDevice:
    """One of them."""
    return fleet[0]


def wished(device: TestDevice) -> Wished:
    wish = device.wish()
    assert wish is not None
    return wish


def test_a_signed_report_is_kept_as_it_came(app: FastAPI, viewer: Api, device: TestDevice) -> None:
    report = device.report(wished(device), Outcome.COMMITTED)
    assert device.send(report).status_code == 204
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        row = session.scalars(select(DeviceReport)).one()
    assert row.body == report.to_json()
    device.key.public_key().verify(row.signature, row.body)
    (shown,) = made(viewer.get(f"/api/v1/devices/{device.id}/reports"))["items"]
    assert (shown["outcome"], shown["serving_release"], shown["received_bytes"]) == ("committed", 1, 900)
    (model,) = made(viewer.get(f"/api/v1/devices/{device.id}"))["models"]
    assert (model["model"], model["assigned"], model["active"]) == ("mnist", 1, 1)


def test_a_report_signed_by_another_key_is_refused(device: TestDevice) -> None:
    answer = device.send(device.report(wished(device), Outcome.COMMITTED), key=Ed25519PrivateKey.generate())
    assert (answer.status_code, answer.json()["code"]) == (403, "report.bad-signature")


def test_a_report_that_was_changed_on_the_way_is_refused(device: TestDevice) -> None:
    report = device.report(wished(device), Outcome.FAILED)
    signature = device.key.sign(report.to_json())
    changed = report.to_json().replace(b'"failed"', b'"committed"')
    headers = {"Sprat-Signature": format_signature(signature)}
    answer = device.api.post("/device/v1/reports", content=changed, headers=headers)
    assert answer.json()["code"] == "report.bad-signature"


@pytest.mark.parametrize("header", [None, "", "!!", "AAAA"])
def test_a_report_without_a_signature_is_refused(device: TestDevice, header: str | None) -> None:
    body = device.report(wished(device), Outcome.COMMITTED).to_json()
    headers = {} if header is None else {"Sprat-Signature": header}
    answer = device.api.post("/device/v1/reports", content=body, headers=headers)
    assert answer.status_code == 422
    assert "64 bytes" in answer.json()["detail"]


def test_a_replayed_report_is_refused(device: TestDevice) -> None:
    report = device.report(wished(device), Outcome.COMMITTED)
    assert device.send(report).status_code == 204
    answer = device.send(report)
    assert (answer.status_code, answer.json()["code"]) == (409, "report.replayed")


def test_an_older_report_after_a_newer_one_is_refused(device: TestDevice) -> None:
    wish = wished(device)
    older, newer = device.report(wish, Outcome.FAILED), device.report(wish, Outcome.COMMITTED)
    assert device.send(newer).status_code == 204
    assert device.send(older).json()["code"] == "report.replayed"


def test_a_device_cannot_report_for_another(fleet: list[TestDevice]) -> None:
    first, second = fleet
    report = second.report(wished(second), Outcome.COMMITTED)
    answer = first.send(report)
    assert (answer.status_code, answer.json()["code"]) == (403, "report.other-device")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"assignment": 99}, "report.assignment"),
        ({"model": "other"}, "report.unknown-release"),
        ({"release": 7}, "report.unknown-release"),
        ({"serving_release": 7}, "report.unknown-release"),
    ],
)
def test_a_report_about_what_was_never_assigned_is_refused(
    device: TestDevice, changes: dict[str, Any], code: str
) -> None:
    answer = device.send(device.report(wished(device), Outcome.COMMITTED, **changes))
    assert (answer.status_code, answer.json()["code"]) == (422, code)


def test_a_report_about_an_assignment_of_another_model_is_refused(app: FastAPI, device: TestDevice) -> None:
    published(app, model="pcb")
    answer = device.send(device.report(wished(device), Outcome.COMMITTED, model="pcb"))
    assert answer.json()["code"] == "report.assignment"


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[1]", b'{"kind": "other"}', b'{"kind": "\\u0000"}', b'{"a": "\\ud800"}']
)
def test_a_report_that_cannot_be_read_says_what_is_wrong(device: TestDevice, body: bytes) -> None:
    headers = {"Sprat-Signature": format_signature(device.key.sign(body))}
    answer = device.api.post("/device/v1/reports", content=body, headers=headers)
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("report")


def test_an_operators_token_does_not_report(admin: Api, device: TestDevice) -> None:
    as_admin = TestDevice(admin, device.id, device.name, device.key, device.answer)
    assert as_admin.send(device.report(wished(device), Outcome.COMMITTED)).status_code == 401


def test_what_a_device_does_not_believe_is_kept_and_shown_among_its_reports(
    app: FastAPI, viewer: Api, device: TestDevice
) -> None:
    device.tell(Outcome.COMMITTED)
    doubt = TrustReport(
        device=device.id,
        sequence=device.sequence + 1,
        error_code="trust.rollback",
        error_detail="timestamp 3 after timestamp 7",
        agent="0.1.0",
    )
    assert device.send(doubt).status_code == 204
    shown, committed = made(viewer.get(f"/api/v1/devices/{device.id}/reports"))["items"]
    assert (shown["kind"], shown["error_code"], shown["assignment"]) == ("trust", "trust.rollback", None)
    assert (committed["kind"], committed["assignment"]) == ("assignment", 1)
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        slots = session.scalars(select(DeviceSlots)).one()
    assert slots.active == 1, "what it serves is as before"
    answer = device.send(doubt)
    assert (answer.status_code, answer.json()["code"]) == (409, "report.replayed")
    assert device.send(replace(doubt, sequence=9), key=Ed25519PrivateKey.generate()).status_code == 403
    assert device.send(replace(doubt, sequence=9, device=UUID(int=7))).status_code == 403


def test_what_a_device_says_of_its_holdout_is_kept_and_shown_among_its_reports(viewer: Api, device: TestDevice) -> None:
    device.tell(Outcome.COMMITTED)
    drift = HoldoutReport(
        device=device.id,
        sequence=device.sequence + 1,
        model="mnist",
        release=1,
        samples=5,
        added=9,
        classes=((3, 4), (1, 1)),
        others=0,
        confidences=(0, 0, 0, 0, 0, 0, 0, 0, 2, 3),
        correct=(0, 0, 0, 0, 0, 0, 0, 0, 1, 3),
        agent="0.1.0",
    )
    assert device.send(replace(drift, model="other")).json()["code"] == "report.unknown-release"
    assert device.send(replace(drift, release=9)).json()["code"] == "report.unknown-release"
    assert device.send(replace(drift, confidences=(5,) * 10)).status_code == 422
    assert device.send(drift).status_code == 204
    shown = made(viewer.get(f"/api/v1/devices/{device.id}/reports"))["items"][0]
    assert (shown["kind"], shown["model"], shown["assignment"]) == ("holdout", "mnist", None)
    assert (shown["samples"], shown["classes"], shown["correct"][-2:]) == (5, [[3, 4], [1, 1]], [1, 3])
    assert device.send(drift).json()["code"] == "report.replayed"


def test_what_validation_shadow_and_trial_saw_is_shown_as_it_was_signed(viewer: Api, device: TestDevice) -> None:
    evidence = Evidence(
        samples=0,
        old_correct=None,
        new_correct=0,
        only_old=0,
        only_new=0,
        p_worse=1.0,
        old_latency_s=0.01,
        new_latency_s=0.02,
        mode="unlabelled",
        compared=100,
        agreed=97,
        max_drop=0.08,
        shadow=Watched(seconds=60.0, requests=30, compared=30, agreed=29, dropped=2),
    )
    device.tell(Outcome.COMMITTED, evidence=evidence)
    shown = made(viewer.get(f"/api/v1/devices/{device.id}/reports"))["items"][0]
    assert shown["evidence"] == evidence.as_json()
    assert "trial" not in shown["evidence"], "what is not known is not sent"


def test_slots_follow_what_the_device_says_it_serves(app: FastAPI, device: TestDevice) -> None:
    device.tell(Outcome.COMMITTED)
    second = published(app, base=1)
    wish = wished(device)
    serving = {"serving_release": 2, "serving_weights": second.weights_digest}
    assert device.send(device.report(wish, Outcome.COMMITTED, **serving)).status_code == 204
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        slots = session.scalars(select(DeviceSlots)).one()
    assert (slots.active, slots.previous, slots.weights) == (2, 1, second.weights_digest)


def test_the_database_refuses_changes_of_reports_and_assignments_and_falling_counters(
    app: FastAPI, device: TestDevice
) -> None:
    device.tell(Outcome.COMMITTED)
    database = app.state.database
    for statement in (
        update(DeviceReport).values(body=b"{}"),
        delete(DeviceReport),
        update(Assignment).values(number=1),
        delete(Assignment),
        update(Device).values(assignment_counter=0),
        update(Device).values(report_sequence=0),
        delete(Device),
    ):
        with (
            pytest.raises(IntegrityError, match=r"are facts|cannot fall"),
            database.transaction(DEFAULT_PROJECT) as session,
        ):
            session.execute(statement)


@pytest.mark.parametrize("counter", [1, 2, 0])
def test_the_database_refuses_an_assignment_that_is_not_newer(app: FastAPI, device: TestDevice, counter: int) -> None:
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        given = session.scalars(select(Assignment).where(Assignment.device_id == device.id)).one()
    stale = Assignment(device_id=device.id, counter=counter, model_id=given.model_id, number=1, reason="rollout")
    refused = pytest.raises(IntegrityError, match=r"not newer|counter_is_positive")
    with refused, app.state.database.transaction(DEFAULT_PROJECT) as session:
        session.add(stale)


def test_a_report_for_a_device_that_does_not_exist_is_refused(device: TestDevice) -> None:
    report: Report = device.report(wished(device), Outcome.COMMITTED, device=UUID(int=7))
    assert device.send(report).status_code == 403
