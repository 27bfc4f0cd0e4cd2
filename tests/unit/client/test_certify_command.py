"""What `sprat release certify` asks, says, and ends with."""

import json
from typing import Any

import pytest
from answering_server import answering
from typer.testing import CliRunner

from sprat_client.cli.app import app

FOUND = {
    "model": "digits",
    "release": 3,
    "against": 2,
    "compared": 900,
    "disagreed": 4,
    "bound": 0.01013,
    "confidence": 0.95,
    "budget": 0.01,
    "within": False,
    "needed": 1441,
    "classes": {},
}


def ended(monkeypatch: pytest.MonkeyPatch, result: dict[str, Any], *words: str) -> tuple[Any, list[Any]]:
    asked: list[Any] = []
    job = {"id": "0198c0de-0000-7000-8000-000000000000", "kind": "certify", "state": "succeeded", "result": result}
    job |= {"progress": {"step": "comparing", "fraction": 1.0, "message": ""}, "error": None}

    def answer(_method: str, path: str, body: object) -> object:
        asked.append((path, body))
        if "datasets" in path:
            return {"items": [{"digest": "sha256:" + "1" * 64, "name": "line-3"}], "next": None}
        return {"job": job} if path.endswith("/certify") else job

    with answering(monkeypatch, answer):
        command = ["release", "certify", "digits@3", "--against", "2", "--dataset", "line-3", *words]
        return CliRunner().invoke(app, command), asked


def test_what_is_above_the_budget_ends_with_one_and_says_how_many_inputs_it_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done, asked = ended(monkeypatch, FOUND, "--budget", "0.01")
    assert done.exit_code == 1, done.output
    assert done.stdout == (
        "digits@3 gave another answer than @2 on 4 of 900 inputs: accuracy falls by at most 1.01 points (with 95% "
        "confidence, for inputs drawn as these); that is above 1; 1,441 inputs of this kind would prove it\n"
    )
    path, body = next(one for one in asked if one[0].endswith("/certify"))
    assert path.endswith("/models/digits/releases/3/certify")
    assert body == {"against": 2, "dataset": "sha256:" + "1" * 64, "budget": 0.01, "tolerance": None}


def test_what_is_within_ends_with_zero_and_is_json_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    within = FOUND | {"disagreed": 0, "bound": 0.0033, "within": True}
    done, _ = ended(monkeypatch, within, "--budget", "0.01", "--json")
    assert (done.exit_code, json.loads(done.stdout)) == (0, within)
    shown, _ = ended(monkeypatch, within, "--budget", "0.01")
    assert shown.stdout.endswith("for inputs drawn as these); within 1\n")


def test_a_release_must_be_named_with_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(monkeypatch, lambda *_: {}):
        done = CliRunner().invoke(app, ["release", "certify", "digits", "--against", "2", "--dataset", "line-3"])
    assert done.exit_code != 0
    assert "does not name one release" in str(done.exception) + done.output
