"""Devices that go down the ladder of a plan to share layers, by what they report; over HTTP on a real PostgreSQL."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from fastapi import FastAPI
from fleet_calls import TestDevice, join, made
from http_calls import Api
from sharing_calls import PLANS, House, runner, tiny_models
from sqlalchemy import select
from training_calls import finished

from sprat_server.db.blobs import Blobs
from sprat_server.db.projects import DEFAULT_PROJECT
from sprat_server.fleet.models import Assignment
from sprat_server.flows import rollout_upkeep
from sprat_server.settings import Settings
from sprat_shared.protocol.report import Outcome

RECIPIENT, BASE, LOW, TOP = "face", 1, 2, 3


class Ladder(House):
    """Devices that run both models at their first releases, and a plan by which one has a ladder of two levels."""

    def __init__(self, *args: Any, count: int = 3) -> None:
        super().__init__(*args, apart=0.02)
        self.devices = join(self.app, self.admin, count)
        for name in ("face", "gate"):
            devices = [str(device.id) for device in self.devices]
            body = {"model": name, "release": 1, "waves": ["100%"], "devices": devices}
            rollout = made(self.admin.post("/api/v1/rollouts", json=body))
            made(self.admin.post(f"/api/v1/rollouts/{rollout['id']}/start", json={"reason": "because"}))
            for device in self.devices:
                device.tell(Outcome.COMMITTED, name)
        self.plan = self.planned(budget=0.2)
        (one,) = self.plan["result"]["chosen"]
        assert (one["recipient"], one["donor"], len(one["levels"])) == (RECIPIENT, "gate", 2)
        self.base_weights: str = one["base_weights"]
        self.rollout = ""

    def begin(self, **gates: Any) -> None:
        """Apply the plan and bring its top level to the devices, by a rollout of its own where gates are said."""
        applied = self.applied(self.plan, start=not gates)
        assert [(each["release"], each["level"]) for each in applied["releases"]] == [(LOW, 2), (TOP, 1)]
        self.rollout = applied["rollouts"][0]["id"]
        if gates:
            body = {"model": RECIPIENT, "release": TOP, "waves": ["100%"], "gates": gates}
            self.rollout = made(self.admin.post("/api/v1/rollouts", json=body))["id"]
            self.move("start")

    def tells(self, device: TestDevice, outcome: Outcome, code: str = "validation.worse", **more: Any) -> None:
        """Let a device report of what it is assigned; what it does not keep, it left for its base."""
        kept = outcome in {Outcome.COMMITTED, Outcome.RETURNED}
        served = {} if kept else {"serving_release": BASE, "serving_weights": self.base_weights, "error_code": code}
        device.tell(outcome, RECIPIENT, **(served | more))

    def wishes(self) -> list[int | None]:
        said = [device.wish(RECIPIENT) for device in self.devices]
        return [None if wish is None else wish.release for wish in said]

    def assigned(self, device: TestDevice) -> list[int | None]:
        """Return all releases of the recipient that a device was ever assigned, oldest first."""
        query = select(Assignment.number, Assignment.model_id).where(Assignment.device_id == device.id)
        with self.app.state.database.transaction(DEFAULT_PROJECT) as session:
            rows = session.execute(query.order_by(Assignment.counter)).all()
        return [number for number, model in rows if model == rows[0].model_id]

    def move(self, verb: str, **more: Any) -> dict[str, Any]:
        return made(self.admin.post(f"/api/v1/rollouts/{self.rollout}/{verb}", json={"reason": "a test"} | more))

    def look(self) -> dict[str, Any]:
        return made(self.admin.get(f"/api/v1/rollouts/{self.rollout}"))

    def standing(self) -> tuple[dict[int, int], int]:
        """Return how many devices serve each level, and how many share nothing."""
        (one,) = self.shown(self.plan)["standing"]
        assert one["model"] == RECIPIENT
        return {level["level"]: level["devices"] for level in one["levels"]}, one["nothing"]

    def undo(self) -> dict[str, Any]:
        return made(self.admin.post(f"{PLANS}/{self.plan['id']}/undo", json={"reason": "a test"}))


@pytest.fixture
def ladder(app: FastAPI, settings: Settings, admin: Api, blobs: Blobs, tmp_path: Path) -> Ladder:
    return Ladder(app, runner(app, settings, blobs), admin, blobs, tmp_path)


def test_a_device_goes_down_level_by_level_and_the_others_keep_what_they_have(ladder: Ladder) -> None:
    ladder.begin()
    first = ladder.devices[0]
    ladder.tells(first, Outcome.REFUSED, error_detail="31 of 200 went wrong")
    assert ladder.wishes() == [LOW, TOP, TOP]
    wish = first.wish(RECIPIENT)
    assert wish is not None
    models = made(ladder.admin.get(f"/api/v1/devices/{first.id}"))["models"]
    assert {one["model"]: one["why"] for one in models} == {RECIPIENT: "step-down", "gate": "rollout"}
    assert (wish.target.shares is not None, wish.path) == (True, (f"{RECIPIENT}/{LOW}/from-1",))
    for device in ladder.devices:
        ladder.tells(device, Outcome.COMMITTED)
    assert ladder.look()["state"] == "succeeded", "the level that it keeps is a success"
    assert ladder.standing() == ({1: 2, 2: 1}, 0)
    assert ladder.assigned(first) == [BASE, TOP, LOW], "it never goes up again"

    event = next(one for one in made(ladder.admin.get("/api/v1/events"))["items"] if "lowered" in one["type"])
    assert event["type"] == "sharing.lowered"
    said = {key: event["data"][key] for key in ("model", "release", "level", "to", "to_level", "code", "detail")}
    assert said == {
        "model": RECIPIENT,
        "release": TOP,
        "level": 1,
        "to": LOW,
        "to_level": 2,
        "code": "validation.worse",
        "detail": "31 of 200 went wrong",
    }
    audited = next(one for one in made(ladder.admin.get("/api/v1/audit"))["items"] if one["action"].endswith("down"))
    assert (audited["action"], audited["subject"]) == ("sharing.step-down", f"sharing:{ladder.plan['id']}")


def test_what_refuses_every_level_stays_unshared_and_halts_where_the_first_failure_decides(ladder: Ladder) -> None:
    ladder.begin()
    first, second, _ = ladder.devices
    ladder.tells(second, Outcome.COMMITTED)
    ladder.tells(first, Outcome.ROLLED_BACK, "trial.slow")
    ladder.tells(first, Outcome.REFUSED, "validation.disagrees")
    assert ladder.look()["state"] == "halted"
    assert ladder.wishes() == [BASE, BASE, BASE]
    ladder.move("resume", acknowledge=True)
    assert ladder.wishes() == [BASE, TOP, TOP], "who refused every level is left as it is"
    assert ladder.standing() == ({1: 1, 2: 0}, 2)


def test_what_passes_or_says_nothing_of_the_model_moves_no_device_down(ladder: Ladder) -> None:
    ladder.begin()
    for code in ("disk.full", "link.down"):
        ladder.tells(ladder.devices[0], Outcome.FAILED, code)
        assert ladder.wishes() == [TOP, TOP, TOP]
    assert ladder.look()["retrying"] == 1
    ladder.tells(ladder.devices[1], Outcome.REFUSED, "update.digest-mismatch")
    assert ladder.look()["state"] == "halted"
    assert LOW not in ladder.assigned(ladder.devices[1])


def test_what_failed_to_take_a_lower_level_is_asked_for_that_level_again(ladder: Ladder) -> None:
    ladder.begin()
    ladder.tells(ladder.devices[0], Outcome.REFUSED)
    ladder.tells(ladder.devices[0], Outcome.FAILED, "disk.full")
    later = datetime.now(UTC) + timedelta(days=1)
    assert rollout_upkeep.look_after(ladder.app.state.database, ladder.app.state.settings, later)
    assert ladder.assigned(ladder.devices[0]) == [BASE, TOP, LOW, LOW]
    assert ladder.wishes() == [LOW, TOP, TOP]


def test_reports_of_one_refusal_that_cross_move_a_device_down_once(ladder: Ladder) -> None:
    ladder.begin()
    for device in ladder.devices:
        wish = device.wish(RECIPIENT)
        assert wish is not None
        said = {"serving_release": BASE, "serving_weights": ladder.base_weights}
        reports = [device.report(wish, Outcome.REFUSED, **said) for _ in range(4)]
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(device.send, reports))
        assert {answer.status_code for answer in answers} <= {204, 409}, "an older one after a newer is a replay"
        assert ladder.assigned(device) == [BASE, TOP, LOW]
    assert ladder.wishes() == [LOW, LOW, LOW]


def test_a_gate_hears_a_device_that_goes_down_once(ladder: Ladder) -> None:
    ladder.begin(rule="evidence")
    assert ladder.look()["rule"] == "evidence"
    first = ladder.devices[0]
    ladder.tells(first, Outcome.REFUSED, "validation.disagrees")
    before = made(ladder.admin.get(f"/api/v1/rollouts/{ladder.rollout}/why"))
    assert (before["exposed"], before["reported"], before["failed"]) == (3, 1, 1)
    ladder.tells(first, Outcome.COMMITTED)
    after = made(ladder.admin.get(f"/api/v1/rollouts/{ladder.rollout}/why"))
    assert (after["exposed"], after["reported"], after["failed"]) == (3, 1, 1)


def test_the_undoing_of_a_plan_brings_those_back_that_went_down(ladder: Ladder) -> None:
    ladder.begin()
    ladder.tells(ladder.devices[0], Outcome.REFUSED)
    for device in ladder.devices:
        ladder.tells(device, Outcome.COMMITTED)
    assert ladder.look()["state"] == "succeeded"
    ladder.undo()
    assert ladder.wishes() == [BASE, BASE, BASE]
    wish = ladder.devices[0].wish(RECIPIENT)
    assert wish is not None
    assert wish.path == (), "nothing is sent: it holds that slot"
    ladder.tells(ladder.devices[0], Outcome.RETURNED)
    assert ladder.standing() == ({1: 2, 2: 0}, 1)


@pytest.mark.parametrize("verb", ["abort", "halt"])
def test_a_rollout_that_stops_brings_those_back_that_went_down(ladder: Ladder, verb: str) -> None:
    ladder.begin()
    first, second, _ = ladder.devices
    ladder.tells(first, Outcome.REFUSED)
    ladder.tells(first, Outcome.COMMITTED)
    if verb == "abort":
        ladder.move("abort")
    else:
        ladder.tells(second, Outcome.REFUSED, "update.malformed")
        assert ladder.look()["state"] == "halted"
    assert ladder.wishes() == [BASE, BASE, BASE]
    ladder.tells(first, Outcome.RETURNED)
    assert ladder.assigned(first) == [BASE, TOP, LOW, BASE]


def test_an_abort_that_keeps_leaves_the_level_and_the_undoing_of_the_plan_takes_it(ladder: Ladder) -> None:
    ladder.begin()
    ladder.tells(ladder.devices[0], Outcome.REFUSED)
    ladder.tells(ladder.devices[0], Outcome.COMMITTED)
    ladder.move("abort", keep=True)
    assert ladder.wishes() == [LOW, BASE, BASE]
    ladder.undo()
    assert ladder.wishes() == [BASE, BASE, BASE]


def test_of_a_plan_that_was_undone_no_device_goes_down_any_more(ladder: Ladder) -> None:
    ladder.begin()
    first = ladder.devices[0]
    wish = first.wish(RECIPIENT)
    assert wish is not None
    ladder.undo()
    late = first.report(wish, Outcome.REFUSED, serving_release=BASE, serving_weights=ladder.base_weights)
    assert first.send(late).status_code == 204
    assert ladder.wishes() == [BASE, BASE, BASE]
    assert LOW not in ladder.assigned(first)


def test_a_device_whose_guard_sees_drift_goes_down_after_the_rollout_has_ended(ladder: Ladder) -> None:
    ladder.begin()
    first = ladder.devices[0]
    for device in ladder.devices:
        ladder.tells(device, Outcome.COMMITTED)
    ladder.tells(first, Outcome.ROLLED_BACK, "operator.rolled-back")
    assert ladder.wishes() == [TOP, TOP, TOP], "a person at the device went back: nobody else moves it"
    ladder.tells(first, Outcome.ROLLED_BACK, "sharing.drifted")
    assert ladder.wishes() == [LOW, TOP, TOP]
    ladder.tells(first, Outcome.COMMITTED)
    assert ladder.standing() == ({1: 2, 2: 1}, 0)
    ladder.tells(first, Outcome.ROLLED_BACK, "sharing.drifted")
    assert ladder.wishes() == [BASE, TOP, TOP]
    assert ladder.look()["state"] == "succeeded"
    assert ladder.standing() == ({1: 2, 2: 0}, 1)
    ladder.undo()
    assert ladder.assigned(first) == [BASE, TOP, LOW, BASE]


def test_a_device_that_drifts_while_the_rollout_runs_is_awaited_on_the_next_level(ladder: Ladder) -> None:
    ladder.begin()
    first, second, third = ladder.devices
    ladder.tells(first, Outcome.COMMITTED)
    ladder.tells(first, Outcome.ROLLED_BACK, "sharing.drifted")
    ladder.tells(second, Outcome.COMMITTED)
    ladder.tells(third, Outcome.COMMITTED)
    assert ladder.look()["state"] == "running"
    ladder.tells(first, Outcome.COMMITTED)
    assert ladder.look()["state"] == "succeeded"


def test_what_the_levels_were_made_from_stays_signed_while_one_is_live(ladder: Ladder) -> None:
    ladder.begin()
    for device in ladder.devices:
        ladder.tells(device, Outcome.COMMITTED)
    right = tiny_models.truth()
    ladder.next_release(RECIPIENT, {**right, "2.weight": right["2.weight"] * np.float32(1.01)})
    assert f"{RECIPIENT}/{BASE}/full" in ladder.signed(RECIPIENT)


@pytest.mark.parametrize("left", [1, 2])
def test_a_plan_made_anew_allows_no_more_than_devices_kept(ladder: Ladder, left: int) -> None:
    ladder.begin()
    high, low = (level["bound"] for level in ladder.plan["result"]["chosen"][0]["levels"])
    first, second, third = ladder.devices
    for device in (second, third):
        ladder.tells(device, Outcome.COMMITTED)
    ladder.tells(first, Outcome.ROLLED_BACK, "sharing.drifted")
    ladder.tells(first, Outcome.COMMITTED if left == 1 else Outcome.REFUSED)
    job = ladder.admin.post(f"{PLANS}/{ladder.plan['id']}/refit").json()["job"]["id"]
    done = finished(ladder.worker, ladder.admin, UUID(job))
    assert done["state"] == "succeeded", done
    again = made(ladder.admin.get(f"{PLANS}/{done['result']['plan']}"))
    budget = low if left == 1 else low / 2
    assert high > low
    assert again["result"]["learned"] == {
        RECIPIENT: {
            "budget": budget,
            "levels": [
                {"level": 1, "bound": high, "left": 1, "serve": 2},
                {"level": 2, "bound": low, "left": left - 1, "serve": 2 - left},
            ],
        }
    }
    assert again["asked"]["budgets"] == {RECIPIENT: budget, "gate": 0.2}
    chosen = {one["recipient"]: [level["bound"] for level in one["levels"]] for one in again["result"]["chosen"]}
    assert all(bound <= budget for bound in chosen.get(RECIPIENT, []))


def test_a_plan_that_all_devices_kept_teaches_nothing(ladder: Ladder) -> None:
    ladder.begin()
    for device in ladder.devices:
        ladder.tells(device, Outcome.COMMITTED)
    job = ladder.admin.post(f"{PLANS}/{ladder.plan['id']}/refit").json()["job"]["id"]
    done = finished(ladder.worker, ladder.admin, UUID(job))
    again = made(ladder.admin.get(f"{PLANS}/{done['result']['plan']}"))
    assert (again["result"]["learned"], again["asked"]["budgets"]) == ({}, {RECIPIENT: 0.2, "gate": 0.2})
