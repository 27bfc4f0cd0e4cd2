"""Layers shared between models: planned by the worker, shown, applied, undone; over HTTP on a real PostgreSQL."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from fastapi import FastAPI
from fleet_calls import TestDevice, join, made
from http_calls import Api
from training_calls import carried_out, finished
from tuf.api.metadata import Metadata, Targets

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

import tiny_models

from sprat_client.agent.durable import PosixDisk
from sprat_client.agent.rebuild import RebuildStep, rebuild
from sprat_client.agent.store import TensorStore
from sprat_server.db.blobs import Blobs
from sprat_server.db.projects import DEFAULT_PROJECT
from sprat_server.jobs.runner import Runner
from sprat_server.publish import repository
from sprat_server.publish.image import open_repository
from sprat_server.settings import Settings
from sprat_server.worker import load_tasks
from sprat_shared.protocol.report import Outcome
from sprat_shared.trust.targets import UpdateTarget

Weights = Mapping[str, "np.ndarray[Any, np.dtype[np.float32]]"]
PLANS = "/api/v1/sharing/plans"


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    """Settings of a server that signs for every model by itself."""
    return Settings(database_url=database_url, data_dir=tmp_path / "data", auto_sign="*")


@pytest.fixture
def worker(app: FastAPI, settings: Settings, blobs: Blobs) -> Runner:
    """What a worker process runs jobs with."""
    load_tasks()
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        open_repository(session, settings)
    return Runner(database=app.state.database, blobs=blobs, settings=settings)


def sibling() -> dict[str, Any]:
    """Another head on nearly the trunk of the truth: a model that can use the truth's layers."""
    right = tiny_models.truth()
    rng = np.random.default_rng(21)
    near = right["0.weight"] + 1e-4 * rng.normal(size=right["0.weight"].shape)
    head = rng.normal(size=right["2.weight"].shape)
    return {**right, "0.weight": near.astype(np.float32), "2.weight": head.astype(np.float32)}


class House:
    """A server with two siblings, `face` and `gate`, a dataset, and devices that run both."""

    def __init__(self, app: FastAPI, worker: Runner, admin: Api, blobs: Blobs, folder: Path) -> None:
        self.app, self.worker, self.admin, self.blobs, self.folder = app, worker, admin, blobs, folder
        self.register("face", tiny_models.truth())
        self.register("gate", sibling())
        self.dataset = self.samples(900)

    def blob(self, path: Path) -> str:
        return self.blobs.put_file(path).digest

    def register(self, name: str, weights: Weights) -> None:
        graph = self.blob(tiny_models.write_graph(self.folder / "graph.onnx", weights))
        tensors = self.blob(tiny_models.write_weights(self.folder / "weights.safetensors", weights))
        done = carried_out(self.worker, self.admin, "/models", name=name, graph=graph, weights=tensors)
        assert done["state"] == "succeeded", done

    def samples(self, count: int) -> str:
        path = tiny_models.write_samples(self.folder / "samples.npz", count=count, seed=4)
        done = carried_out(self.worker, self.admin, "/datasets", name="line", blob=self.blob(path))
        assert done["state"] == "succeeded", done
        return str(done["result"]["digest"])

    def ask(self, **changed: Any) -> dict[str, Any]:
        body = {"models": ["face", "gate"], "dataset": self.dataset, "budget": 0.05} | changed
        return carried_out(self.worker, self.admin, "/sharing/plans", **body)

    def planned(self, **changed: Any) -> dict[str, Any]:
        done = self.ask(**changed)
        assert done["state"] == "succeeded", done
        return made(self.admin.get(f"{PLANS}/{done['result']['plan']}"))

    def refused(self, **changed: Any) -> tuple[int, str, str]:
        body = {"models": ["face", "gate"], "dataset": self.dataset} | changed
        answer = self.admin.post(PLANS, json=body)
        return answer.status_code, answer.json()["code"], answer.text

    def bring(self, name: str, release: int, device: TestDevice) -> None:
        rollout = made(
            self.admin.post(
                "/api/v1/rollouts",
                json={"model": name, "release": release, "waves": ["100%"], "devices": [str(device.id)]},
            )
        )
        made(self.admin.post(f"/api/v1/rollouts/{rollout['id']}/start", json={"reason": "because"}))
        device.tell(Outcome.COMMITTED, name)

    def next_release(self, name: str, weights: Weights) -> dict[str, Any]:
        tensors = self.blob(tiny_models.write_weights(self.folder / "next.safetensors", weights))
        done = carried_out(self.worker, self.admin, f"/models/{name}/releases", weights=tensors, lossless=True)
        assert done["state"] == "succeeded", done
        result: dict[str, Any] = done["result"]
        return result

    def signed(self, name: str) -> dict[str, Any]:
        with self.app.state.database.transaction(DEFAULT_PROJECT) as session:
            row = repository.newest(session, f"m.{name}")
            assert row is not None
            return dict(Metadata[Targets].from_bytes(row.body).signed.targets)


@pytest.fixture
def house(app: FastAPI, worker: Runner, admin: Api, blobs: Blobs, tmp_path: Path) -> House:
    return House(app, worker, admin, blobs, tmp_path)


def test_a_plan_is_made_shown_applied_and_taken_back(house: House) -> None:
    admin, device = house.admin, join(house.app, house.admin, 1)[0]
    house.bring("face", 1, device)
    house.bring("gate", 1, device)
    plan = house.planned()
    assert plan["state"] == "planned"
    (one,) = plan["result"]["chosen"]
    recipient, donor = one["recipient"], one["donor"]
    assert {recipient, donor} == {"face", "gate"}
    assert all(level["bound"] <= 0.05 for level in one["levels"])
    assert one["levels"][0]["saved_bytes"] >= 32 * 16 * 4 * 0.9
    assert not any(release["shares"] for release in made(admin.get(f"/api/v1/models/{recipient}/releases"))["items"])

    shown = made(admin.get(f"{PLANS}/{plan['id']}/preview"))
    assert shown["obstacles"] == []
    assert [each["devices"] for each in shown["recipients"]] == [1]
    assert shown["recipients"][0]["levels"][0]["update_bytes"] < shown["recipients"][0]["levels"][0]["full_bytes"]

    applied = made(admin.post(f"{PLANS}/{plan['id']}/apply", json={"waves": ["100%"], "start": True}))
    assert (applied["state"], [rollout["state"] for rollout in applied["rollouts"]]) == ("applied", ["running"])
    newest = applied["releases"][-1]
    assert newest["level"] == 1
    wish = device.wish(recipient)
    assert wish is not None
    assert wish.release == newest["release"]
    target = UpdateTarget.from_custom(wish.path[-1], house.signed(recipient)[wish.path[-1]].custom)
    assert target.shares is not None
    assert (target.shares.base, target.shares.donor, target.shares.budget) == (1, donor, 0.05)
    assert target.base_release == 1
    every = {f"{recipient}/{release['release']}/from-1" for release in applied["releases"]}
    assert every <= set(house.signed(recipient)), "a device can go down the ladder"

    listed = made(admin.get(f"/api/v1/models/{recipient}/releases/{newest['release']}"))
    assert listed["shares"] == {"base": 1, "weights": one["base_weights"], "donor": donor, "budget": 0.05}
    assert made(admin.get(f"/api/v1/models/{recipient}"))["latest"] == 1

    again = admin.post(f"{PLANS}/{plan['id']}/apply", json={})
    assert (again.status_code, again.json()["code"]) == (409, "sharing.wrong-state")
    device.tell(Outcome.COMMITTED, recipient)
    undone = made(admin.post(f"{PLANS}/{plan['id']}/undo", json={"reason": "too slow"}))
    assert undone["state"] == "undone"
    back = device.wish(recipient)
    assert back is not None
    assert back.release == 1
    assert admin.post(f"{PLANS}/{plan['id']}/undo", json={"reason": "x"}).json()["code"] == "sharing.wrong-state"


def test_a_device_rebuilds_a_shared_release_and_writes_no_file_of_the_donor_twice(house: House, tmp_path: Path) -> None:
    plan = house.planned()
    (one,) = plan["result"]["chosen"]
    level, store = one["levels"][0], TensorStore(tmp_path / "store", PosixDisk())

    def step(name: str, blob: str, weights: str) -> RebuildStep:
        path = tmp_path / name
        path.write_bytes(house.blobs.read(blob, max_bytes=1 << 20))
        return RebuildStep(payload=path, weights=weights)

    releases = {
        name: made(house.admin.get(f"/api/v1/models/{name}/releases/1")) for name in (one["donor"], one["recipient"])
    }
    full = {name: release["updates"][0]["blob"] for name, release in releases.items()}
    donor = rebuild(store, None, [step("donor", full[one["donor"]], releases[one["donor"]]["weights"])])
    files = {store.path(sha256): store.path(sha256).stat() for sha256 in donor.sha256s}
    base = step("base", full[one["recipient"]], one["base_weights"])
    shared = rebuild(store, None, [base, step("shared", level["update"]["blob"], level["weights"])])
    assert set(shared.sha256s) & set(donor.sha256s)
    for path, before in files.items():
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_next_release_of_the_donor_makes_its_plans_stale_and_they_are_refitted(house: House) -> None:
    plan = house.planned()
    made(house.admin.post(f"{PLANS}/{plan['id']}/apply", json={}))
    (one,) = plan["result"]["chosen"]
    right = tiny_models.truth() if one["donor"] == "face" else sibling()
    moved = {**right, "0.weight": right["0.weight"] * np.float32(1.001)}
    result = house.next_release(one["donor"], moved)
    stale = made(house.admin.get(f"{PLANS}/{plan['id']}"))
    assert (stale["state"], stale["stale_reason"]) == (
        "stale",
        f"{one['donor']}@{result['release']} was published since",
    )
    kinds = [event["type"] for event in made(house.admin.get("/api/v1/events"))["items"]]
    assert "sharing.stale" in kinds
    asked = house.admin.post(f"{PLANS}/{plan['id']}/refit")
    assert asked.status_code == 202, asked.text

    done = finished(house.worker, house.admin, UUID(asked.json()["job"]["id"]))
    assert done["state"] == "succeeded", done
    again = made(house.admin.get(f"{PLANS}/{done['result']['plan']}"))
    assert again["refit_of"] == plan["id"]
    assert again["asked"]["models"][one["donor"]] == result["release"]
    made(house.admin.post(f"{PLANS}/{again['id']}/apply", json={}))


def test_what_cannot_be_planned_is_refused_with_a_reason(house: House) -> None:
    assert house.refused(budget=0)[:2] == (422, "request.invalid")
    assert house.refused(budget=1)[:2] == (422, "request.invalid")
    assert house.refused(models=["face"])[:2] == (422, "request.invalid")
    assert house.refused(models=["face", "face@1"])[:2] == (422, "request.invalid")
    assert house.refused(budgets={"door": 0.1})[:2] == (422, "request.invalid")
    assert house.refused(models=["face", "gate@9"])[:2] == (404, "release.unknown")
    assert house.refused(models=["face", "door"])[:2] == (404, "model.unknown")
    assert house.refused(dataset="sha256:" + "0" * 64)[:2] == (404, "dataset.unknown")
    path = house.folder / "wide.npz"
    np.savez(path, inputs=np.zeros((200, 17), np.float32), labels=np.arange(200) % 4)
    wide = carried_out(house.worker, house.admin, "/datasets", name="wide", blob=house.blob(path))["result"]["digest"]
    done = house.ask(dataset=wide)
    assert (done["state"], done["error"]["code"]) == ("failed", "sharing.impossible")
    assert "takes inputs of shape [16]; those of the dataset are [17]" in done["error"]["message"]


def test_without_a_plan_the_scores_are_shown_and_nothing_is_kept(house: House) -> None:
    done = house.ask(analyze=True)
    matrix = done["result"]["matrix"]
    assert matrix["models"] == ["face", "gate"]
    assert matrix["agreement"][0][1] > 0.9
    assert made(house.admin.get(PLANS))["items"] == []


def test_what_does_not_certify_is_left_out_and_said_so(house: House) -> None:
    plan = house.planned(dataset=house.samples(120), budget=0.02)
    assert plan["result"]["chosen"] == []
    answer = house.admin.post(f"{PLANS}/{plan['id']}/apply", json={})
    assert (answer.status_code, answer.json()["code"]) == (409, "sharing.not-applicable")
