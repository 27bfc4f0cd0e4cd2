"""Rollouts before they run: previews, rollouts as code, starts at a time, windows; and what the clock sets off."""

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi import FastAPI
from fleet_calls import made
from http_calls import as_scope
from rollout_calls import House
from sqlalchemy import func, select, update

from sprat_server.access import audit
from sprat_server.access.tokens import Scope
from sprat_server.db.projects import DEFAULT_PROJECT
from sprat_server.db.session import Database
from sprat_server.flows import rollout_preview, rollout_upkeep
from sprat_server.rollouts.models import Rollout
from sprat_server.settings import Settings

NIGHT = {"from": "22:00", "to": "05:00"}
NOON = datetime(2026, 12, 1, 12, tzinfo=UTC)


@pytest.fixture
def house(app: FastAPI) -> House:
    """A model with two releases, which none of four devices has."""
    return House(app, 4)


def preview(house: House, **body: Any) -> dict[str, Any]:
    return made(house.operator.post("/api/v1/rollouts/plan", json={"model": "mnist", "release": 2, **body}))


def apply(house: House, *, start: bool = False, **body: Any) -> dict[str, Any]:
    answer = house.releaser.post(
        "/api/v1/rollouts/apply", json={"rollout": {"model": "mnist", "release": 2, **body}, "start": start}
    )
    return made(answer)


def rollouts(house: House) -> int:
    return len(made(house.operator.get("/api/v1/rollouts"))["items"])


def test_a_preview_shows_waves_and_what_opens_them_and_keeps_nothing(house: House) -> None:
    said = preview(house)
    assert [(wave["reach"], wave["devices"], wave["reached"]) for wave in said["waves"]] == [
        ("1", 1, 1), ("2", 1, 2), ("100%", 2, 4)
    ]  # fmt: skip
    assert said["waves"][0]["opens"] == "the next when all 1 devices have committed; the first failure halts"
    assert (said["rule"], said["devices"], said["action"], said["obstacles"]) == ("first_failure", 4, "create", [])
    assert rollouts(house) == 0


def test_a_preview_says_what_evidence_would_open(house: House) -> None:
    said = preview(house, waves=["2", "100%"], gates={"rule": "evidence"}, control="25%")
    assert (said["controls"], [wave["devices"] for wave in said["waves"]]) == (1, [2, 1])
    assert said["waves"][0]["opens"].startswith("the next when 2 of 2 devices have reported")
    assert "all 3 of the next wave may have it" in said["waves"][0]["opens"]
    tight = {"rule": "evidence", "policy": {"metrics": {"accuracy": {"budget": 0.0}}}}
    held = preview(house, waves=["2", "100%"], gates=tight)
    assert "before a person promotes it" in held["waves"][0]["opens"]


def test_a_preview_names_what_is_in_the_way_and_when_it_would_start(house: House) -> None:
    house.begin(1, waves=["1", "100%"])
    said = preview(house, windows=[NIGHT], start_at="2026-12-01T12:00:00Z", approvals=1, in_flight=3)
    assert said["starts"] == "2026-12-01T22:00:00Z"
    assert "cannot start before it ends" in said["obstacles"][0]
    assert preview(house, supersede=True)["obstacles"] == []
    assert preview(house, approvals=1)["starts"] is None
    assert len(said["notes"]) == 2


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"waves": ["1"], "grow": {"factor": 2}}, "either waves or grow"),
        ({"grow": {"factor": 1}}, "body.grow.factor"),
        ({"control": "5"}, "control '5'"),
        ({"windows": [{"from": "25:00", "to": "05:00"}]}, "windows: '25:00'"),
        ({"windows": [{**NIGHT, "local": True}]}, "windows: a rollout's are in UTC"),
        ({"retries": {"refused": 1}}, "retries: 'refused' is not retried"),
        ({"start_at": "2026-12-01T12:00:00"}, "body.start_at"),
        ({"name": "two words"}, "body.name"),
        ({"gates": {"rule": "luck"}}, "gates: rule"),
        ({"waves": ["ring="]}, "wave 'ring='"),
    ],
)
def test_what_cannot_be_is_refused_alike_by_preview_and_creation(
    house: House, body: dict[str, Any], words: str
) -> None:
    for path in ("rollouts/plan", "rollouts"):
        answer = house.releaser.post(f"/api/v1/{path}", json={"model": "mnist", "release": 2, **body})
        assert answer.status_code == 422
        assert words in answer.json()["detail"]


def test_waves_may_be_labels_and_filters(house: House) -> None:
    canary, lab, *_ = sorted(house.devices)
    for device, labels in ((canary, {"ring": "canary", "site": "lab"}), (lab, {"site": "lab"})):
        made(house.operator.request("PATCH", f"/api/v1/devices/{device}/labels", json=labels))
    waves = ["ring=canary", 'where: labels.site = "lab"', "75%", "100%"]
    assert [wave["devices"] for wave in preview(house, waves=waves, control="25%")["waves"]] == [1, 1, 1, 0]
    rollout = house.begin(waves=waves, control="25%")
    waves = {ordinal: [part["device"] for part in house.devices_of(rollout, wave=ordinal)] for ordinal in (1, 2)}
    assert waves == {1: [canary], 2: [lab]}
    assert [wave["devices"] for wave in house.look(rollout)["waves"]] == [1, 1, 1, 0]
    (control,) = house.devices_of(rollout, state="control")
    assert control["device"] in set(house.devices) - {canary, lab}
    house.commit(rollout)
    assert house.look(rollout)["state"] == "succeeded"
    answer = house.releaser.post(
        "/api/v1/rollouts", json={"model": "mnist", "release": 2, "waves": ["where: labels.site is lab"]}
    )
    assert answer.status_code == 422


def test_waves_that_grow_are_made_anew_for_the_devices_that_are_there_at_the_start(house: House) -> None:
    chosen = sorted(house.devices)
    rollout = house.draft(grow={"factor": 3, "from": 1}, devices=chosen)
    assert [wave["reach"] for wave in house.look(rollout)["waves"]] == ["1", "3", "100%"]
    made(house.operator.post(f"/api/v1/devices/{chosen[0]}/revoke", json={"reason": "scrapped"}))
    house.move(rollout, "start")
    assert [wave["reach"] for wave in house.look(rollout)["waves"]] == ["1", "100%"]


def test_applying_twice_makes_one_rollout_and_a_draft_that_differs_is_replaced(house: House) -> None:
    first = apply(house, name="mnist-2", waves=["1", "100%"])
    assert (first["action"], first["rollout"]["name"]) == ("created", "mnist-2")
    again = apply(house, name="mnist-2", waves=["1", "100%"], approvals=0)
    assert (again["action"], again["rollout"]["id"]) == ("unchanged", first["rollout"]["id"])
    said = preview(house, name="mnist-2", waves=["1", "100%"], in_flight=2)
    assert (said["action"], said["changes"]) == (
        "replace", [{"field": "plan.in_flight", "before": None, "after": 2}]
    )  # fmt: skip
    replaced = apply(house, name="mnist-2", waves=["1", "100%"], in_flight=2)
    assert replaced["action"] == "replaced"
    assert house.look(first["rollout"]["id"])["state"] == "aborted"
    started = apply(house, name="mnist-2", waves=["1", "100%"], in_flight=2, start=True)
    assert (started["action"], started["rollout"]["state"]) == ("started", "running")
    assert apply(house, name="mnist-2", waves=["1", "100%"], in_flight=2, start=True)["action"] == "unchanged"
    assert preview(house, name="mnist-2")["action"] == "conflict"
    body = {"rollout": {"model": "mnist", "release": 2, "name": "mnist-2"}}
    answer = house.releaser.post("/api/v1/rollouts/apply", json=body)
    assert (answer.status_code, answer.json()["code"]) == (409, "rollout.differs")
    assert "plan.in_flight" in answer.json()["detail"]
    taken = house.releaser.post("/api/v1/rollouts", json={"model": "mnist", "release": 2, "name": "mnist-2"})
    assert taken.json()["code"] == "rollout.name-taken"


def test_without_a_name_a_rollout_is_known_by_what_is_asked(house: House) -> None:
    devices = sorted(house.devices)
    first = apply(house, devices=devices, waves=["100%"])
    assert apply(house, devices=devices[::-1], waves=["100%"])["action"] == "unchanged"
    other = apply(house, devices=devices[:2], waves=["100%"])
    assert (other["action"], rollouts(house)) == ("created", 2)
    assert first["rollout"]["digest"] != other["rollout"]["digest"]


def test_the_same_file_applied_by_many_at_once_makes_one_rollout(house: House) -> None:
    actions: list[str] = []
    threads = [threading.Thread(target=lambda: actions.append(apply(house, name="one")["action"])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (sorted(actions), rollouts(house)) == (["created", *["unchanged"] * 3], 1)


def test_a_rollout_starts_by_itself_when_its_time_has_come_and_somebody_approved_it(house: House) -> None:
    rollout = house.draft(start_at="2026-12-01T12:00:00Z", approvals=1, waves=["1", "100%"])
    assert house.look(rollout)["waits_for"][1] == "its start at 2026-12-01 12:00 UTC"
    house.upkeep(NOON - timedelta(seconds=1))
    assert (house.look(rollout)["state"], house.look(rollout)["reason"]) == ("draft", None)
    house.upkeep(NOON)
    held = house.look(rollout)
    assert held["state"] == "draft"
    assert "needs 1 more approval" in held["reason"]
    house.move(rollout, "approve", by=as_scope(house.app, Scope.RELEASER))
    house.upkeep(NOON + timedelta(minutes=1))
    assert (house.look(rollout)["state"], house.look(rollout)["reason"]) == ("running", None)
    items = made(house.operator.get("/api/v1/audit"))["items"]
    assert (items[0]["action"], items[0]["actor"]) == ("rollout.start", "system:sprat")


def test_devices_are_exposed_within_the_windows_only(house: House) -> None:
    rollout = house.draft(start_at="2026-12-01T12:00:00Z", windows=[NIGHT], waves=["1", "100%"])
    house.upkeep(NOON)
    shown = house.look(rollout)
    assert (shown["state"], shown["exposed"]) == ("running", 0)
    assert [wave["state"] for wave in shown["waves"]] == ["waiting", "waiting"]
    house.upkeep(NOON.replace(hour=22))
    assert house.look(rollout)["exposed"] == 1


@pytest.mark.usefixtures("house")
def test_one_replica_at_a_time_looks_after_rollouts(database: Database, settings: Settings) -> None:
    with database.transaction(DEFAULT_PROJECT) as holder:
        holder.execute(select(func.pg_advisory_xact_lock(rollout_upkeep._UPKEEP_LOCK)))
        assert rollout_upkeep.look_after(database, settings) is False
    assert rollout_upkeep.look_after(database, settings) is True


def test_a_start_that_is_cut_short_is_made_by_the_next_look(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    rollout = house.draft(start_at="2026-12-01T12:00:00Z", waves=["2", "100%"])
    record = audit.record

    def cut(*_args: Any, **_more: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(audit, "record", cut)
    with pytest.raises(KeyboardInterrupt):
        house.upkeep(NOON)
    assert (house.look(rollout)["state"], set(house.wishes().values())) == ("draft", {None})
    monkeypatch.setattr(audit, "record", record)
    house.upkeep(NOON)
    assert house.states(rollout) == {"exposed": 2, "waiting": 2}
    assert [house.assigned(one) for one in house.devices].count([2]) == 2


def test_a_preview_cannot_write(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def writes(session: Any, _wanted: Any) -> None:
        session.execute(update(Rollout).values(reason="written"))

    rollout = house.draft()
    monkeypatch.setattr(rollout_preview, "preview", writes)
    answer = house.operator.post("/api/v1/rollouts/plan", json={"model": "mnist", "release": 2})
    assert (answer.status_code, house.look(rollout)["reason"]) == (500, None)
