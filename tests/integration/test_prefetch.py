"""A draft's release is fetched ahead: devices say when they have it, and no wave counts that as anything."""

from typing import Any

import pytest
from fastapi import FastAPI
from fleet_calls import TestDevice, join, made, published
from http_calls import Api
from rollout_calls import parts_of
from sqlalchemy import select

from sprat_server.db.projects import DEFAULT_PROJECT
from sprat_server.fleet.models import DeviceSlots
from sprat_shared.protocol.report import Outcome


@pytest.fixture
def devices(app: FastAPI, operator: Api, releaser: Api) -> list[TestDevice]:
    """Three devices that run release 1 of two."""
    published(app)
    joined = join(app, operator, 3)
    rollout = draft(releaser, 1, waves=("100%",))
    move(operator, rollout, "start")
    for device in joined:
        device.tell(Outcome.COMMITTED)
    published(app, base=1)
    return joined


def draft(releaser: Api, release: int, *cohort: TestDevice, waves: tuple[str, ...] = ("1", "100%")) -> str:
    named = [str(device.id) for device in cohort] or None
    body = {"model": "mnist", "release": release, "waves": list(waves), "devices": named}
    rollout: str = made(releaser.post("/api/v1/rollouts", json=body))["id"]
    return rollout


def move(operator: Api, rollout: str, verb: str) -> dict[str, Any]:
    return made(operator.post(f"/api/v1/rollouts/{rollout}/{verb}", json={"reason": "because"}))


def shown(operator: Api, rollout: str) -> dict[str, Any]:
    return made(operator.get(f"/api/v1/rollouts/{rollout}"))


def ready(device: TestDevice) -> None:
    device.tell(Outcome.READY, serving_release=1, error_code=None, error_detail=None)


def assigned(device: TestDevice) -> tuple[int, bool] | None:
    wish = device.wish()
    return None if wish is None else (wish.release, wish.assigned.prefetch)


def test_the_cohort_is_assigned_the_release_to_have_at_hand(
    operator: Api, releaser: Api, devices: list[TestDevice]
) -> None:
    first, second, other = devices
    rollout = draft(releaser, 2, first, second)
    view = move(operator, rollout, "prefetch")
    assert (view["state"], view["prefetched"], view["ready"], view["exposed"]) == ("draft", 2, 0, 0)
    assert [assigned(device) for device in (first, second, other)] == [(2, True), (2, True), (1, False)]
    shown_device = made(operator.get(f"/api/v1/devices/{first.id}"))["models"][0]
    assert (shown_device["assigned"], shown_device["prefetch"], shown_device["active"]) == (2, True, 1)


def test_who_is_ready_is_shown_and_moves_neither_waves_nor_slots(
    app: FastAPI, operator: Api, releaser: Api, devices: list[TestDevice]
) -> None:
    rollout = draft(releaser, 2)
    assert move(operator, rollout, "prefetch")["prefetched"] == 3
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        before = [(row.active, row.outcome, row.reported_at) for row in session.scalars(select(DeviceSlots))]
    ready(devices[0])
    devices[1].tell(Outcome.FAILED, serving_release=1)
    view = shown(operator, rollout)
    assert (view["state"], view["ready"], view["committed"], view["failed"]) == ("draft", 1, 0, 0)
    states = {part["device"]: (part["state"], part["prefetch"]) for part in parts_of(operator, rollout)}
    assert [states[str(device.id)] for device in devices] == [
        ("waiting", "ready"),
        ("waiting", "failed"),
        ("waiting", "asked"),
    ]
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        rows = {row.device_id: row for row in session.scalars(select(DeviceSlots))}
        assert rows[devices[0].id].outcome == "committed"
        assert {row.active for row in rows.values()} == {1}
        assert (rows[devices[0].id].active, rows[devices[0].id].outcome, rows[devices[0].id].reported_at) in before
    reports = made(operator.get(f"/api/v1/devices/{devices[0].id}/reports"))["items"]
    assert reports[0]["outcome"] == "ready"


def test_asked_again_it_reaches_those_who_failed_or_joined_since(
    app: FastAPI, operator: Api, releaser: Api, devices: list[TestDevice]
) -> None:
    rollout = draft(releaser, 2)
    move(operator, rollout, "prefetch")
    ready(devices[0])
    devices[1].tell(Outcome.FAILED, serving_release=1)
    before = [wish.assignment for device in devices if (wish := device.wish()) is not None]
    joined = join(app, operator, 1)[0]
    assert move(operator, rollout, "prefetch")["prefetched"] == 4
    after = [wish.assignment for device in devices if (wish := device.wish()) is not None]
    assert [new - old for old, new in zip(before, after, strict=True)] == [0, 1, 0]
    assert assigned(joined) == (2, True)


def test_a_start_assigns_wave_by_wave_and_what_is_ready_waits_for_its_wave(
    operator: Api, releaser: Api, devices: list[TestDevice]
) -> None:
    rollout = draft(releaser, 2)
    move(operator, rollout, "prefetch")
    for device in devices:
        ready(device)
    view = move(operator, rollout, "start")
    assert (view["state"], view["exposed"], view["ready"]) == ("running", 1, 3)
    (first,) = [device for device in devices if assigned(device) == (2, False)]
    assert sorted(assigned(device) == (2, True) for device in devices) == [False, True, True]
    first.tell(Outcome.COMMITTED)
    assert {assigned(device) for device in devices} == {(2, False)}
    for device in devices:
        if device is not first:
            device.tell(Outcome.COMMITTED)
    assert shown(operator, rollout)["state"] == "succeeded"


def test_an_aborted_draft_gives_devices_back_what_they_had(
    app: FastAPI, operator: Api, releaser: Api, devices: list[TestDevice]
) -> None:
    fresh = join(app, operator, 1)[0]
    made(operator.get(f"/api/v1/devices/{fresh.id}"))
    rollout = draft(releaser, 2, *devices)
    move(operator, rollout, "prefetch")
    ready(devices[0])
    view = move(operator, rollout, "abort")
    assert view["state"] == "aborted"
    assert {assigned(device) for device in devices} == {(1, False)}
    assert all(part["returned_by"] > 0 for part in parts_of(operator, rollout))
    devices[0].tell(Outcome.COMMITTED)
    assert shown(operator, rollout)["committed"] == 0


def test_a_halt_releases_those_too_that_had_it_ready_for_a_later_wave(
    operator: Api, releaser: Api, devices: list[TestDevice]
) -> None:
    rollout = draft(releaser, 2)
    move(operator, rollout, "prefetch")
    for device in devices:
        ready(device)
    move(operator, rollout, "start")
    (first,) = [device for device in devices if assigned(device) == (2, False)]
    first.tell(Outcome.REFUSED, serving_release=1)
    assert shown(operator, rollout)["state"] == "halted"
    assert {assigned(device) for device in devices} == {(1, False)}


def test_a_success_releases_those_that_no_wave_reaches(operator: Api, releaser: Api, devices: list[TestDevice]) -> None:
    rollout = draft(releaser, 2, waves=("1",))
    move(operator, rollout, "prefetch")
    move(operator, rollout, "start")
    (first,) = [device for device in devices if assigned(device) == (2, False)]
    first.tell(Outcome.COMMITTED)
    assert shown(operator, rollout)["state"] == "succeeded"
    assert sorted(assigned(device) or (0, True) for device in devices) == [(1, False), (1, False), (2, False)]


def test_another_rollout_takes_the_devices_and_the_draft_shows_that(
    app: FastAPI, operator: Api, releaser: Api, devices: list[TestDevice]
) -> None:
    ahead = draft(releaser, 2)
    move(operator, ahead, "prefetch")
    published(app, base=2)
    other = draft(releaser, 3, devices[0], waves=("100%",))
    move(operator, other, "start")
    assert shown(operator, ahead)["prefetched"] == 2
    busy = operator.post(f"/api/v1/rollouts/{ahead}/prefetch", json={})
    assert (busy.status_code, busy.json()["code"]) == (409, "rollout.busy")
    devices[0].tell(Outcome.REFUSED, serving_release=1)
    assert assigned(devices[0]) == (1, False), "it had release 1, whatever it was fetching ahead"
    move(operator, ahead, "abort")
    assert {assigned(device) for device in devices} == {(1, False)}


def test_devices_that_run_the_release_are_asked_for_nothing(
    operator: Api, releaser: Api, devices: list[TestDevice]
) -> None:
    before = [device.wish() for device in devices]
    rollout = draft(releaser, 1)
    assert move(operator, rollout, "prefetch")["prefetched"] == 0
    assert [device.wish() for device in devices] == before


def test_a_rollout_that_runs_is_not_fetched_ahead(operator: Api, releaser: Api, devices: list[TestDevice]) -> None:
    rollout = draft(releaser, 2, *devices)
    move(operator, rollout, "start")
    answer = operator.post(f"/api/v1/rollouts/{rollout}/prefetch", json={})
    assert (answer.status_code, answer.json()["code"]) == (409, "rollout.wrong-state")


def test_a_device_that_says_ready_where_it_should_serve_moves_nothing(
    operator: Api, releaser: Api, devices: list[TestDevice]
) -> None:
    rollout = draft(releaser, 2, *devices, waves=("100%",))
    move(operator, rollout, "start")
    ready(devices[0])
    view = shown(operator, rollout)
    assert (view["state"], view["committed"], view["failed"], view["ready"]) == ("running", 0, 0, 0)
