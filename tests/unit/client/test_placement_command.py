"""`sprat placement plan`: files read with the lines of what is wrong, and what is told of a plan."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from answering_server import answering
from typer.testing import CliRunner

from sprat_client.cli.app import app
from sprat_client.cli.site_files import read_site
from sprat_shared.errors import InvalidInput

DOCS = Path(__file__).parents[3] / "docs" / "placement.md"
SITE = re.findall(r"```yaml\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)[0]
FOUND = {
    "proven": "within",
    "hosts": {"judge": ["box"], "vision": ["box", "desk"]},
    "total_s": 0.2,
    "bound_s": 0.19,
    "gap": 0.05,
    "devices": [
        {"device": "box", "memory": 0.95, "busy": 0.2, "binds": True, "memory_bytes": 3_800_000_000},
        {"device": "desk", "memory": 0.1, "busy": 0.0, "binds": False, "memory_bytes": 200_000_000},
    ],
    "tasks": [
        {
            "name": "inspect",
            "seconds": 0.2,
            "routes": {"see": "box", "say": "box"},
            "way": [{"node": "image", "device": "camera"}, {"node": "see", "device": "box"}],
        }
    ],
    "what_if": [{"what": "one more device like box", "total_s": 0.15}],
}


def planned(monkeypatch: pytest.MonkeyPatch, file: Path, result: Any, *words: str) -> tuple[Any, list[Any]]:
    asked: list[Any] = []
    job = {"id": "0198c0de-0000-7000-8000-000000000000", "kind": "place", "state": "succeeded", "result": result}
    job |= {"progress": {"step": "placing", "fraction": 1.0, "message": ""}, "error": None}

    def answer(_method: str, path: str, body: object) -> object:
        asked.append(body)
        return {"job": job} if path.endswith("/placements") else job

    with answering(monkeypatch, answer):
        return CliRunner().invoke(app, ["placement", "plan", str(file), *words]), asked


@pytest.fixture
def site(tmp_path: Path) -> Path:
    file = tmp_path / "site.yaml"
    file.write_text(SITE, encoding="utf-8")
    return file


def test_the_site_of_the_docs_is_sent_as_the_api_takes_it(monkeypatch: pytest.MonkeyPatch, site: Path) -> None:
    _, asked = planned(monkeypatch, site, FOUND, "--replicas", "2", "--survive-one", "--explain", "--seconds", "5")
    body = asked[0]
    assert body["devices"][0] == {
        "name": "camera", "memory_bytes": 400_000_000, "up_mbit": 20, "down_mbit": 50, "delay_ms": 2
    }  # fmt: skip
    assert body["modules"][1]["file_bytes"] == 45_000_000
    assert body["tasks"][0]["flows"][0] == {"from": "image", "to": "see", "bytes": 150_000}
    assert body["tasks"][0]["uses"] == {"see": "vision", "read": "words", "say": "judge"}
    assert (body["replicas"], body["survives_one"], body["explain"], body["seconds"]) == (2, True, True, 5)


def test_a_plan_is_told_with_its_gap_what_binds_and_what_would_help(
    monkeypatch: pytest.MonkeyPatch, site: Path
) -> None:
    done, _ = planned(monkeypatch, site, FOUND, "--explain")
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert done.exit_code == 0
    assert lines[0] == ("200.0 ms of weighted latency; no plan is below 190.0 ms, so this one is within 5.0%")
    assert "vision box, desk" in lines
    assert "inspect 200.0 ms image (camera) > see (box)" in lines
    assert any(re.fullmatch(r"box 3\.8\S* GB \(95%\) 20% binds|box .*95%.* 20% binds", line) for line in lines)
    assert lines[-1] == "one more device like box: 150.0 ms, 25.0% less"
    shown, _ = planned(monkeypatch, site, FOUND, "--json")
    assert json.loads(shown.stdout) == FOUND


def test_what_has_no_plan_ends_with_one_and_says_whether_that_is_proven(
    monkeypatch: pytest.MonkeyPatch, site: Path
) -> None:
    for proven, words in (("infeasible", "there is no plan"), ("nothing", "none is proven impossible")):
        done, _ = planned(monkeypatch, site, {"proven": proven, "hosts": None, "what_if": []})
        assert (done.exit_code, words in done.stdout) == (1, True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- a\n", ":1: a site is a mapping of devices"),
        ("devices: {a: {memory: 1GB}}\nmodules: {}\n", ":2: modules: a site needs modules"),
        ("devices:\n  a: {memory: 1 stone}\n", ":2: devices.a.memory: '1 stone' is not a size"),
        ("devices:\n  a: 7\n", ":2: devices.a: expected a mapping, got 7"),
        ("devices: {a: {}}\ntasks:\n  t:\n    flows: {a to b: 1}\n", ":4: tasks.t.flows.a to b: write it as"),
        ("devices: {a: {}}\ntasks:\n  t:\n    flows: 3\n", ":4: tasks.t.flows: flows are a mapping"),
        ("a: 1\n---\nb: 2\n", "2 documents; a site is one"),
        ("", "there is no site in it"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_the_line(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidInput) as bad:
        read_site(file)
    assert says in str(bad.value)
    assert bad.value.code == "placement.bad-file"


def test_what_the_server_refuses_is_said_with_its_line(site: Path) -> None:
    read = read_site(site)
    line = SITE.splitlines().index(next(one for one in SITE.splitlines() if one.strip().startswith("box:"))) + 1
    refused = InvalidInput("body.devices.1.up_mbit: must be greater than 0")
    assert read.located(refused) == f"{site}:{line}: devices.1.up_mbit: must be greater than 0"
    uses = SITE.splitlines().index(next(one for one in SITE.splitlines() if "uses:" in one)) + 1
    assert read.located(InvalidInput("task inspect: node see: no module visoin")).startswith(f"{site}:{uses}: task")
