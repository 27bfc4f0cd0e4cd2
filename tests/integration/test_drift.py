"""Closing the loop: what devices say leads to a word, to a retrain, to a rollout; a person can stop it."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from fastapi import FastAPI
from fleet_calls import TestDevice, join, made, published
from http_calls import Api
from poll_calls import bring_to
from sqlalchemy import select
from sqlalchemy.orm import Session

from sprat_server.db.projects import DEFAULT_PROJECT
from sprat_server.fleet.models import DriftEvent
from sprat_server.flows import drift, upkeep
from sprat_server.jobs.models import Job
from sprat_server.registry import service as registry
from sprat_server.registry.models import Dataset
from sprat_server.rollouts.models import Rollout
from sprat_shared.protocol.holdout_report import HoldoutReport
from sprat_shared.protocol.report import Evidence, Outcome

URL = "/api/v1/models/mnist"
NOTIFY = {"min_accuracy": 0.9, "min_devices": 2}
RETRAIN = NOTIFY | {
    "action": "retrain",
    "every_s": 60,
    "retrain": {"dataset": "line-3", "options": {"keep": 0.9}},
    "rollout": {"waves": ["1", "100%"], "start": True},
}


@pytest.fixture
def fleet(app: FastAPI, operator: Api) -> list[TestDevice]:
    """Three devices that run release 1 of a model that can be retrained."""
    published(app, recipe={"factory": "x.y:build", "config": {}})
    devices = join(app, operator, 3)
    bring_to(app, 1)
    for device in devices:
        device.tell(Outcome.COMMITTED)
    return devices


def say(device: TestDevice, right: int, samples: int = 100, release: int = 1) -> None:
    """A device says how many of its labelled samples the release has right."""
    device.sequence += 1
    last = (0,) * 9
    said = HoldoutReport(
        device=device.id,
        sequence=device.sequence,
        model="mnist",
        release=release,
        samples=samples,
        added=samples,
        classes=((0, samples),),
        others=0,
        confidences=(*last, samples),
        correct=(*last, right),
        agent="0.1.0",
    )
    assert device.send(said).status_code == 204


def dataset(session: Session, digit: str) -> str:
    """Put a dataset of the name there."""
    digest = "sha256:" + digit * 64
    row = Dataset(
        digest=digest,
        name="line-3",
        bytes=1,
        format="npz",
        samples=3,
        input_shape=[4],
        input_dtype="float32",
        classes=2,
        train=1,
        validation=1,
        test=1,
        given_split=False,
    )
    session.add(row)
    session.flush()
    return digest


def look(app: FastAPI, later_s: float = 0) -> str:
    """Look once; return what was decided."""
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        model = registry.get_model(session, "mnist")
        now = datetime.now(UTC) + timedelta(seconds=later_s)
        decision = drift.look(session, app.state.settings, model.id, now)
        return "-" if decision is None else decision.action.value


def end_job(app: FastAPI, job_id: UUID, release: int | None) -> None:
    """A worker ends the retrain."""
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        job = session.get_one(Job, job_id)
        job.started_at = job.ended_at = datetime.now(UTC)
        if release is None:
            job.state, job.error = "failed", {"code": "x", "message": "the samples are of another shape"}
        else:
            job.state, job.result = "succeeded", {"release": release}


def test_a_fleet_that_got_worse_is_told_of_once(
    app: FastAPI, releaser: Api, viewer: Api, fleet: list[TestDevice]
) -> None:
    assert viewer.get(f"{URL}/drift").json()["code"] == "drift.no-policy"
    made(releaser.request("PUT", f"{URL}/drift-policy", json=NOTIFY))
    say(fleet[0], 95)
    assert made(viewer.get(f"{URL}/drift"))["finding"]["verdict"] == "unknown"
    for device, right in zip(fleet, (70, 72, 71), strict=True):
        say(device, right)
    shown = made(viewer.get(f"{URL}/drift"))
    assert (shown["finding"]["verdict"], shown["finding"]["accuracy"], shown["action"]) == ("breached", 0.71, "notify")
    upkeep.look_at_drift(app.state.database, app.state.settings)
    assert look(app) == "none"
    events = made(viewer.get(f"{URL}/drift"))["events"]
    assert [(event["action"], event["outcome"]) for event in events] == [("notify", "told")]
    assert events[0]["finding"]["samples"] == 300
    newest = made(viewer.get("/api/v1/audit"))["items"][0]
    assert (newest["action"], newest["actor"], newest["subject"]) == ("drift.notify", "system:sprat", "model:mnist")
    assert look(app, later_s=2 * 86400) == "notify"
    assert look(app, later_s=30 * 86400) == "none"  # by then all words are old


def test_words_on_a_release_that_serves_no_more_do_not_count(
    app: FastAPI, releaser: Api, viewer: Api, fleet: list[TestDevice]
) -> None:
    made(releaser.request("PUT", f"{URL}/drift-policy", json=NOTIFY))
    for device in fleet:
        say(device, 50)
    published(app, base=1)
    bring_to(app, 2)
    for device in fleet[:2]:
        device.tell(Outcome.COMMITTED)
    assert made(viewer.get(f"{URL}/drift"))["finding"]["devices"] == 1


def test_inputs_that_moved_are_heard_without_labels(
    app: FastAPI, releaser: Api, viewer: Api, fleet: list[TestDevice]
) -> None:
    made(releaser.request("PUT", f"{URL}/drift-policy", json={"max_input_drift": 0.3, "min_devices": 3}))
    published(app, base=1)
    bring_to(app, 2)
    moved = Evidence(
        samples=0, old_correct=None, new_correct=0, only_old=0, only_new=0, p_worse=1, old_latency_s=None,
        new_latency_s=0.1, mode="unlabelled", input_drift=0.6,
    )  # fmt: skip
    for device in fleet:
        device.tell(Outcome.COMMITTED, evidence=moved)
    finding = made(viewer.get(f"{URL}/drift"))["finding"]
    assert (finding["verdict"], finding["drift"], finding["drifting"]) == ("breached", 0.6, 3)


def test_drift_is_retrained_and_rolled_out_once_for_each_new_dataset(
    app: FastAPI, releaser: Api, viewer: Api, fleet: list[TestDevice]
) -> None:
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        digest = dataset(session, "a")
    made(releaser.request("PUT", f"{URL}/drift-policy", json=RETRAIN))
    for device in fleet:
        say(device, 60)
    assert look(app) == "retrain"
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        job = session.scalars(select(Job).where(Job.kind == "retrain")).one()
        assert (job.args["dataset"], job.args["keep"], job.args["base"]) == (digest, 0.9, 1)
        assert job.requested_by == "system:sprat"
    assert look(app, later_s=3600) == "none"  # it runs
    published(app, base=1)
    end_job(app, job.id, release=2)
    assert look(app, later_s=3600) == "none"  # the rollout runs now
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        rollout = session.scalars(select(Rollout).where(Rollout.number == 2)).one()
        assert (rollout.state, rollout.created_by) == ("running", "system:sprat")
    event = made(viewer.get(f"{URL}/drift"))["events"][0]
    assert (event["rollout"], event["release"]) == (str(rollout.id), 2)
    assert event["outcome"] == "release 2 is being rolled out"
    made(releaser.post(f"/api/v1/rollouts/{rollout.id}/abort", json={"reason": "enough"}))
    for device in fleet:
        say(device, 60)
    assert look(app, later_s=7200) == "notify"  # no new samples
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        dataset(session, "b")
    assert look(app, later_s=10800) == "retrain"


def test_a_retrain_that_fails_is_told_and_a_draft_waits_for_a_person(
    app: FastAPI, releaser: Api, viewer: Api, fleet: list[TestDevice]
) -> None:
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        dataset(session, "a")
    by_hand = RETRAIN | {"rollout": {"waves": ["100%"], "start": False}}
    made(releaser.request("PUT", f"{URL}/drift-policy", json=by_hand))
    for device in fleet:
        say(device, 60)
    look(app)
    end_job(app, UUID(made(viewer.get(f"{URL}/drift"))["events"][0]["job"]), release=None)
    look(app)
    assert "of another shape" in made(viewer.get(f"{URL}/drift"))["events"][0]["outcome"]
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        dataset(session, "b")
    assert look(app, later_s=3600) == "retrain"
    published(app, base=1)
    end_job(app, UUID(made(viewer.get(f"{URL}/drift"))["events"][0]["job"]), release=2)
    look(app, later_s=3600)
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        rollout = session.scalars(select(Rollout).where(Rollout.number == 2)).one()
        assert rollout.state == "draft"


def test_a_person_stops_it_and_what_was_retrained_waits(
    app: FastAPI, releaser: Api, operator: Api, viewer: Api, fleet: list[TestDevice]
) -> None:
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        dataset(session, "a")
    made(releaser.request("PUT", f"{URL}/drift-policy", json=RETRAIN))
    for device in fleet:
        say(device, 60)
    assert look(app) == "retrain"
    stopped = made(operator.post(f"{URL}/drift/stop", json={"reason": "new cameras"}))
    assert stopped["stop_reason"] == "new cameras"
    published(app, base=1)
    end_job(app, UUID(made(viewer.get(f"{URL}/drift"))["events"][0]["job"]), release=2)
    assert look(app, later_s=3600) == "none"
    shown = made(viewer.get(f"{URL}/drift"))
    assert shown["events"][0]["outcome"] == "release 2 waits for a person to roll it out"
    assert shown["why"] == "stopped by a person: new cameras"
    made(releaser.request("PUT", f"{URL}/drift-policy", json=RETRAIN))  # another policy does not undo the stop
    assert look(app, later_s=3600) == "none"
    made(releaser.post(f"{URL}/drift/resume", json={"reason": "they are in"}))
    assert look(app, later_s=3600) == "notify"


@pytest.mark.usefixtures("fleet")
def test_a_policy_is_checked_and_cleared(app: FastAPI, releaser: Api, operator: Api) -> None:
    wrong = RETRAIN | {"retrain": {"dataset": "line-3", "options": {"kepe": 1}}}
    answer = releaser.request("PUT", f"{URL}/drift-policy", json=wrong)
    assert (answer.status_code, "options of the retrain" in answer.json()["detail"]) == (422, True)
    wrong = RETRAIN | {"rollout": {"waves": ["many"]}}
    assert releaser.request("PUT", f"{URL}/drift-policy", json=wrong).status_code == 422
    made(releaser.request("PUT", f"{URL}/drift-policy", json=NOTIFY))
    made(operator.delete(f"{URL}/drift-policy"))
    assert look(app) == "-"
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        assert session.scalars(select(DriftEvent)).all() == []
