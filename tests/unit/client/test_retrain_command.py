"""`sprat retrain`: what it asks the server for, and what it says when the job has ended."""

import json
from typing import Any

import pytest
from answering_server import answering
from typer.testing import CliRunner

from sprat_client.cli.app import app
from sprat_client.cli.releases import summary

NEW, OLD = ("sha256:" + digit * 64 for digit in "12")


def asked(monkeypatch: pytest.MonkeyPatch, *words: str) -> dict[str, Any]:
    """Run the command against a server that knows two datasets; return the body of its request."""
    bodies: list[dict[str, Any]] = []

    def answer(method: str, path: str, body: Any) -> Any:
        if path.startswith("/api/v1/datasets"):
            named = (("winter", NEW), ("summer", OLD))
            return {"items": [{"name": name, "digest": digest} for name, digest in named], "next": None}
        assert (method, path) == ("POST", "/api/v1/models/gate/retrain")
        bodies.append(body)
        return {"job": {"id": "j", "kind": "retrain", "state": "queued", "result": None, "error": None}}

    with answering(monkeypatch, answer):
        ended = CliRunner().invoke(app, ["retrain", "gate", "--dataset", "winter", *words, "--json"])
    assert ended.exit_code == 0, ended.stderr
    assert json.loads(ended.stdout)["id"] == "j"
    return bodies[0]


@pytest.mark.parametrize(
    ("words", "fields"),
    [
        ((), {}),
        (("--keep", "0.97"), {"keep": 0.97}),
        (("--budget", "2kB"), {"budget": 2000}),
        (("--max-drop", "0.5pp"), {"max_drop": 0.005}),
        (("--retain", "summer", "--seed", "3"), {"retain": OLD, "seed": 3}),
        (("--config", '{"classes": 12}'), {"config": {"classes": 12}}),
        (("--strategy", "subspace"), {"strategy": "subspace"}),
        (("--local-statistics",), {"local_statistics": True}),
        (("--strategy", "auto"), {}),
    ],
    ids=["nothing", "keep", "budget", "max-drop", "retain", "config", "strategy", "local", "auto"],
)
def test_the_request_has_what_was_given_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], fields: dict[str, Any]
) -> None:
    assert asked(monkeypatch, *words) == {"dataset": NEW, "base": None} | fields


def test_an_unknown_strategy_is_refused_with_those_that_there_are() -> None:
    refused = CliRunner().invoke(app, ["retrain", "gate", "--dataset", "winter", "--strategy", "magic"])
    assert refused.exit_code == 2
    assert all(name in refused.stderr for name in ("'magic'", "'auto'", "'full'", "'factors'", "'subspace'"))


def test_the_line_says_how_the_update_was_made() -> None:
    job: Any = {"result": {"release": 2, "update_bytes": 272, "method": "subspace"}}
    assert summary("gate", job) == "gate@2  update 272 bytes (subspace)"


def test_what_an_operator_should_know_is_said_beside_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    note = "the change is not low rank: factors of rank 48 in 9120 bytes keep 83.1 % of the gain"
    result = {"release": 2, "update_bytes": 51200, "method": "dense", "note": note}
    job = {"id": "j", "kind": "retrain", "state": "succeeded", "result": result, "error": None}

    def answer(_method: str, path: str, _body: Any) -> Any:
        datasets = {"items": [{"name": "winter", "digest": NEW}], "next": None}
        return datasets if "datasets" in path else {"job": job}

    with answering(monkeypatch, answer):
        ended = CliRunner().invoke(app, ["retrain", "gate", "--dataset", "winter"])
    assert ended.exit_code == 0, ended.stderr
    assert ended.stderr.splitlines()[-1] == note


def test_the_accuracies_on_an_old_domain_are_told_where_it_was_measured() -> None:
    result = {"release": 2, "update_bytes": 1384, "accuracy_released": 0.91}
    job: Any = {"result": result | {f"accuracy_old_{state}": 0.9 for state in ("base", "retrained", "released")}}
    assert summary("gate", job) == (
        "gate@2  update 1,384 bytes  released 0.9100  old base 0.9000  old retrained 0.9000  old released 0.9000"
    )
    assert "old" not in summary("gate", {"result": result})  # type: ignore[typeddict-item]
