"""Nobody of one project reaches, changes or learns of anything of another, over any route that there is.

The default project has one of everything. A second project's people and device then call every route with its ids and
names: they are answered as if those did not exist, word for word.
"""

import json
import re
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest
from fastapi import FastAPI
from fleet_calls import TestDevice, enrol, join, made, published, signed_in
from http_calls import Api, as_scope
from route_scopes import TABLE, routes_of
from sqlalchemy import func, select

from sprat_server.access.tokens import Scope
from sprat_server.api.poll import PATH as POLL_PATH
from sprat_server.db.base import Base
from sprat_server.db.projects import DEFAULT_PROJECT, ProjectOwned
from sprat_server.fleet.models import EnrolmentRequest
from sprat_server.jobs import service as jobs
from sprat_server.observe.actors import SYSTEM
from sprat_server.publish.models import DraftMetadata
from sprat_server.registry.models import Dataset, Release, UpdateFile
from sprat_server.sharing import records as sharing
from sprat_server.sites.models import Site, SitePlanRow, SiteTask
from sprat_shared.protocol.measures_report import LinkFigures, MeasuresReport, ModuleFigures
from sprat_shared.protocol.poll import PollAnswer
from sprat_shared.protocol.report import Outcome

NAMES = (
    "secret-model",
    "secret-device",
    "secret-group",
    "secret-dataset",
    "secret-asker",
    "secret-token",
    "secret-hook",
    "secret-site",
    "tell nobody",
)
"""What stands in the default project and must never be read in another's answers."""


@dataclass(frozen=True)
class Worlds:
    """The ids and names of the default project's things, and who is of the other project."""

    ids: dict[str, str]
    stranger: Api  # an admin of the other project
    device: TestDevice  # of the other project
    own: TestDevice  # of the default one


@pytest.fixture
def worlds(app: FastAPI, admin: Api, server_admin: Api) -> Worlds:
    """One of everything in the default project; a model, a device and people in another."""
    other = UUID(made(server_admin.post("/api/v1/projects", json={"name": "other"}))["id"])
    published(app, model="secret-model")
    published(app, model="secret-model", base=1)
    blob = made(
        admin.post("/api/v1/blobs", content=b"tell nobody", headers={"Content-Type": "application/octet-stream"})
    )
    own = join(app, admin, 1)[0]
    token = made(admin.post("/api/v1/tokens", json={"name": "secret-token", "scopes": ["viewer"]}))
    assert enrol(app, None, "secret-asker").status_code == 202
    everyone = 'name != "nobody"'
    made(admin.post("/api/v1/groups", json={"name": "secret-model", "where": everyone}))
    made(admin.post("/api/v1/webhooks", json={"name": "secret-hook", "url": "https://hooks.example.com/x"}))
    rollout = made(admin.post("/api/v1/rollouts", json={"model": "secret-model", "release": 2, "waves": ["100%"]}))
    made(admin.post(f"/api/v1/rollouts/{rollout['id']}/start", json=REASON))
    own.tell(Outcome.COMMITTED, "secret-model")
    made(admin.request("PUT", "/api/v1/models/secret-model/policy", json={"min_samples": 7}))
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        session.add(_dataset())
        session.add(_draft())
        job = jobs.enqueue(session, kind="retrain", args={"model": "secret-model"}, by=SYSTEM)
        asked = session.scalars(select(EnrolmentRequest.id)).one()
        plan = sharing.add(session, asked={}, result={"chosen": []}, by="secret-asker", refit_of=None)
        session.add(SiteTask(name="secret-model", graph={}, deadline_s=1.0, created_by="secret-asker"))
        site = Site(name="secret-site", hold_s=1.0, switch_s=1.0, auto_repair=False, created_by="secret-asker")
        session.add(site)
        session.flush()
        session.add(
            SitePlanRow(
                site_id=site.id,
                number=1,
                asked={},
                content={"modules": {}, "tasks": {}, "placement": None, "tests": []},
                made_by="secret-asker",
            )
        )
        release = session.scalars(select(Release).where(Release.number == 2)).one()
        update = session.scalars(select(UpdateFile.blob).where(UpdateFile.base_number == 1)).one()
        graph, full = release.graph_digest, release.weights_blob
    published(app, model="own-model", project_id=other)
    stranger = as_scope(app, Scope.ADMIN, other)
    ids = {
        "rollout_id": rollout["id"],
        "plan_id": str(plan.id),
        "device_id": str(own.id),
        "token_id": token["id"],
        "job_id": str(job.id),
        "webhook": "secret-hook",
        "event_id": made(admin.get("/api/v1/events"))["items"][0]["id"],
        "request_id": str(asked),
        "name": "secret-model",
        "site": "secret-site",
        "plan": "1",
        "device": own.name,
        "number": "2",
        "project": "default",
        "digest": "sha256:" + "7" * 64,
        "draft": "sha256:" + "5" * 64,
        "blob": blob["digest"],
        "update": update,
        "graph": graph,
        "full": full,
    }
    return Worlds(ids, stranger, join(app, stranger, 1, other)[0], own)


def _dataset() -> Dataset:
    return Dataset(
        digest="sha256:" + "7" * 64,
        name="secret-dataset",
        bytes=10,
        format="npz",
        samples=3,
        input_shape=[2],
        input_dtype=str(np.dtype("float32")),
        classes=2,
        train=1,
        validation=1,
        test=1,
        given_split=True,
    )


def _draft() -> DraftMetadata:
    return DraftMetadata(
        role="targets", version=9, body=b"{}", digest="sha256:" + "5" * 64, reason="secret-model", created_by="me"
    )


REASON = {"reason": "because"}
NOTHING_MEASURED = MeasuresReport(device=UUID(int=0), sequence=1_000, modules=(), links=(), agent="1")
RETRAIN = {"dataset": "{digest}"}
TASK = {
    "name": "mine",
    "inputs": {"x": "float32[n]"},
    "steps": {"see": {"model": "own-model", "inputs": {"x": "x"}}},
    "outputs": {"y": "see.y"},
}
SIGNATURE = {"keyid": "0" * 64, "signature": "0" * 128}

# Routes that name a thing, in the path or the body: what a stranger sends. Each is answered 404 (or, where the thing
# stands in a body or a query, as that route answers names that do not exist), in the words for what does not exist.
NAMED: dict[tuple[str, str], list[dict[str, Any]]] = {
    ("DELETE", "/api/v1/tokens/{token_id}"): [{}],
    ("GET", "/api/v1/projects/{project}"): [{}],
    ("GET", "/api/v1/models/{name}"): [{}],
    ("GET", "/api/v1/models/{name}/releases"): [{}],
    ("POST", "/api/v1/models/{name}/releases"): [{"json": {"weights": "{full}"}}],
    ("GET", "/api/v1/models/{name}/releases/{number}"): [{}],
    ("GET", "/api/v1/models/{name}/updates"): [{}],
    ("POST", "/api/v1/models/{name}/releases/{number}/draft"): [{}],
    ("POST", "/api/v1/models/{name}/retrain"): [{"json": RETRAIN}],
    ("POST", "/api/v1/models/{name}/releases/{number}/certify"): [{"json": {"against": 1, **RETRAIN}}],
    ("GET", "/api/v1/models/{name}/policy"): [{}],
    ("PUT", "/api/v1/models/{name}/policy"): [{"json": {"min_samples": 1}}],
    ("DELETE", "/api/v1/models/{name}/policy"): [{}],
    ("GET", "/api/v1/models/{name}/drift"): [{}],
    ("GET", "/api/v1/models/{name}/drift-policy"): [{}],
    ("PUT", "/api/v1/models/{name}/drift-policy"): [{"json": {"max_input_drift": 0.3, "min_devices": 3}}],
    ("DELETE", "/api/v1/models/{name}/drift-policy"): [{}],
    ("POST", "/api/v1/models/{name}/drift/stop"): [{"json": REASON}],
    ("POST", "/api/v1/models/{name}/drift/resume"): [{"json": REASON}],
    ("POST", "/api/v1/sharing/plans"): [
        {"json": {"models": ["own-model", "other-model"], "dataset": "{digest}"}},
    ],
    ("GET", "/api/v1/sharing/plans/{plan_id}"): [{}],
    ("GET", "/api/v1/sharing/plans/{plan_id}/preview"): [{}],
    ("POST", "/api/v1/sharing/plans/{plan_id}/apply"): [{"json": {}}],
    ("POST", "/api/v1/sharing/plans/{plan_id}/undo"): [{"json": REASON}],
    ("POST", "/api/v1/sharing/plans/{plan_id}/refit"): [{}],
    ("POST", "/api/v1/tasks"): [
        {"json": TASK | {"steps": {"see": {"model": "{name}", "inputs": {"x": "x"}}}}},
        {"json": TASK | {"test": {"dataset": "{digest}", "input": "x", "output": "y"}}},
    ],
    ("POST", "/api/v1/tasks/split"): [
        {
            "json": {
                "name": "mine",
                "recipe": {"factory": "x.y:build", "config": {}},
                "weights": "{full}",
                "example": {"shape": [1, 2]},
                "parts": {"own-model": "part"},
            }
        },
    ],
    ("GET", "/api/v1/tasks/{name}"): [{}],
    ("DELETE", "/api/v1/tasks/{name}"): [{}],
    ("POST", "/api/v1/sites"): [{"json": {"name": "mine", "devices": [{"name": "{device}"}]}}],
    ("GET", "/api/v1/sites/{site}"): [{}],
    ("GET", "/api/v1/sites/{site}/measures"): [{}],
    ("PUT", "/api/v1/sites/{site}"): [{"json": {"devices": [{"name": "own"}]}}],
    ("DELETE", "/api/v1/sites/{site}"): [{}],
    ("POST", "/api/v1/sites/{site}/repair"): [{"json": {}}],
    ("GET", "/api/v1/sites/{site}/plans"): [{}],
    ("POST", "/api/v1/sites/{site}/plans"): [{"json": {"tasks": ["{name}"], "hosts": {}}}],
    ("GET", "/api/v1/sites/{site}/plans/{plan}"): [{}],
    ("GET", "/api/v1/sites/{site}/plans/{plan}/preview"): [{}],
    ("POST", "/api/v1/sites/{site}/plans/{plan}/apply"): [{}],
    ("POST", "/api/v1/sites/{site}/plans/{plan}/abort"): [{"json": REASON}],
    ("POST", "/api/v1/devices/preview"): [{"json": {"group": "{name}"}}],
    ("POST", "/api/v1/devices/labels"): [{"json": {"group": "{name}", "labels": {"site": "mine"}}}],
    ("GET", "/api/v1/devices/{device_id}/labels"): [{}],
    ("PATCH", "/api/v1/devices/{device_id}/labels"): [{"json": {"site": "mine"}}],
    ("POST", "/api/v1/devices/revoke"): [{"json": {"group": "{name}", "devices": 1, "reason": "x"}}],
    ("POST", "/api/v1/devices/decommission"): [{"json": {"group": "{name}", "devices": 1, "reason": "x"}}],
    ("POST", "/api/v1/enrolment-requests/accept"): [{"json": {"requests": ["{request_id}"]}}],
    ("GET", "/api/v1/rollouts/{rollout_id}/devices"): [{}],
    ("GET", "/api/v1/groups/{name}"): [{}],
    ("PUT", "/api/v1/groups/{name}"): [{"json": {"where": 'labels.site = "lab"'}}],
    ("DELETE", "/api/v1/groups/{name}"): [{}],
    ("GET", "/api/v1/groups/{name}/devices"): [{}],
    ("GET", "/api/v1/webhooks/{webhook}"): [{}],
    ("DELETE", "/api/v1/webhooks/{webhook}"): [{}],
    ("POST", "/api/v1/webhooks/{webhook}/rotate"): [{}],
    ("POST", "/api/v1/webhooks/{webhook}/enable"): [{}],
    ("POST", "/api/v1/webhooks/{webhook}/test"): [{}],
    ("GET", "/api/v1/webhooks/{webhook}/deliveries"): [{}],
    ("POST", "/api/v1/webhooks/{webhook}/deliveries/{event_id}/replay"): [{}],
    ("GET", "/api/v1/datasets/{digest}"): [{}],
    ("GET", "/api/v1/jobs/{job_id}"): [{}],
    ("POST", "/api/v1/jobs/{job_id}/cancel"): [{}],
    ("GET", "/api/v1/rollouts/{rollout_id}"): [{}],
    ("GET", "/api/v1/rollouts/{rollout_id}/why"): [{}],
    **{
        ("POST", f"/api/v1/rollouts/{{rollout_id}}/{verb}"): [{"json": REASON}]
        for verb in ("prefetch", "start", "pause", "resume", "promote", "abort", "approve", "undo")
    },
    ("GET", "/api/v1/devices/{device_id}"): [{}],
    ("GET", "/api/v1/devices/{device_id}/reports"): [{}],
    ("POST", "/api/v1/devices/{device_id}/revoke"): [{"json": REASON}],
    ("POST", "/api/v1/devices/{device_id}/decommission"): [{"json": REASON}],
    ("POST", "/api/v1/devices/{device_id}/replace"): [{"json": {}}],
    ("POST", "/api/v1/enrolment-requests/{request_id}/accept"): [{"json": {}}],
    ("POST", "/api/v1/enrolment-requests/{request_id}/reject"): [{"json": REASON}],
    ("POST", "/api/v1/keys/drafts/{digest}/signatures"): [{"json": SIGNATURE, "of": "draft"}],
    ("POST", "/api/v1/keys/drafts/{digest}/withdraw"): [{"of": "draft"}],
    ("GET", "/blobs/sha256/{hex_digest}"): [{"of": of} for of in ("blob", "update", "graph", "full", "digest")],
    ("HEAD", "/blobs/sha256/{hex_digest}"): [{"of": "blob"}],
    ("POST", "/api/v1/models"): [
        {"json": {"name": "mine", "graph": "{graph}", "weights": "{full}", "recipe": None}},
        {
            "json": {
                "name": "mine",
                "recipe": {"factory": "x.y:build", "config": {}},
                "weights": "{full}",
                "example": None,
            }
        },
    ],
    ("POST", "/api/v1/datasets"): [{"json": {"name": "mine", "blob": "{blob}"}}],
    ("POST", "/api/v1/rollouts"): [
        {"json": {"model": "{name}", "release": 2, "waves": ["100%"]}},
        {"json": {"model": "own-model", "release": 1, "waves": ["100%"], "devices": ["{device_id}"]}},
    ],
    ("POST", "/api/v1/rollouts/plan"): [{"json": {"model": "{name}", "release": 2}}],
    ("POST", "/api/v1/rollouts/apply"): [
        {"json": {"rollout": {"name": "mine", "model": "{name}", "release": 2}}},
        {"json": {"rollout": {"name": "mine", "model": "own-model", "release": 1, "group": "{name}"}}},
    ],
    ("POST", "/api/v1/bundles"): [{"json": {"devices": ["{device_id}"]}}, {"json": {"model": "{name}"}}],
}

# Lists and sums: what they show a stranger. None of them may hold a word of the default project.
LISTS: dict[tuple[str, str], int | None] = {  # how many items; None: it is no list
    ("GET", "/api/v1/projects"): 1,
    ("GET", "/api/v1/tokens"): 1,
    ("GET", "/api/v1/audit"): 2,  # the first two of this project; its chain counts from one
    ("GET", "/api/v1/audit/chain"): None,
    ("GET", "/api/v1/events"): 2,  # a release, a device; numbered from one
    ("GET", "/api/v1/webhooks"): 0,
    ("GET", "/api/v1/models"): 1,
    ("GET", "/api/v1/sharing/plans"): 0,
    ("GET", "/api/v1/tasks"): 0,
    ("GET", "/api/v1/sites"): 0,
    ("GET", "/api/v1/groups"): 0,
    ("GET", "/api/v1/datasets"): 0,
    ("GET", "/api/v1/jobs"): 0,
    ("GET", "/api/v1/keys"): None,
    ("GET", "/api/v1/rollouts"): 0,
    ("GET", "/api/v1/devices"): 1,
    ("GET", "/api/v1/enrolment-requests"): 0,
    ("GET", "/api/v1/openapi.json"): None,
}

# Routes that name nothing of anybody's, or are for the whole server; and those of devices, which have a test below.
ELSEWHERE: dict[tuple[str, str], str] = {
    ("GET", "/healthz"): "says ok",
    ("GET", "/metrics"): "of the whole server",
    ("POST", "/api/v1/groups"): "makes one of the own project, which has the own devices: below",
    ("POST", "/api/v1/reports/savings"): "sums the own reports: below",
    ("POST", "/api/v1/webhooks"): "makes one of the own project",
    ("POST", "/api/v1/placements"): "works on what is sent",
    ("POST", "/api/v1/projects"): "of the whole server",
    ("PATCH", "/api/v1/projects/{project}"): "of the whole server",
    ("POST", "/api/v1/tokens"): "makes a token of the own project",
    ("POST", "/api/v1/keys/rotate"): "gives keys to roles of the own repository, whose models need not exist yet",
    ("POST", "/api/v1/blobs"): "stores what is sent",
    ("POST", "/api/v1/enrolment-tokens"): "makes a token of the own project",
    ("POST", "/device/v1/enrol"): "devices",
    ("POST", "/device/v1/token"): "devices",
    ("POST", "/device/v1/reports"): "devices",
    ("GET", POLL_PATH): "devices",
    ("GET", "/tuf/image/{file}"): "devices",
    ("GET", "/tuf/director/{file}"): "devices",
}


def test_every_route_is_walked_or_said_to_name_nothing(app: FastAPI) -> None:
    assert routes_of(app) == set(TABLE)
    assert set(NAMED) | set(LISTS) | set(ELSEWHERE) == set(TABLE), (
        "put a new route where a stranger is shown to get nothing"
    )
    assert len(NAMED) + len(LISTS) + len(ELSEWHERE) == len(TABLE)


def _filled(value: Any, ids: dict[str, str]) -> Any:
    if isinstance(value, str):
        return re.sub(r"\{([a-z_]+)\}", lambda match: ids[match[1]], value)
    if isinstance(value, dict):
        return {name: _filled(each, ids) for name, each in value.items()}
    return [_filled(each, ids) for each in value] if isinstance(value, list) else value


def _ask(api: Api, route: tuple[str, str], said: dict[str, Any], ids: dict[str, str]) -> tuple[int, str]:
    """Call a route and return status and text, with the ids taken out of it."""
    named = dict(ids)
    if "of" in said:
        named |= {"digest": ids[said["of"]], "hex_digest": ids[said["of"]].removeprefix("sha256:")}
    answer = api.request(
        route[0], _filled(route[1], named), **({"json": _filled(said["json"], ids)} if "json" in said else {})
    )
    text = answer.text
    for name, value in sorted(named.items(), key=lambda item: -len(item[1])):
        if len(value) > 5:
            text = text.replace(value, f"<{name}>").replace(value[:23], f"<start of {name}>")
    return answer.status_code, text


def _nowhere(ids: dict[str, str]) -> dict[str, str]:
    """Return ids and names of the same form that name nothing at all."""
    made_up = {}
    for name, value in ids.items():
        if value.startswith("sha256:"):
            made_up[name] = "sha256:" + uuid4().hex * 2
        elif name.endswith("_id"):
            made_up[name] = str(uuid4())
        else:
            made_up[name] = value if name in {"number", "plan"} else f"nowhere-{value}"
    return made_up


def _counts(app: FastAPI) -> dict[str, int]:
    """Return how many rows the default project has, by table."""
    owned = [mapper.class_ for mapper in Base.registry.mappers if issubclass(mapper.class_, ProjectOwned)]
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        return {each.__tablename__: session.scalar(select(func.count()).select_from(each)) or 0 for each in owned}


def test_what_is_named_of_another_project_does_not_exist_in_the_same_words(app: FastAPI, worlds: Worlds) -> None:
    before = _counts(app)
    assert min(before[table] for table in ("model", "release", "device", "rollout", "job", "dataset", "report")) > 0
    for route, bodies in NAMED.items():
        for said in bodies:
            there = _ask(worlds.stranger, route, said, worlds.ids)
            nowhere = _ask(worlds.stranger, route, said, _nowhere(worlds.ids))
            assert there == nowhere, (route, said)
            expected = 409 if "drafts" in route[1] else 404
            assert there[0] == expected, (route, said, there)
    assert _counts(app) == before


def test_lists_and_sums_hold_nothing_of_another_project(worlds: Worlds) -> None:
    for (method, path), items in LISTS.items():
        answer = worlds.stranger.request(method, path)
        assert answer.status_code == 200, path
        if path != "/api/v1/openapi.json":
            assert not [name for name in (*NAMES, *worlds.ids.values()) if len(name) > 7 and name in answer.text], path
        if items is not None:
            assert len(answer.json()["items"]) == items, (path, answer.text)
    for path in ("/api/v1/audit", "/api/v1/events"):
        assert [one["seq"] for one in worlds.stranger.get(path).json()["items"]] == [2, 1]


def test_groups_and_sums_count_nothing_of_another_project(worlds: Worlds) -> None:
    group = made(worlds.stranger.post("/api/v1/groups", json={"name": "all", "where": 'name != "nobody"'}))
    assert group["devices"] == 1
    listed = made(worlds.stranger.get("/api/v1/groups/all/devices"))["items"]
    assert [one["id"] for one in listed] == [str(worlds.device.id)]
    counted = made(worlds.stranger.post("/api/v1/devices/preview", json={"where": 'name != "nobody"'}))
    assert (counted["count"], counted["live"]) == (1, 1)
    asked = {"where": 'name != "nobody"', "labels": {"site": "mine"}}
    assert made(worlds.stranger.post("/api/v1/devices/labels", json=asked)) == {"devices": 1}
    assert "secret" not in worlds.stranger.post("/api/v1/reports/savings", json={}).text


def test_a_device_learns_nothing_of_another_project(worlds: Worlds) -> None:
    device, ids = worlds.device, worlds.ids
    answer = device.poll()
    files = signed_in(PollAnswer.from_bytes(answer.content))
    assert not [name for name in NAMES if name in json.dumps([list(map(str, files)), list(files.values())])]
    assert set(files["image", "snapshot"]["meta"]) == {"targets.json", "m.own-model.json"}
    for digest in ("blob", "update", "graph", "full"):
        assert device.api.get(f"/blobs/sha256/{ids[digest][7:]}").status_code == 404
    for version in range(1, 4):
        assert device.api.get(f"/tuf/image/{version}.m.secret-model.json").status_code == 404
    assert device.api.get("/tuf/image/1.m.own-model.json").status_code == 200
    mine, theirs = (each.api.get("/tuf/image/1.root.json").content for each in (device, worlds.own))
    assert mine != theirs, "each project has a root of its own"
    assert worlds.own.api.get("/tuf/image/1.m.own-model.json").status_code == 404


def test_a_device_s_reports_and_joining_stay_in_its_project(app: FastAPI, worlds: Worlds) -> None:
    wish = worlds.own.wish("secret-model")
    assert wish is not None
    report = worlds.device.report(wish, Outcome.COMMITTED)
    refused = worlds.device.send(report)
    assert refused.status_code == 422
    assert refused.json()["code"] == "report.unknown-release"
    theirs = ModuleFigures(model="secret-model", release=1, tried_s=0.1)
    for modules, links, code in (
        ((theirs,), (), "report.unknown-release"),
        ((), (LinkFigures(device=worlds.own.id),), "report.unknown-device"),
    ):
        measured = replace(NOTHING_MEASURED, device=worlds.device.id, modules=modules, links=links)
        assert worlds.device.send(measured).json()["code"] == code
    before = _counts(app)
    token = made(worlds.stranger.post("/api/v1/enrolment-tokens", json={"uses": 2}))["token"]
    same = enrol(app, token, worlds.own.name, worlds.own.key)
    assert same.status_code == 201, "a name and a key of another project are free here, and nobody learns of them"
    assert _counts(app) == before
