"""Lists of the operators' API: filtered, in both orders, in pages that miss nothing."""

from typing import Any

import pytest
from fastapi import FastAPI
from fleet_calls import made
from http_calls import Api, as_scope
from rollout_calls import House, parts_of

from sprat_server.access.tokens import Scope

ROLLOUTS = "/api/v1/rollouts"


@pytest.fixture
def house(app: FastAPI) -> House:
    """A server with five devices."""
    return House(app, 5)


def ids(api: Api, url: str = ROLLOUTS, **query: Any) -> list[str]:
    return [one["id"] for one in made(api.get(url, params=query))["items"]]


def test_rollouts_are_found_by_model_release_state_and_name(house: House) -> None:
    first = house.draft(1, name="first-floor")
    second = house.begin(2, waves=["100%"])
    look = house.operator
    assert ids(look) == [second, first]
    assert ids(look, sort="created") == [first, second]
    assert ids(look, model="mnist", release=2) == [second]
    assert ids(look, state="draft") == [first]
    assert ids(look, name="first-floor", state="running") == []
    assert ids(look, name="first-floor") == [first]
    unknown = look.get(ROLLOUTS, params={"model": "nobody"})
    assert (unknown.status_code, unknown.json()["code"]) == (404, "model.unknown")
    assert look.get(ROLLOUTS, params={"state": "asleep"}).status_code == 422


def test_devices_of_a_rollout_come_in_pages_wave_after_wave(house: House) -> None:
    rollout = house.begin(waves=["2", "100%"], control="20%")
    whole = parts_of(house.operator, rollout)
    assert [part["wave"] for part in whole] == [1, 1, 2, 2, None]
    asked, paged = {"limit": "2"}, []
    while True:
        page = made(house.operator.get(f"{ROLLOUTS}/{rollout}/devices", params=asked))
        paged += page["items"]
        if page["next"] is None:
            break
        asked["cursor"] = page["next"]
    assert paged == whole
    assert [part["wave"] for part in parts_of(house.operator, rollout, state="control")] == [None]
    shown = house.look(rollout)
    assert [(wave["devices"], wave["states"]) for wave in shown["waves"]] == [(2, {"exposed": 2}), (2, {"waiting": 2})]
    assert (shown["devices"], shown["controls"], shown["unplaced"], shown["exposed"]) == (5, 1, 0, 2)


def test_the_audit_log_is_found_by_who_what_and_when(app: FastAPI, house: House) -> None:
    other = as_scope(app, Scope.OPERATOR)
    made(other.post("/api/v1/enrolment-tokens", json={"uses": 1}))
    records = made(house.operator.get("/api/v1/audit"))["items"]
    newest = records[0]
    by = made(house.operator.get("/api/v1/audit", params={"actor": newest["actor"]}))["items"]
    assert [one["seq"] for one in by] == [newest["seq"]]
    since = made(house.operator.get("/api/v1/audit", params={"since": newest["at"]}))["items"]
    assert [one["seq"] for one in since] == [newest["seq"]]
    until = made(house.operator.get("/api/v1/audit", params={"until": newest["at"]}))["items"]
    assert [one["seq"] for one in until] == [one["seq"] for one in records[1:]]
    assert house.operator.get("/api/v1/audit", params={"since": "2026-11-30T00:00:00"}).status_code == 422, "no zone"
