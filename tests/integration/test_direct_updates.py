"""Direct updates: built by a worker for what devices hold, signed, and offered where they take fewest bytes."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from fastapi import FastAPI
from fleet_calls import held_after, join, made
from http_calls import Api
from lineage_calls import VALUES, Lineage, bring_to, published, queued, rebuilt, tensors, timestamp, work
from sqlalchemy import update as sql_update

from sprat_server.db.blobs import Blobs
from sprat_server.db.projects import DEFAULT_PROJECT
from sprat_server.fleet import service as fleet
from sprat_server.fleet.models import DeviceSlots
from sprat_server.flows import direct, tasks_direct, upkeep
from sprat_server.jobs import service as jobs
from sprat_server.jobs.models import Job
from sprat_server.jobs.runner import Runner
from sprat_server.observe.actors import SYSTEM
from sprat_server.publish.image import open_repository
from sprat_server.registry import paths
from sprat_server.registry import service as registry
from sprat_server.settings import Settings
from sprat_server.worker import load_tasks
from sprat_shared.encode import encode_full
from sprat_shared.errors import InvalidInput, TryLater
from sprat_shared.protocol.poll import PollAnswer
from sprat_shared.protocol.report import Outcome
from sprat_shared.wire.records import Subspace
from sprat_shared.wire.scales import nearest_scale
from sprat_shared.wire.tensors import digest_of


@pytest.fixture
def worker(app: FastAPI, settings: Settings, blobs: Blobs) -> Runner:
    """What a worker process runs jobs with."""
    load_tasks()
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        open_repository(session, settings)
    return Runner(database=app.state.database, blobs=blobs, settings=settings)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for files that are uploaded."""
    return tmp_path


@pytest.fixture
def lineage(app: FastAPI, worker: Runner, folder: Path) -> Lineage:
    """A model with three releases, each made from the one before without loss."""
    assert worker
    lineage = Lineage(app, folder)
    lineage.add(tensors())
    lineage.add(tensors(1), 1)
    lineage.add(tensors(1, 2), 2)
    return lineage


def test_a_device_two_releases_behind_gets_one_file_once_a_worker_has_built_it(
    app: FastAPI, operator: Api, worker: Runner, lineage: Lineage
) -> None:
    (device,) = join(app, operator, 1)
    bring_to(app, 1, [device])
    bring_to(app, 3, [device], commit=False)
    path, chain_bytes = rebuilt(device, lineage, 1)
    assert path == ["mnist/2/from-1", "mnist/3/from-2"]
    result = work(app, worker)
    (file,) = result["published"]
    assert (file["base"], file["release"]) == (1, 3)
    assert result["built"][0]["instead_of_bytes"] == chain_bytes + 2 * paths.FILE_BYTES
    path, direct_bytes = rebuilt(device, lineage, 1)
    assert path == ["mnist/3/from-1"]
    assert direct_bytes == file["bytes"] < 0.7 * chain_bytes


def test_of_two_siblings_the_way_from_one_to_the_other_is_built_instead_of_the_full_update(
    app: FastAPI, operator: Api, worker: Runner, lineage: Lineage
) -> None:
    (device,) = join(app, operator, 1)
    bring_to(app, 3, [device])
    with app.state.database.transaction(DEFAULT_PROJECT) as session:  # as if it had never held release 2
        session.execute(sql_update(DeviceSlots).values(previous=None))
    lineage.add(tensors(1, 4), 2)
    bring_to(app, 4, [device], commit=False)
    assert rebuilt(device, lineage, 3)[0] == ["mnist/4/full"]
    work(app, worker)
    path, received = rebuilt(device, lineage, 3)
    assert path == ["mnist/4/from-3"]
    assert received < 0.6 * len(encode_full(lineage.weights[4]))


def test_a_device_starts_from_the_release_that_it_could_go_back_to_where_that_takes_less(
    app: FastAPI, operator: Api, lineage: Lineage
) -> None:
    (device,) = join(app, operator, 1)
    bring_to(app, 2, [device])
    bring_to(app, 3, [device])
    lineage.add(tensors(1, 4), 2)
    bring_to(app, 4, [device], commit=False)
    assert rebuilt(device, lineage, 2)[0] == ["mnist/4/from-2"]
    assert queued(app) == [], "there is nothing to build"
    ways = made(operator.get("/api/v1/models/mnist/updates"))["items"]
    assert [(way["base"], way["devices"], way["way"]) for way in ways] == [
        (4, 0, "none"),
        (3, 0, "full"),
        (2, 1, "direct"),
        (1, 0, "chain"),
    ]


@pytest.mark.parametrize("outcome", [Outcome.ROLLED_BACK, None], ids=["rolled back", "superseded unheard"])
def test_after_a_trial_the_release_before_the_last_is_not_believed_to_be_there(
    app: FastAPI, operator: Api, lineage: Lineage, outcome: Outcome | None
) -> None:
    (device,) = join(app, operator, 1)
    bring_to(app, 1, [device])
    bring_to(app, 2, [device])
    bring_to(app, 3, [device], commit=False)
    if outcome is not None:
        device.tell(outcome, serving_release=2, serving_weights=digest_of(lineage.weights[2]))
    lineage.add(tensors(5), 1)
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        model = registry.get_model(session, "mnist")
        fleet.assign(session, model.id, {device.id: 4}, "rollout")
    wish = device.wish()
    assert wish is not None
    assert wish.path != ("mnist/4/from-1",)


def test_a_refused_release_leaves_the_one_before_where_it_was(app: FastAPI, operator: Api, lineage: Lineage) -> None:
    (device,) = join(app, operator, 1)
    bring_to(app, 1, [device])
    bring_to(app, 2, [device])
    bring_to(app, 3, [device], commit=False)
    device.tell(Outcome.REFUSED, serving_release=2, serving_weights=digest_of(lineage.weights[2]))
    lineage.add(tensors(5), 1)
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        fleet.assign(session, registry.get_model(session, "mnist").id, {device.id: 4}, "rollout")
    wish = device.wish()
    assert wish is not None
    assert wish.path == ("mnist/4/from-1",)


@pytest.mark.usefixtures("lineage")
def test_what_was_built_once_is_not_built_again(
    app: FastAPI, operator: Api, worker: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    (device,) = join(app, operator, 1)
    bring_to(app, 1, [device])
    work(app, worker)
    before = published(app)
    versions = timestamp(app)
    monkeypatch.setattr(tasks_direct, "direct_update", None)  # any build would fail
    assert upkeep.ask_for_direct(app.state.database) == []
    bring_to(app, 3, [device], commit=False)
    assert queued(app) == []
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        jobs.enqueue(session, kind=direct.JOB_KIND, args={"model": "mnist"}, by=SYSTEM)
    assert work(app, worker) == {"model": "mnist", "built": [], "published": []}
    assert (published(app), timestamp(app)) == (before, versions)


def test_a_release_sets_off_a_build_for_the_devices_that_it_leaves_behind(
    app: FastAPI, operator: Api, worker: Runner, lineage: Lineage
) -> None:
    old, older = join(app, operator, 2)
    bring_to(app, 1, [older])
    bring_to(app, 2, [old])
    work(app, worker)
    assert queued(app) == []
    lineage.add(tensors(1, 2, 6), 3)
    assert {(one["base"], one["release"]) for one in work(app, worker)["built"]} == {(1, 4), (2, 4)}
    assert {(1, 3), (1, 4), (2, 4)} <= published(app)


@pytest.mark.usefixtures("lineage")
def test_a_device_that_turns_up_with_an_old_release_sets_off_a_build(app: FastAPI, operator: Api) -> None:
    (device,) = join(app, operator, 1)
    bring_to(app, 1, [device], commit=False)
    assert queued(app) == [], "no device holds anything yet"
    device.tell(Outcome.COMMITTED)
    assert len(queued(app)) == 1


@pytest.mark.usefixtures("lineage")
def test_however_many_ask_at_once_one_job_is_queued(app: FastAPI, operator: Api) -> None:
    first, second = join(app, operator, 2)
    bring_to(app, 1, [first, second], commit=False)
    database = app.state.database
    with database.transaction(DEFAULT_PROJECT) as session:
        model_id = registry.get_model(session, "mnist").id
        for device in (first, second):
            now = datetime.now(UTC)
            session.add(
                DeviceSlots(device_id=device.id, model_id=model_id, active=1, outcome="committed", reported_at=now)
            )
    with ThreadPoolExecutor(8) as pool:
        asked = list(pool.map(lambda _: upkeep.ask_for_direct(database), range(16)))
    assert asked.count(["mnist"]) == 1
    assert len(queued(app)) == 1


def test_a_job_that_is_taken_up_again_goes_on_after_what_was_built(
    app: FastAPI, operator: Api, worker: Runner, lineage: Lineage, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, older = join(app, operator, 2)
    bring_to(app, 1, [older])
    bring_to(app, 2, [old])
    lineage.add(tensors(1, 2, 6), 3)
    whole, calls = tasks_direct.direct_update, []

    def dies_at_the_second(*args: Any, **more: Any) -> bytes:
        calls.append(args)
        if len(calls) == 2:
            raise TryLater("the worker is about to die")
        return whole(*args, **more)

    monkeypatch.setattr(tasks_direct, "direct_update", dies_at_the_second)
    ((job, queue_id),) = queued(app)
    worker.run(job, queue_id)
    assert {(None, 4), (3, 4)} == {pair for pair in published(app) if pair[1] == 4}, "nothing was signed yet"
    result = work(app, worker)
    assert len(result["built"]) == 1
    assert {(1, 4), (2, 4)} <= published(app)
    assert len(calls) == 3


def test_one_job_builds_a_bounded_number_and_asks_for_the_next(
    app: FastAPI, operator: Api, worker: Runner, lineage: Lineage, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, older = join(app, operator, 2)
    bring_to(app, 1, [older])
    bring_to(app, 2, [old])
    lineage.add(tensors(1, 2, 6), 3)
    monkeypatch.setattr(tasks_direct, "_MOST_AT_ONCE", 1)
    assert len(work(app, worker)["built"]) == 1
    assert len(work(app, worker)["built"]) == 1
    assert queued(app) == []


@pytest.mark.usefixtures("lineage")
def test_a_direct_update_that_saves_less_than_its_description_costs_the_fleet_is_not_published_until_it_pays(
    app: FastAPI, operator: Api, worker: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    (device,) = join(app, operator, 1)
    monkeypatch.setattr(direct, "SIGNING_BYTES", 100_000)
    bring_to(app, 1, [device])
    result = work(app, worker)
    assert result["built"]
    assert result["published"] == []
    assert upkeep.ask_for_direct(app.state.database) == []
    monkeypatch.undo()
    assert upkeep.ask_for_direct(app.state.database) == ["mnist"]
    assert work(app, worker)["built"] == []
    assert (1, 3) in published(app)


def test_a_description_costs_about_what_is_reckoned_with(
    app: FastAPI, operator: Api, worker: Runner, lineage: Lineage
) -> None:
    old, older = join(app, operator, 2)
    bring_to(app, 1, [older])
    bring_to(app, 2, [old])
    lineage.add(tensors(1, 2, 6), 3)
    first = PollAnswer.from_bytes(old.poll().content)
    held = held_after(first)
    result = work(app, worker)
    body = old.poll(held=list(held)).content
    files = len(result["published"])
    answer = PollAnswer.from_bytes(body, b"".join(held.values()))
    assert [part.name.partition("/")[0] for part in answer.parts] == ["image"] * 3
    reckoned = direct.SIGNING_BYTES + files * direct.TARGET_BYTES
    assert 0.9 * reckoned < len(body) < 1.1 * reckoned


def test_a_chain_that_takes_fewer_bytes_than_any_one_file_stays(
    app: FastAPI, operator: Api, worker: Runner, folder: Path
) -> None:
    lineage = Lineage(app, folder)
    lineage.add(tensors())
    for base in (1, 2):  # what two files drew with their own seeds does not stand in one
        q = np.random.default_rng(base).integers(-9, 10, 16, np.int16)
        lineage.add_record(Subspace(0, nearest_scale(1e-3), base, q), base)
    (device,) = join(app, operator, 1)
    bring_to(app, 1, [device])
    bring_to(app, 3, [device], commit=False)
    result = work(app, worker)
    assert [(one["base"], one["release"], one["bytes"]) for one in result["built"]] == [(1, 3, None)]
    assert result["published"] == []
    path, received = rebuilt(device, lineage, 1)
    assert path == ["mnist/2/from-1", "mnist/3/from-2"]
    assert received < 0.01 * 4 * VALUES
    assert upkeep.ask_for_direct(app.state.database) == []


@pytest.mark.usefixtures("lineage")
def test_releases_that_cannot_be_told_apart_by_an_update_are_left_alone(
    app: FastAPI, operator: Api, worker: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_args: Any, **_more: Any) -> bytes:
        raise InvalidInput("these cannot be")

    (device,) = join(app, operator, 1)
    bring_to(app, 1, [device])
    monkeypatch.setattr(tasks_direct, "direct_update", refuses)
    assert work(app, worker)["built"] == [{"base": 1, "release": 3, "bytes": None, "instead_of_bytes": mock.ANY}]
    assert queued(app) == []
    assert upkeep.ask_for_direct(app.state.database) == []


@pytest.mark.usefixtures("lineage")
def test_after_a_job_that_failed_or_was_cancelled_nobody_asks_at_once_again(app: FastAPI, operator: Api) -> None:
    (device,) = join(app, operator, 1)
    bring_to(app, 1, [device])
    ((job, _),) = queued(app)
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        jobs.cancel(session, job)
    assert upkeep.ask_for_direct(app.state.database) == []
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        session.get_one(Job, job).ended_at = datetime.now(UTC) - timedelta(days=1)
    assert upkeep.ask_for_direct(app.state.database) == ["mnist"]


@pytest.mark.usefixtures("lineage")
def test_the_ways_to_a_release_are_shown_with_their_bytes(
    app: FastAPI, operator: Api, viewer: Api, worker: Runner
) -> None:
    first, second = join(app, operator, 2)
    bring_to(app, 1, [first])
    bring_to(app, 2, [second])
    ways = made(viewer.get("/api/v1/models/mnist/updates"))["items"]
    assert [(way["base"], way["to"], way["devices"], way["way"], way["files"]) for way in ways] == [
        (3, 3, 0, "none", 0),
        (2, 3, 1, "direct", 1),
        (1, 3, 1, "chain", 2),
    ]
    assert ways[1]["share"] == ways[1]["bytes"] / (4 * VALUES)
    work(app, worker)
    one = made(viewer.get("/api/v1/models/mnist/updates", params={"limit": 1, "to": 3}))
    assert one["items"] == ways[:1]
    rest = made(viewer.get("/api/v1/models/mnist/updates", params={"cursor": one["next"]}))["items"]
    assert rest[0] == ways[1]
    assert (rest[1]["way"], rest[1]["files"], rest[1]["path"]) == ("direct", 1, ["mnist/3/from-1"])
    assert rest[1]["bytes"] < ways[2]["bytes"]
    back = made(viewer.get("/api/v1/models/mnist/updates", params={"to": 1}))["items"]
    assert [(way["base"], way["way"]) for way in back] == [(3, "full"), (2, "full"), (1, "none")]
    assert viewer.get("/api/v1/models/mnist/updates", params={"to": 9}).json()["code"] == "release.unknown"
