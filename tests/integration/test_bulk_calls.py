"""Many devices at once: all or none, and no others than were seen."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi import FastAPI
from fleet_calls import TestDevice, enrol, join, made, published
from http_calls import Api
from rollout_calls import parts_of

from sprat_shared.protocol.report import Outcome


@pytest.fixture
def fleet(app: FastAPI, operator: Api) -> list[TestDevice]:
    """Four devices, two of them of the hall that is to be closed."""
    published(app)
    published(app, base=1)
    devices = join(app, operator, 4)
    for device in devices[:2]:
        made(operator.patch(f"/api/v1/devices/{device.id}/labels", json={"site": "hall-2"}))
    return devices


def asked(count: int) -> dict[str, object]:
    return {"where": 'labels.site = "hall-2"', "devices": count, "reason": "hall 2 is closed"}


@pytest.mark.parametrize("verb", ["revoke", "decommission"])
def test_many_leave_at_once_and_rollouts_wait_for_none_of_them(
    releaser: Api, operator: Api, fleet: list[TestDevice], verb: str
) -> None:
    rollout = made(releaser.post("/api/v1/rollouts", json={"model": "mnist", "release": 2, "waves": ["100%"]}))["id"]
    made(operator.post(f"/api/v1/rollouts/{rollout}/start", json={"reason": "now"}))
    for device in fleet[2:]:
        device.tell(Outcome.COMMITTED)
    assert made(operator.post(f"/api/v1/devices/{verb}", json=asked(2))) == {"devices": 2}
    assert made(operator.get(f"/api/v1/rollouts/{rollout}"))["state"] == "succeeded"
    assert [part["state"] for part in parts_of(operator, rollout)].count("left") == 2
    assert [device.poll().status_code for device in fleet] == [401, 401, 200, 200]
    records = made(operator.get("/api/v1/audit", params={"action": f"device.{verb}"}))["items"]
    assert {record["subject"] for record in records} == {f"device:{device.id}" for device in fleet[:2]}
    assert {record["after"]["reason"] for record in records} == {"hall 2 is closed"}


def test_where_more_are_meant_than_were_seen_none_leaves(operator: Api, fleet: list[TestDevice]) -> None:
    made(operator.patch(f"/api/v1/devices/{fleet[2].id}/labels", json={"site": "hall-2"}))
    refused = operator.post("/api/v1/devices/revoke", json=asked(2))
    assert (refused.status_code, refused.json()["code"]) == (409, "device.other-count")
    assert [device.poll().status_code for device in fleet] == [200] * 4


def test_devices_that_wait_are_accepted_all_or_none(app: FastAPI, operator: Api, fleet: list[TestDevice]) -> None:
    for name in ("press-1", "press-2", fleet[0].name):
        assert enrol(app, None, name, Ed25519PrivateKey.generate()).status_code == 202
    rows = made(operator.get("/api/v1/enrolment-requests", params={"sort": "created"}))["items"]
    url, ids = "/api/v1/enrolment-requests/accept", [row["id"] for row in rows]
    taken = operator.post(url, json={"requests": ids, "group": "line-a"})
    assert taken.status_code == 409
    assert len(made(operator.get("/api/v1/enrolment-requests"))["items"]) == 3
    joined = made_list(operator, url, ids[:2])
    assert [(one["name"], one["group"]) for one in joined] == [("press-1", "line-a"), ("press-2", "line-a")]


def made_list(operator: Api, url: str, ids: list[str]) -> list[dict[str, str]]:
    answer = operator.post(url, json={"requests": ids, "group": "line-a"})
    assert answer.status_code == 200, answer.text
    devices: list[dict[str, str]] = answer.json()
    return devices
