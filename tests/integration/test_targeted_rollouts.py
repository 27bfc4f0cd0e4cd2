"""Rollouts to the devices that a filter or a saved group means when they start, and waves that name labels."""

import pytest
from fastapi import FastAPI
from fleet_calls import TestDevice, join, made, published
from http_calls import Api
from rollout_calls import parts_of

from sprat_shared.protocol.report import Outcome

URL = "/api/v1/rollouts"


@pytest.fixture
def fleet(app: FastAPI, operator: Api) -> list[TestDevice]:
    """Four devices, the first two of them in the lab, the first a canary."""
    published(app)
    devices = join(app, operator, 4)
    for device in devices[:2]:
        label(operator, device, site="lab")
    label(operator, devices[0], ring="canary")
    return devices


def label(operator: Api, device: TestDevice, **labels: str) -> None:
    made(operator.request("PATCH", f"/api/v1/devices/{device.id}/labels", json=labels))


def rollout(releaser: Api, **asked: object) -> dict:  # type: ignore[type-arg]
    return made(releaser.post(URL, json={"model": "mnist", "release": 1, "waves": ["100%"], **asked}))


def start(operator: Api, made_: dict) -> dict:  # type: ignore[type-arg]
    return made(operator.post(f"{URL}/{made_['id']}/start", json={"reason": "go"}))


def exposed(viewer: Api, shown: dict) -> set[str]:  # type: ignore[type-arg]
    return {part["name"] for part in parts_of(viewer, shown["id"]) if part["exposed_by"] is not None}


def test_a_filter_says_who_gets_it_when_it_starts(releaser: Api, operator: Api, fleet: list[TestDevice]) -> None:
    draft = rollout(releaser, where='labels.site = "lab"')
    label(operator, fleet[2], site="lab")  # after it was drafted
    assert exposed(releaser, start(operator, draft)) == {device.name for device in fleet[:3]}


def test_a_saved_group_says_who_gets_it_and_later_devices_do_not(
    app: FastAPI, releaser: Api, operator: Api, viewer: Api, fleet: list[TestDevice]
) -> None:
    made(operator.post("/api/v1/groups", json={"name": "lab", "where": 'labels.site = "lab"'}))
    draft = rollout(releaser, group="lab")
    assert exposed(releaser, start(operator, draft)) == {device.name for device in fleet[:2]}
    for device in fleet[:2]:
        device.tell(Outcome.COMMITTED)
    assert made(viewer.get(f"{URL}/{draft['id']}"))["state"] == "succeeded"
    late = join(app, operator, 1)[0]
    assert late.wish() is None  # the whole fleet was never meant


def test_waves_name_labels_and_filters(releaser: Api, operator: Api, viewer: Api, fleet: list[TestDevice]) -> None:
    draft = rollout(releaser, waves=["ring=canary", 'where:labels.site = "lab"', "100%"])
    shown = start(operator, draft)
    assert exposed(releaser, shown) == {fleet[0].name}
    fleet[0].tell(Outcome.COMMITTED)
    assert exposed(releaser, made(viewer.get(f"{URL}/{draft['id']}"))) == {device.name for device in fleet[:2]}
    fleet[1].tell(Outcome.COMMITTED)
    assert exposed(releaser, made(viewer.get(f"{URL}/{draft['id']}"))) == {device.name for device in fleet}


def test_a_plan_counts_who_is_meant(releaser: Api, fleet: list[TestDevice]) -> None:
    asked = {"model": "mnist", "release": 1, "where": f'labels.site = "lab" or name = "{fleet[3].name}"'}
    assert made(releaser.post(f"{URL}/plan", json=asked))["devices"] == 3


@pytest.mark.usefixtures("fleet")
@pytest.mark.parametrize(
    ("asked", "status", "code"),
    [
        ({"where": "labls.site = 1"}, 422, "filter.bad"),
        ({"where": "failed", "group": "x"}, 422, "request.invalid"),
        ({"group": "none-such"}, 404, "group.unknown"),
        ({"waves": ["where:labls.a = 1", "100%"]}, 422, "filter.bad"),
    ],
)
def test_who_cannot_be_meant_is_said_before_anything_is_made(
    releaser: Api, asked: dict[str, object], status: int, code: str
) -> None:
    answer = releaser.post(URL, json={"model": "mnist", "release": 1, "waves": ["100%"], **asked})
    assert (answer.status_code, answer.json()["code"]) == (status, code)


@pytest.mark.usefixtures("fleet")
def test_a_rollout_that_means_nobody_does_not_start(releaser: Api, operator: Api) -> None:
    draft = rollout(releaser, where='labels.site = "moon"')
    answer = operator.post(f"{URL}/{draft['id']}/start", json={"reason": "go"})
    assert (answer.status_code, answer.json()["code"]) == (409, "rollout.no-devices")
