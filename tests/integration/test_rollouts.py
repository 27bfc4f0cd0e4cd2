"""Rollouts over HTTP: wave by wave, halted by the first failure, and what happens to devices then."""

import threading
from typing import Any

import pytest
from fastapi import FastAPI
from fleet_calls import TestDevice, enrol, join, made, published
from http_calls import Api
from rollout_calls import parts_of
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from sprat_server.db.projects import DEFAULT_PROJECT
from sprat_server.fleet.models import Assignment
from sprat_server.rollouts.models import Rollout, RolloutDevice, Wave
from sprat_shared.protocol.enrol import EnrolAnswer
from sprat_shared.protocol.report import Outcome


@pytest.fixture
def fleet(app: FastAPI, operator: Api) -> dict[str, TestDevice]:
    """Three devices and a model with two releases, which no device has."""
    published(app)
    published(app, base=1)
    return {str(device.id): device for device in join(app, operator, 3)}


def begin(releaser: Api, release: int, waves: list[str], **more: Any) -> dict[str, Any]:
    """Draft and start a rollout."""
    body = {"model": "mnist", "release": release, "waves": waves, **more}
    rollout = made(releaser.post("/api/v1/rollouts", json=body))
    assert rollout["state"] == "draft"
    return made(releaser.post(f"/api/v1/rollouts/{rollout['id']}/start", json={"reason": "it is time"}))


def look(viewer: Api, rollout: dict[str, Any]) -> dict[str, Any]:
    return made(viewer.get(f"/api/v1/rollouts/{rollout['id']}"))


def in_wave(viewer: Api, rollout: dict[str, Any], ordinal: int) -> list[str]:
    return [part["device"] for part in parts_of(viewer, rollout["id"], wave=ordinal)]


def everyone_on_1(releaser: Api, fleet: dict[str, TestDevice]) -> None:
    begin(releaser, 1, ["100%"])
    for device in fleet.values():
        device.tell(Outcome.COMMITTED)


def test_waves_open_one_after_the_other_until_all_have_the_release(
    releaser: Api, viewer: Api, fleet: dict[str, TestDevice]
) -> None:
    rollout = begin(releaser, 2, ["1", "100%"])
    (first,) = in_wave(viewer, rollout, 1)
    others = in_wave(viewer, rollout, 2)
    assert [wave["state"] for wave in rollout["waves"]] == ["open", "waiting"]
    assert [fleet[one].wish() for one in others] == [None, None]
    wish = fleet[first].wish()
    assert wish is not None
    assert (wish.release, wish.path, wish.assigned.full) == (2, ("mnist/2/full",), "mnist/2/full")
    fleet[first].tell(Outcome.COMMITTED)
    assert [wave["state"] for wave in look(viewer, rollout)["waves"]] == ["succeeded", "open"]
    fleet[others[0]].tell(Outcome.COMMITTED)
    assert look(viewer, rollout)["state"] == "running"
    fleet[others[1]].tell(Outcome.COMMITTED)
    ended = look(viewer, rollout)
    assert (ended["state"], ended["committed"], ended["failed"]) == ("succeeded", 3, 0)


@pytest.mark.parametrize("outcome", [Outcome.REFUSED, Outcome.ROLLED_BACK, Outcome.FAILED])
def test_the_first_failure_halts_and_exposed_devices_are_assigned_the_release_they_had(
    app: FastAPI, releaser: Api, viewer: Api, fleet: dict[str, TestDevice], outcome: Outcome
) -> None:
    everyone_on_1(releaser, fleet)
    rollout = begin(releaser, 2, ["1", "2", "100%"])
    first, second, third = (in_wave(viewer, rollout, ordinal)[0] for ordinal in (1, 2, 3))
    fleet[first].tell(Outcome.COMMITTED)
    before = fleet[first].wish()
    assert before is not None
    assert before.release == 2
    weights = {"serving_release": 1, "serving_weights": _weights(viewer, 1)}
    fleet[second].tell(outcome, **weights)
    halted = look(viewer, rollout)
    assert [wave["state"] for wave in halted["waves"]] == ["succeeded", "halted", "waiting"]
    assert (halted["state"], halted["exposed"], halted["failed"]) == ("halted", 2, 1)
    assert outcome.value in halted["reason"]
    assert "31 of 200 samples went wrong" in halted["reason"]
    back = fleet[first].wish()
    assert back is not None
    assert (back.release, back.path) == (1, ()), "the release is still in a slot: nothing is sent"
    assert back.assignment > before.assignment
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        given = session.execute(select(Assignment.device_id, Assignment.number).order_by(Assignment.counter)).all()
    numbers = {one: [number for device, number in given if str(device) == one] for one in fleet}
    assert numbers == {first: [1, 2, 1], second: [1, 2, 1], third: [1]}
    actions = [entry["action"] for entry in made(viewer.get("/api/v1/audit"))["items"]]
    assert "rollout.halt" in actions


def _weights(viewer: Api, number: int) -> str:
    weights: str = made(viewer.get(f"/api/v1/models/mnist/releases/{number}"))["weights"]
    return weights


def test_a_device_that_says_it_committed_but_serves_other_weights_counts_as_failed(
    releaser: Api, viewer: Api, fleet: dict[str, TestDevice]
) -> None:
    rollout = begin(releaser, 2, ["1", "100%"])
    (first,) = in_wave(viewer, rollout, 1)
    fleet[first].tell(Outcome.COMMITTED, serving_weights="sha256:" + "00" * 32)
    assert look(viewer, rollout)["state"] == "halted"


def test_a_first_install_that_fails_leaves_no_wish_behind(
    releaser: Api, viewer: Api, fleet: dict[str, TestDevice]
) -> None:
    rollout = begin(releaser, 1, ["1", "100%"])
    (first,) = in_wave(viewer, rollout, 1)
    fleet[first].tell(Outcome.REFUSED)
    assert look(viewer, rollout)["state"] == "halted"
    assert fleet[first].wish() is None


def test_a_late_report_after_the_halt_changes_nothing_but_the_record(
    releaser: Api, viewer: Api, fleet: dict[str, TestDevice]
) -> None:
    rollout = begin(releaser, 1, ["2", "100%"])
    one, other = in_wave(viewer, rollout, 1)
    late = fleet[other].wish()
    assert late is not None
    fleet[one].tell(Outcome.REFUSED)
    assert fleet[other].send(fleet[other].report(late, Outcome.COMMITTED)).status_code == 204
    halted = look(viewer, rollout)
    assert (halted["state"], halted["committed"]) == ("halted", 1)


def test_a_paused_rollout_opens_nothing_until_it_is_resumed(
    operator: Api, releaser: Api, viewer: Api, fleet: dict[str, TestDevice]
) -> None:
    rollout = begin(releaser, 2, ["1", "100%"])
    (first,) = in_wave(viewer, rollout, 1)
    made(operator.post(f"/api/v1/rollouts/{rollout['id']}/pause", json={"reason": "lunch"}))
    fleet[first].tell(Outcome.COMMITTED)
    paused = look(viewer, rollout)
    assert (paused["state"], paused["reason"]) == ("paused", "lunch")
    assert [wave["state"] for wave in paused["waves"]] == ["open", "waiting"]
    resumed = made(operator.post(f"/api/v1/rollouts/{rollout['id']}/resume", json={"reason": "back"}))
    assert [wave["state"] for wave in resumed["waves"]] == ["succeeded", "open"]


def test_an_aborted_rollout_takes_the_release_back(operator: Api, releaser: Api, fleet: dict[str, TestDevice]) -> None:
    everyone_on_1(releaser, fleet)
    rollout = begin(releaser, 2, ["2", "100%"])
    aborted = made(operator.post(f"/api/v1/rollouts/{rollout['id']}/abort", json={"reason": "wrong dataset"}))
    assert (aborted["state"], aborted["reason"]) == ("aborted", "wrong dataset")
    wishes = [device.wish() for device in fleet.values()]
    assert [wish.release for wish in wishes if wish is not None] == [1, 1, 1]
    answer = operator.post(f"/api/v1/rollouts/{rollout['id']}/abort", json={"reason": "again"})
    assert (answer.status_code, answer.json()["code"]) == (409, "rollout.wrong-state")


@pytest.mark.parametrize("verb", ["pause", "resume", "start", "promote"])
@pytest.mark.usefixtures("fleet")
def test_what_has_ended_cannot_be_moved(operator: Api, releaser: Api, verb: str) -> None:
    rollout = begin(releaser, 2, ["100%"])
    made(operator.post(f"/api/v1/rollouts/{rollout['id']}/abort", json={"reason": "stop"}))
    answer = operator.post(f"/api/v1/rollouts/{rollout['id']}/{verb}", json={"reason": "r"})
    assert answer.json()["code"] == "rollout.wrong-state"


@pytest.mark.usefixtures("fleet")
def test_a_second_rollout_of_a_model_is_refused_while_one_runs(operator: Api, releaser: Api) -> None:
    running = begin(releaser, 1, ["1", "100%"])
    draft = made(releaser.post("/api/v1/rollouts", json={"model": "mnist", "release": 2, "waves": ["100%"]}))
    answer = operator.post(f"/api/v1/rollouts/{draft['id']}/start", json={"reason": "it is time"})
    assert (answer.status_code, answer.json()["code"]) == (409, "rollout.busy")
    assert running["id"] in answer.json()["detail"]


def test_a_rollout_of_named_devices_leaves_the_others_alone(
    releaser: Api, viewer: Api, fleet: dict[str, TestDevice]
) -> None:
    chosen, *others = fleet
    rollout = begin(releaser, 2, ["100%"], devices=[chosen])
    fleet[chosen].tell(Outcome.COMMITTED)
    assert look(viewer, rollout)["state"] == "succeeded"
    assert [fleet[one].wish() for one in others] == [None, None]


def test_a_plan_that_ends_early_leaves_devices_without_a_wave(
    releaser: Api, viewer: Api, fleet: dict[str, TestDevice]
) -> None:
    rollout = begin(releaser, 2, ["1"])
    (first,) = in_wave(viewer, rollout, 1)
    fleet[first].tell(Outcome.COMMITTED)
    ended = look(viewer, rollout)
    assert (ended["state"], ended["unplaced"]) == ("succeeded", 2)


def test_an_update_is_offered_from_what_the_device_holds(
    releaser: Api, viewer: Api, fleet: dict[str, TestDevice]
) -> None:
    everyone_on_1(releaser, fleet)
    rollout = begin(releaser, 2, ["1", "100%"])
    wish = fleet[in_wave(viewer, rollout, 1)[0]].wish()
    assert wish is not None
    assert (wish.path, wish.assigned.full) == (("mnist/2/from-1",), "mnist/2/full")


def test_a_device_that_joins_after_the_whole_fleet_was_reached_is_assigned_the_release(
    app: FastAPI, operator: Api, releaser: Api, fleet: dict[str, TestDevice]
) -> None:
    everyone_on_1(releaser, fleet)
    (newcomer,) = join(app, operator, 1)
    wish = newcomer.wish()
    assert wish is not None
    assert (wish.release, wish.path) == (1, ("mnist/1/full",))


def test_a_device_that_joins_while_the_rollout_runs_is_assigned_the_release_when_it_succeeds(
    app: FastAPI, operator: Api, releaser: Api, viewer: Api, fleet: dict[str, TestDevice]
) -> None:
    rollout = begin(releaser, 2, ["1", "100%"])
    (late,) = join(app, operator, 1)
    assert late.wish() is None
    for ordinal in (1, 2):
        for one in in_wave(viewer, rollout, ordinal):
            fleet[one].tell(Outcome.COMMITTED)
    wish = late.wish()
    assert wish is not None
    assert wish.release == 2


def test_a_halted_rollout_does_not_decide_what_newcomers_get(
    app: FastAPI, operator: Api, releaser: Api, viewer: Api, fleet: dict[str, TestDevice]
) -> None:
    everyone_on_1(releaser, fleet)
    rollout = begin(releaser, 2, ["1", "100%"])
    fleet[in_wave(viewer, rollout, 1)[0]].tell(Outcome.REFUSED, serving_release=1)
    (newcomer,) = join(app, operator, 1)
    wish = newcomer.wish()
    assert wish is not None
    assert wish.release == 1


@pytest.mark.usefixtures("fleet")
def test_a_rollout_waits_no_more_for_a_device_that_was_revoked(operator: Api, releaser: Api, viewer: Api) -> None:
    rollout = begin(releaser, 2, ["1", "100%"])
    (first,) = in_wave(viewer, rollout, 1)
    made(operator.post(f"/api/v1/devices/{first}/revoke", json={"reason": "stolen"}))
    assert [wave["state"] for wave in look(viewer, rollout)["waves"]] == ["succeeded", "open"]


def test_a_rollout_to_what_everyone_has_succeeds_at_once(releaser: Api, fleet: dict[str, TestDevice]) -> None:
    everyone_on_1(releaser, fleet)
    again = begin(releaser, 1, ["1", "100%"])
    assert (again["state"], again["exposed"], again["committed"]) == ("succeeded", 0, 3)


def test_a_rollout_to_an_empty_fleet_succeeds_and_decides_what_newcomers_get(
    app: FastAPI, operator: Api, releaser: Api
) -> None:
    published(app)
    assert begin(releaser, 1, ["1", "100%"])["state"] == "succeeded"
    token = made(operator.post("/api/v1/enrolment-tokens", json={}))["token"]
    answer = EnrolAnswer.from_json(enrol(app, token, "first").content)
    (model,) = made(operator.get(f"/api/v1/devices/{answer.device}"))["models"]
    assert model["assigned"] == 1


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"model": "nope"}, 404, "no model called 'nope'"),
        ({"release": 9}, 404, "mnist has no release 9"),
        ({"waves": []}, 422, "waves"),
        ({"waves": ["all"]}, 422, "wave 'all'"),
        ({"waves": ["50%", "10%"]}, 422, "reaches no further"),
        ({"devices": []}, 422, "name each device"),
        ({"devices": ["00000000-0000-7000-8000-000000000000"]}, 404, "no device"),
        ({"colour": "red"}, 422, "colour"),
    ],
)
@pytest.mark.usefixtures("fleet")
def test_a_rollout_that_cannot_be_is_refused_with_the_reason(
    releaser: Api, change: dict[str, Any], status: int, words: str
) -> None:
    body = {"model": "mnist", "release": 2, "waves": ["100%"]} | change
    answer = releaser.post("/api/v1/rollouts", json=body)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["detail"]


@pytest.mark.usefixtures("fleet")
def test_an_operator_may_start_but_not_draft_and_a_viewer_neither(operator: Api, releaser: Api, viewer: Api) -> None:
    body = {"model": "mnist", "release": 2, "waves": ["100%"]}
    assert operator.post("/api/v1/rollouts", json=body).json()["code"] == "access.scope"
    draft = made(releaser.post("/api/v1/rollouts", json=body))
    assert viewer.post(f"/api/v1/rollouts/{draft['id']}/start", json={"reason": "it is time"}).status_code == 403
    assert operator.post(f"/api/v1/rollouts/{draft['id']}/start", json={"reason": "it is time"}).status_code == 200


def test_reports_that_come_at_once_open_the_next_wave_once(
    app: FastAPI, operator: Api, releaser: Api, viewer: Api
) -> None:
    published(app)
    devices = {str(device.id): device for device in join(app, operator, 8)}
    rollout = begin(releaser, 1, ["5", "100%"])
    answers = []

    def tell(device: TestDevice) -> None:
        wish = device.wish()
        assert wish is not None
        answers.append(device.send(device.report(wish, Outcome.COMMITTED)).status_code)

    threads = [threading.Thread(target=tell, args=(devices[one],)) for one in in_wave(viewer, rollout, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [204] * 5
    after = look(viewer, rollout)
    assert [wave["state"] for wave in after["waves"]] == ["succeeded", "open"]
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        counters = session.scalars(select(Assignment.counter)).all()
    assert counters == [1] * 8


def test_two_rollouts_over_the_same_devices_do_not_block_each_other(
    app: FastAPI, operator: Api, releaser: Api, viewer: Api
) -> None:
    for model in ("mnist", "pcb"):
        published(app, model=model)
    devices = {str(device.id): device for device in join(app, operator, 6)}
    rollouts = [begin(releaser, 1, ["3", "100%"], model=model) for model in ("mnist", "pcb")]
    failures = []

    def tell(device: TestDevice) -> None:
        for model in ("mnist", "pcb"):
            wish = device.wish(model)
            if wish is not None:
                answer = device.send(device.report(wish, Outcome.COMMITTED))
                failures.extend([] if answer.status_code == 204 else [answer.text])

    for _ in range(2):
        threads = [threading.Thread(target=tell, args=(device,)) for device in devices.values()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []
    assert [look(viewer, rollout)["state"] for rollout in rollouts] == ["succeeded", "succeeded"]


@pytest.mark.usefixtures("fleet")
def test_the_database_refuses_states_that_cannot_be(app: FastAPI, releaser: Api) -> None:
    begin(releaser, 2, ["1", "100%"])
    database = app.state.database
    with database.transaction(DEFAULT_PROJECT) as session:
        rollout = session.scalars(select(Rollout)).one()
        part = session.scalars(select(RolloutDevice).where(RolloutDevice.exposed_by.is_(None))).first()
        assert part is not None

    def refused(change: Any, words: str) -> None:
        with pytest.raises(IntegrityError, match=words), database.transaction(DEFAULT_PROJECT) as session:
            change(session)

    def set_on(table: type[Any], **values: Any) -> Any:
        def change(session: Any) -> None:
            for row in session.scalars(select(table)):
                for name, value in values.items():
                    setattr(row, name, value)

        return change

    refused(set_on(Rollout, state="succeeded"), "what_ended_has_an_end")
    refused(set_on(Rollout, started_at=None), "what_runs_was_started")
    refused(set_on(Rollout, state="done"), "state_is_known")
    refused(set_on(Wave, state="open"), "waves_are_opened_before_they_end|one_open")
    refused(set_on(RolloutDevice, state="exposed"), "exposure_is_assigned")
    refused(set_on(RolloutDevice, state="waiting"), "who_waits_is_not_exposed")
    refused(set_on(RolloutDevice, returned_by=1), "a_return")
    twin = Rollout(
        model_id=rollout.model_id,
        number=1,
        state="paused",
        whole_fleet=True,
        created_by="x",
        started_at=rollout.started_at,
    )
    refused(lambda session: session.add(twin), "one_at_a_time")


def test_the_audit_log_says_what_a_rollout_was_before_and_is_after(
    app: FastAPI, operator: Api, releaser: Api, viewer: Api
) -> None:
    published(app)
    join(app, operator, 2)
    rollout = made(releaser.post("/api/v1/rollouts", json={"model": "mnist", "release": 1, "waves": ["1", "100%"]}))
    for verb in ("start", "pause", "resume", "abort"):
        made(operator.post(f"/api/v1/rollouts/{rollout['id']}/{verb}", json={"reason": "to see"}))
    asked = {"subject": f"rollout:{rollout['id']}", "sort": "created"}
    moves = made(viewer.get("/api/v1/audit", params=asked))["items"][1:]
    assert [(move["before"]["state"], move["after"]["state"]) for move in moves] == [
        ("draft", "running"),
        ("running", "paused"),
        ("paused", "running"),
        ("running", "aborted"),
    ]
    assert {move["address"] for move in moves} == {"127.0.0.1"}
