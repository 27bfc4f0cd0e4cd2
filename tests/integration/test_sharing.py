"""Layers shared between models: planned by the worker, shown, applied, undone; over HTTP on a real PostgreSQL."""

from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
from fastapi import FastAPI
from fleet_calls import join, made
from http_calls import Api
from sharing_calls import PLANS, House, runner, sibling, tiny_models
from training_calls import carried_out, finished

from sprat_client.agent.durable import PosixDisk
from sprat_client.agent.rebuild import RebuildStep, rebuild
from sprat_client.agent.store import TensorStore
from sprat_server.db.blobs import Blobs
from sprat_server.settings import Settings
from sprat_shared.protocol.report import Outcome
from sprat_shared.trust.targets import UpdateTarget


@pytest.fixture
def house(app: FastAPI, settings: Settings, admin: Api, blobs: Blobs, tmp_path: Path) -> House:
    return House(app, runner(app, settings, blobs), admin, blobs, tmp_path)


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
    assert set(done["result"]["correlations"]) == {"cka", "r2"}
    assert all(r is None or -1 <= r <= 1 for r in done["result"]["correlations"].values())
    assert made(house.admin.get(PLANS))["items"] == []


def test_what_does_not_certify_is_left_out_and_said_so(house: House) -> None:
    plan = house.planned(dataset=house.samples(120), budget=0.02)
    assert plan["result"]["chosen"] == []
    answer = house.admin.post(f"{PLANS}/{plan['id']}/apply", json={})
    assert (answer.status_code, answer.json()["code"]) == (409, "sharing.not-applicable")


def test_what_became_harmful_is_left_out_of_the_plan_that_is_made_anew(house: House) -> None:
    plan = house.planned()
    made(house.admin.post(f"{PLANS}/{plan['id']}/apply", json={}))
    (one,) = plan["result"]["chosen"]
    before = set(house.signed(one["recipient"]))
    rng = np.random.default_rng(8)
    other = {name: rng.normal(size=array.shape).astype(np.float32) for name, array in tiny_models.truth().items()}
    result = house.next_release(one["donor"], other)
    assert before <= set(house.signed(one["recipient"])), "nothing changes for who shares"
    asked = house.admin.post(f"{PLANS}/{plan['id']}/refit")
    done = finished(house.worker, house.admin, UUID(asked.json()["job"]["id"]))
    again = made(house.admin.get(f"{PLANS}/{done['result']['plan']}"))
    assert again["asked"]["models"][one["donor"]] == result["release"]
    assert again["result"]["chosen"] == []
    (left,) = (each for each in again["result"]["left_out"] if each["recipient"] == one["recipient"])
    assert f"it shared by plan {plan['id']}; nothing certifies within its budget any more" in left["why"]
    answer = house.admin.post(f"{PLANS}/{again['id']}/apply", json={})
    assert (answer.status_code, answer.json()["code"]) == (409, "sharing.not-applicable")


def test_a_plan_is_applied_as_it_was_reviewed(house: House, operator: Api) -> None:
    plan = house.planned()
    url = f"{PLANS}/{plan['id']}"
    reviewed = operator.get(url).headers["ETag"]
    made(house.admin.post(f"{url}/apply", json={}, headers={"If-Match": reviewed}))
    late = house.admin.post(f"{url}/apply", json={}, headers={"If-Match": reviewed})
    assert (late.status_code, late.json()["code"]) == (412, "request.changed-meanwhile")
    undone = house.admin.post(f"{url}/undo", json={"reason": "x"}, headers={"If-Match": reviewed})
    assert undone.status_code == 412
    assert operator.get(url).json()["state"] == "applied"


def test_a_plan_that_went_stale_after_it_was_reviewed_is_not_applied(house: House) -> None:
    plan = house.planned()
    url = f"{PLANS}/{plan['id']}"
    reviewed = house.admin.get(url).headers["ETag"]
    donor = plan["result"]["chosen"][0]["donor"]
    right = tiny_models.truth() if donor == "face" else sibling()
    house.next_release(donor, {**right, "0.weight": right["0.weight"] * np.float32(1.001)})
    answer = house.admin.post(f"{url}/apply", json={}, headers={"If-Match": reviewed})
    assert (answer.status_code, made(house.admin.get(url))["state"]) == (412, "stale")
