"""Rollouts that a gate decides: who gets the release as evidence grows, what halts them, and why."""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import cycle
from random import Random
from typing import Any
from uuid import UUID

import pytest
from fastapi import FastAPI
from fleet_calls import TestDevice, join, made, published
from http_calls import Api
from rollout_calls import parts_of
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError

from sprat_server.db.projects import ACROSS, DEFAULT_PROJECT
from sprat_server.flows import rollout_reports
from sprat_server.flows.rollout_upkeep import look_after
from sprat_server.rollouts import gating
from sprat_server.rollouts.gate_plan import GatePlan
from sprat_server.rollouts.gates import Gate, judge
from sprat_server.rollouts.models import Rollout, RolloutEvent
from sprat_shared.protocol.report import Evidence, Outcome

SAMPLES = 400
EVIDENCE = {"rule": "evidence"}


def measured(loss: float, *, slower: float = 1.0) -> Evidence:
    """What a device measured: so many points lost on its holdout."""
    lost = round(loss * SAMPLES)
    return Evidence(
        samples=SAMPLES,
        old_correct=360,
        new_correct=360 - lost,
        only_old=max(lost, 0),
        only_new=max(-lost, 0),
        p_worse=0.5,
        old_latency_s=0.01,
        new_latency_s=0.01 * slower,
    )


class Fleet:
    """Devices, and the newest rollout to them."""

    def __init__(self, releaser: Api, viewer: Api, devices: list[TestDevice]) -> None:
        self.releaser, self.viewer = releaser, viewer
        self.devices = {str(device.id): device for device in devices}
        self.rollout = ""

    def begin(self, waves: list[str], gates: dict[str, Any] | None = EVIDENCE, release: int = 2) -> dict[str, Any]:
        body = {"model": "mnist", "release": release, "waves": waves, "gates": gates}
        self.rollout = made(self.releaser.post("/api/v1/rollouts", json=body))["id"]
        return made(self.releaser.post(f"/api/v1/rollouts/{self.rollout}/start", json={"reason": "it is time"}))

    def look(self) -> dict[str, Any]:
        return made(self.viewer.get(f"/api/v1/rollouts/{self.rollout}"))

    def why(self, policy: Any = None) -> dict[str, Any]:
        query = {} if policy is None else {"policy": json.dumps(policy)}
        return made(self.viewer.get(f"/api/v1/rollouts/{self.rollout}/why", params=query))

    def exposed(self) -> list[str]:
        return [part["device"] for part in parts_of(self.viewer, self.rollout, state="exposed")]

    def report(self, loss: Callable[[], float], *, most: int = 1000, fails: bool = False) -> int:
        """Let exposed devices report, wave after wave, until none is or `most` did; return how many."""
        told = 0
        while told < most and (exposed := self.exposed()):
            for one in exposed[: most - told]:
                outcome = Outcome.FAILED if fails else Outcome.COMMITTED
                changes: dict[str, Any] = {"error_code": "rebuild.failed", "error_detail": "no luck"} if fails else {}
                self.devices[one].tell(outcome, evidence=None if fails else measured(loss()), **changes)
                told += 1
                if self.look()["state"] != "running":
                    return told
        return told


@pytest.fixture
def fleet(app: FastAPI, operator: Api, releaser: Api, viewer: Api) -> Fleet:
    """Twenty-four devices and a model with two releases."""
    published(app)
    published(app, base=1)
    return Fleet(releaser, viewer, join(app, operator, 24))


@pytest.fixture
def pair(app: FastAPI, operator: Api, releaser: Api, viewer: Api) -> Fleet:
    """Two devices, likewise."""
    published(app)
    published(app, base=1)
    return Fleet(releaser, viewer, join(app, operator, 2))


def test_a_harmless_release_reaches_everyone_and_one_failure_among_many_stops_nothing(fleet: Fleet) -> None:
    random = Random(1)
    assert fleet.begin(["6", "12", "100%"])["rule"] == "evidence"
    assert len(fleet.exposed()) == 6
    assert fleet.report(lambda: random.gauss(0, 0.01), most=6) == 6
    assert [wave["state"] for wave in fleet.look()["waves"]] == ["succeeded", "open", "waiting"]
    fleet.report(lambda: 0.0, most=1, fails=True)
    fleet.report(lambda: random.gauss(0, 0.01))
    ended = fleet.look()
    assert (ended["state"], ended["committed"], ended["failed"]) == ("succeeded", 23, 1)


def test_a_worse_release_halts_with_a_reason_and_exposed_devices_go_back(fleet: Fleet) -> None:
    fleet.begin(["100%"], gates=None, release=1)
    for device in fleet.devices.values():
        device.tell(Outcome.COMMITTED)
    fleet.begin(["10", "100%"])
    told = fleet.report(lambda: 0.06)
    halted = fleet.look()
    assert halted["state"] == "halted"
    assert told < 24
    assert "accuracy of all: accuracy is worse by 0.06" in halted["reason"]
    wishes = [device.wish() for device in fleet.devices.values()]
    assert [wish.release for wish in wishes if wish is not None] == [1] * 24
    why = fleet.why()
    assert (why["decision"], why["halted_after"], why["decides"]) == ("halt", told, True)
    assert why["exposed_at_halt"] == halted["exposed"]
    assert why["gates"][0]["metric"] == "accuracy"


def test_two_first_failures_halt(fleet: Fleet) -> None:
    fleet.begin(["10", "100%"])
    assert fleet.report(lambda: 0.0, fails=True) == 2
    assert fleet.look()["reason"] == "the first 2 devices that reported all failed"


def test_the_release_goes_as_far_as_the_proof_carries_and_a_wave_is_exposed_in_parts(fleet: Fleet) -> None:
    losses = cycle((0.035, -0.035))
    tight = {"rule": "evidence", "policy": {"metrics": {"accuracy": {"budget": 0.3}}}}
    fleet.begin(["5", "100%"], gates=tight)
    fleet.report(lambda: next(losses), most=5)
    assert len(fleet.exposed()) == 2, "nothing is proven: 0.3 / 0.04 devices may have it"
    assert [wave["state"] for wave in fleet.look()["waves"]] == ["succeeded", "open"]
    fleet.report(lambda: next(losses))
    held = fleet.look()
    assert held["state"] == "running"
    assert held["exposed"] < 24
    why = fleet.why()
    assert why["decision"] == "hold"
    assert "enough for" in why["reasons"][0]
    assert fleet.why({"metrics": {"accuracy": {"budget": 2.0}}})["decision"] == "open"


def test_devices_without_a_holdout_open_nothing_unless_the_policy_lets_them(fleet: Fleet) -> None:
    fleet.begin(["3", "100%"])
    for one in fleet.exposed():
        fleet.devices[one].tell(Outcome.COMMITTED)
    assert fleet.look()["exposed"] == 3
    assert fleet.why()["reasons"] == ["0 devices measured accuracy, at least 3 must"]
    assert fleet.why({"metrics": {"accuracy": {"required": False}}})["decision"] == "open"


def test_a_person_can_open_the_next_wave_but_not_one_that_does_not_wait(
    fleet: Fleet, operator: Api, viewer: Api
) -> None:
    def promote() -> tuple[int, Any]:
        answer = operator.post(f"/api/v1/rollouts/{fleet.rollout}/promote", json={"reason": "checked by hand"})
        return answer.status_code, answer.json()

    fleet.begin(["3", "9", "100%"])
    for one in fleet.exposed():
        fleet.devices[one].tell(Outcome.COMMITTED)
    assert fleet.look()["exposed"] == 3
    status, promoted = promote()
    assert (status, promoted["exposed"]) == (200, 9), "one wave, and no more"
    assert [wave["state"] for wave in promoted["waves"]] == ["succeeded", "open", "waiting"]
    entry = made(viewer.get("/api/v1/audit"))["items"][0]
    assert (entry["action"], entry["after"]["reason"]) == ("rollout.promote", "checked by hand")
    assert (promote()[0], fleet.look()["exposed"]) == (200, 24)
    status, problem = promote()
    assert (status, problem["code"]) == (409, "rollout.nothing-to-promote")


def test_who_refuses_because_its_own_holdout_says_so_counts_by_how_much_and_not_as_a_failure(fleet: Fleet) -> None:
    fleet.begin(["6", "100%"])
    first, *_ = fleet.exposed()
    fleet.devices[first].tell(Outcome.REFUSED, evidence=measured(0.03))
    assert fleet.why()["failed"] == 0
    assert fleet.why()["gates"][0]["metric"] == "accuracy"
    second = fleet.exposed()[0]
    fleet.devices[second].tell(Outcome.REFUSED, evidence=None)
    assert fleet.why()["failed"] == 1


def test_devices_that_fall_silent_count_as_lost_after_the_timeout_and_a_late_word_counts_no_more(
    app: FastAPI, fleet: Fleet
) -> None:
    fleet.begin(["8", "100%"], gates={**EVIDENCE, "silence_s": 3600})
    late = fleet.exposed()[-1]
    wish = fleet.devices[late].wish()
    assert wish is not None
    fleet.report(lambda: 0.0, most=6)
    assert fleet.look()["exposed"] == 8
    for hours, failed in ((0.5, 0), (2.0, 2)):
        with app.state.database.transaction(DEFAULT_PROJECT) as session:
            rollout_reports.on_silence(session, datetime.now(UTC) + timedelta(hours=hours))
        assert fleet.why()["lost"] == failed
    assert fleet.look()["failed"] == 2
    assert fleet.why()["failures"] == {"silence": 2}, "a class of its own"
    assert fleet.devices[late].send(fleet.devices[late].report(wish, Outcome.COMMITTED)).status_code == 204
    assert (fleet.why()["reported"], fleet.why()["lost"]) == (8, 2)


def test_a_hold_with_nobody_left_to_hear_is_told_and_halts_in_time(
    app: FastAPI, fleet: Fleet, operator: Api, releaser: Api
) -> None:
    fleet.begin(["100%"], gates=None, release=1)
    for device in fleet.devices.values():
        device.tell(Outcome.COMMITTED)
    fleet.begin(["10", "100%"], gates={**EVIDENCE, "held_s": 3600})

    def hours_later(hours: float) -> dict[str, Any]:
        look_after(app.state.database, app.state.settings, datetime.now(UTC) + timedelta(hours=hours))
        return fleet.look()

    def told() -> list[dict[str, Any]]:
        events = made(operator.get("/api/v1/events", params={"type": "rollout.held"}))["items"]
        return [one["data"] for one in events]

    for one in fleet.exposed()[:7]:
        fleet.devices[one].tell(Outcome.COMMITTED, evidence=measured(0.0))
    assert hours_later(2)["held_since"] is None, "three are awaited"
    for one in fleet.exposed():
        fleet.devices[one].tell(Outcome.REFUSED, evidence=None, error_code="verify.refused", error_detail="no luck")
    held = fleet.look()
    assert (held["state"], held["exposed"]) == ("running", 10)
    assert held["held_since"] is not None
    assert "a person: nobody is awaited, and nothing is proven (7 devices measured accuracy" in held["waits_for"][0]
    assert [data["reason"] for data in told()] == ["7 devices measured accuracy, at least 9 must"]
    assert hours_later(0.5)["state"] == "running"

    made(releaser.post(f"/api/v1/rollouts/{fleet.rollout}/pause", json={"reason": "I look"}))
    assert hours_later(2)["state"] == "paused", "a person has it in hand"
    made(releaser.post(f"/api/v1/rollouts/{fleet.rollout}/resume", json={"reason": "go on"}))
    assert len(told()) == 2

    halted = hours_later(2)
    assert (halted["state"], halted["held_since"]) == ("halted", None)
    assert re.fullmatch(
        r"nothing is proven either way, and nobody was awaited for 7,\d\d\d s: 7 devices measured .*", halted["reason"]
    )
    wishes = [device.wish() for device in fleet.devices.values()]
    assert [wish.release for wish in wishes if wish is not None] == [1] * 24
    assert made(fleet.viewer.get("/api/v1/models/mnist/releases/2"))["quarantine"] is not None


def test_a_device_that_is_revoked_counts_no_more(fleet: Fleet, operator: Api) -> None:
    fleet.begin(["4", "100%"])
    gone = fleet.exposed()[0]
    made(operator.post(f"/api/v1/devices/{gone}/revoke", json={"reason": "scrapped"}))
    assert fleet.why()["exposed"] == 3
    fleet.report(lambda: 0.0, most=3)
    assert len(fleet.exposed()) > 0


def test_a_paused_rollout_exposes_nobody_but_halts(fleet: Fleet, operator: Api) -> None:
    fleet.begin(["4", "100%"])
    made(operator.post(f"/api/v1/rollouts/{fleet.rollout}/pause", json={"reason": "night"}))
    told = fleet.exposed()
    for one in told:
        fleet.devices[one].tell(Outcome.COMMITTED, evidence=measured(0.0))
    assert (fleet.look()["state"], fleet.look()["exposed"]) == ("paused", 4)
    made(operator.post(f"/api/v1/rollouts/{fleet.rollout}/resume", json={"reason": "morning"}))
    assert fleet.look()["exposed"] == 24


def test_a_verdict_is_replayed_bit_for_bit_from_what_is_stored(app: FastAPI, fleet: Fleet) -> None:
    random = Random(3)
    fleet.begin(["8", "100%"])
    fleet.report(lambda: random.gauss(0.01, 0.02), most=15)
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        rollout = session.get_one(Rollout, UUID(fleet.rollout))
        gate = Gate(GatePlan.of(rollout.gates).policy)
        evidence, stored = gating.evidence(session, rollout), gating.load(session, rollout)
        said = session.scalars(
            select(RolloutEvent.e_value).where(RolloutEvent.rollout_id == rollout.id).order_by(RolloutEvent.position)
        ).all()
    assert gate.fold(evidence) == stored
    assert gate.e_value(stored).hex() == said[-1].hex()
    for count in range(1, len(said) + 1):
        part = type(evidence)(evidence.cohort, evidence.events[:count])
        assert gate.e_value(gate.fold(part)).hex() == said[count - 1].hex()
    assert judge(evidence, gate.policy).decision.value == fleet.why()["decision"]


def test_acknowledged_failures_let_a_rollout_go_on_and_the_verdict_is_still_replayed_bit_for_bit(
    app: FastAPI, fleet: Fleet, operator: Api
) -> None:
    fleet.begin(["12", "100%"])
    assert fleet.report(lambda: 0.0, fails=True) == 2
    assert fleet.look()["state"] == "halted"
    body = {"reason": "the disks were full", "acknowledge": True}
    resumed = made(operator.post(f"/api/v1/rollouts/{fleet.rollout}/resume", json=body))
    assert (resumed["state"], resumed["excused"], len(fleet.exposed())) == ("running", 2, 10)
    fleet.report(lambda: 0.0)
    ended = fleet.look()
    assert (ended["state"], ended["committed"], ended["excused"]) == ("succeeded", 22, 2)
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        rollout = session.get_one(Rollout, UUID(fleet.rollout))
        gate, evidence = Gate(GatePlan.of(rollout.gates).policy), gating.evidence(session, rollout)
        kinds = session.scalars(select(RolloutEvent.kind).where(RolloutEvent.rollout_id == rollout.id)).all()
        assert gate.fold(evidence) == gating.load(session, rollout)
    assert (kinds.count("exposed"), kinds.count("ended"), kinds.count("acknowledged")) == (24, 24, 1)
    assert fleet.why()["halted_after"] is None


def test_what_was_measured_cannot_be_acknowledged(fleet: Fleet, operator: Api) -> None:
    fleet.begin(["10", "100%"])
    fleet.report(lambda: 0.06)
    assert fleet.look()["state"] == "halted"
    body = {"reason": "never mind", "acknowledge": True}
    answer = operator.post(f"/api/v1/rollouts/{fleet.rollout}/resume", json=body)
    assert (answer.status_code, answer.json()["code"]) == (409, "rollout.harmful")
    assert fleet.look()["state"] == "halted"
    assert "accuracy" in answer.json()["detail"]


def test_what_was_heard_cannot_be_changed(app: FastAPI, pair: Fleet) -> None:
    pair.begin(["2", "100%"])
    with pytest.raises(DBAPIError, match="rollout_event"), app.state.database.transaction(DEFAULT_PROJECT) as session:
        session.execute(text("UPDATE rollout_event SET e_value = 0"), execution_options=ACROSS)


def test_a_small_fleet_is_decided_by_its_first_failure_and_evidence_is_kept_for_another_look(fleet: Fleet) -> None:
    assert fleet.begin(["2", "100%"], gates=None)["rule"] == "first_failure"
    fleet.report(lambda: 0.0, most=1)
    why = fleet.why()
    assert (why["decides"], why["reported"]) == (False, 1)
    fleet.report(lambda: 0.0, most=1, fails=True)
    assert fleet.look()["state"] == "halted"
    assert fleet.why()["decision"] != "halt"
    assert fleet.why({"allowed_failures": 0.0001, "first_failures": 0})["decision"] == "halt"


def test_a_larger_cohort_is_decided_by_evidence_unless_it_is_said_otherwise() -> None:
    assert [GatePlan().choose(count).value for count in (99, 100)] == ["first_failure", "evidence"]
    assert GatePlan.of({"rule": "first_failure"}).choose(10_000).value == "first_failure"


def test_a_draft_has_no_evidence_yet(pair: Fleet) -> None:
    draft = made(pair.releaser.post("/api/v1/rollouts", json={"model": "mnist", "release": 2, "waves": ["100%"]}))
    answer = pair.viewer.get(f"/api/v1/rollouts/{draft['id']}/why")
    assert (answer.status_code, answer.json()["code"]) == (409, "rollout.no-evidence")


def test_gates_that_are_wrong_are_refused_where_they_are_said(pair: Fleet) -> None:
    for gates in (
        {"rule": "luck"},
        {"silence_s": 0},
        {"silence_s": True},
        {"held_s": 0.5},
        {"policy": []},
        {"more": 1},
        {"policy": {"alpha": 2}},
    ):
        body = {"model": "mnist", "release": 2, "waves": ["100%"], "gates": gates}
        answer = pair.releaser.post("/api/v1/rollouts", json=body)
        assert (answer.status_code, answer.json()["code"]) == (422, "gates.bad-policy"), gates


def test_a_policy_to_try_that_is_wrong_is_refused(pair: Fleet) -> None:
    pair.begin(["100%"])
    for policy in ("{", "[]", '{"alpha": "x"}', "1" * 4000, "NaN", '{"alpha": NaN}', "[" * 8000):
        answer = pair.viewer.get(f"/api/v1/rollouts/{pair.rollout}/why", params={"policy": policy})
        assert (answer.status_code, answer.json()["code"]) == (422, "gates.bad-policy"), policy[:20]


def test_metrics_say_where_the_gates_of_live_rollouts_are(fleet: Fleet, server_viewer: Api) -> None:
    fleet.begin(["10", "100%"])
    fleet.report(lambda: 0.02, most=6)
    said = dict(re.findall(r"^sprat_rollout_(\S+) (\S+)$", server_viewer.get("/metrics").text, flags=re.MULTILINE))
    of = f'{{metric="METRIC",model="mnist",project="default",rollout="{fleet.rollout}"}}'
    why = fleet.why()
    assert float(said["e_value" + of.replace("METRIC", "all")]) == pytest.approx(why["e_value"])
    lines = {line["metric"]: line["e_value"] for line in why["gates"] if line["scope"] == "all"}
    assert float(said["e_value" + of.replace("METRIC", "accuracy")]) == pytest.approx(lines["accuracy"])
    counts = {
        what: float(said[f'devices{{model="mnist",project="default",rollout="{fleet.rollout}",what="{what}"}}'])
        for what in ("exposed", "reported", "failed", "room")
    }
    assert counts == {"exposed": 10.0, "reported": 6.0, "failed": 0.0, "room": 0.0}
    made(fleet.releaser.post(f"/api/v1/rollouts/{fleet.rollout}/abort", json={"reason": "seen enough"}))
    assert "sprat_rollout_e_value{" not in server_viewer.get("/metrics").text, "what has ended is not counted for ever"
