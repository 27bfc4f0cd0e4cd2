"""Placements over HTTP: asked for, worked out by the worker, refused where the site is none."""

import re
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from http_calls import Api
from sharing_calls import runner
from training_calls import carried_out

from sprat_client.cli.site_files import read_site
from sprat_server.db.blobs import Blobs
from sprat_server.jobs.runner import Runner
from sprat_server.settings import Settings

DOCS = Path(__file__).parents[2] / "docs" / "placement.md"


@pytest.fixture
def worker(app: FastAPI, settings: Settings, blobs: Blobs) -> Runner:
    return runner(app, settings, blobs)


@pytest.fixture
def site(tmp_path: Path) -> dict[str, Any]:
    """The site of the docs, as `sprat` reads it."""
    file = tmp_path / "site.yaml"
    file.write_text(re.findall(r"```yaml\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)[0], encoding="utf-8")
    return read_site(file).wanted


def test_a_site_is_placed_with_proof_and_an_explanation(worker: Runner, operator: Api, site: dict[str, Any]) -> None:
    done = carried_out(worker, operator, "/placements", **site, explain=True, seconds=2)
    assert done["state"] == "succeeded", done
    found = done["result"]
    assert (found["proven"], found["hosts"]["vision"]) == ("optimal", ["box"])
    assert found["bound_s"] == pytest.approx(found["total_s"], rel=1e-5)
    (task,) = found["tasks"]
    assert task["way"][0]["node"] == "image"
    assert task["way"][-1]["ends_s"] == pytest.approx(task["seconds"])
    up, down = 150_000 * 8 / 20e6 + 0.002, 150_000 * 8 / 100e6 + 0.001
    see = next(hop for hop in task["way"] if hop["node"] == "see")
    assert see["carried_s"] == pytest.approx(up + down)
    assert {one["device"] for one in found["devices"]} == {"camera", "box", "desk"}
    assert all(one["total_s"] < found["total_s"] for one in found["what_if"])

    twice = carried_out(worker, operator, "/placements", **site, survives_one=True, seconds=2)["result"]
    assert {module: len(hosts) for module, hosts in twice["hosts"].items()} == {"vision": 2, "words": 2, "judge": 2}


def test_a_site_that_cannot_hold_its_modules_is_told_so_and_what_would_help(
    worker: Runner, operator: Api, site: dict[str, Any]
) -> None:
    for device in site["devices"]:
        device["memory_bytes"] = 80_000_000
    found = carried_out(worker, operator, "/placements", **site, explain=True, seconds=2)["result"]
    assert (found["proven"], found["hosts"]) == ("infeasible", None)
    assert any(one["what"] == "2 GB more memory in box" for one in found["what_if"])
    assert not any(one["what"].startswith("one more") for one in found["what_if"]), "nobody has room for vision"


@pytest.mark.parametrize(
    ("changes", "code", "says"),
    [
        ({"devices": []}, "request.invalid", "devices"),
        ({"seconds": 0}, "request.invalid", "seconds"),
        ({"pinned": {"nose": ["box"]}}, "placement.invalid", "module nose on box"),
        ({"held": {"vision": ["cellar"]}}, "placement.invalid", "module vision on cellar"),
    ],
)
def test_a_site_that_is_none_is_refused_at_once(
    operator: Api, site: dict[str, Any], changes: dict[str, Any], code: str, says: str
) -> None:
    answer = operator.post("/api/v1/placements", json=site | changes)
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert says in answer.text


def test_a_task_of_unknown_things_is_refused_by_name(operator: Api, site: dict[str, Any]) -> None:
    site["tasks"][0]["uses"]["say"] = "oracle"
    answer = operator.post("/api/v1/placements", json=site)
    assert answer.json()["detail"] == "task inspect: node say: no module oracle"
