"""`sprat device label`, `sprat drift policy set`: what is asked of the server, and what is refused before."""

from typing import Any

import pytest
from answering_server import answering
from typer.testing import CliRunner, Result

from sprat_client.cli.app import app
from sprat_shared.errors import InvalidInput

DEVICE = {"id": "01", "name": 'press "3"', "labels": {"site": "lab"}}
POLICY = {"model": "digits", "policy": {}, "set_by": "x", "set_at": "now", "stopped_at": None, "stop_reason": None}


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[Result, list[tuple[str, str, Any]]]:
    """Run a command against a server that takes everything; return how it ended, and what was asked."""
    asked = []

    def answer(method: str, path: str, body: Any) -> Any:
        asked.append((method, path, body))
        if path.startswith("/api/v1/devices?"):
            return {"items": [DEVICE], "next": None}
        return {"devices": 7} if path.endswith("/devices/labels") else DEVICE | POLICY

    with answering(monkeypatch, answer):
        return CliRunner().invoke(app, list(words)), asked


def test_a_device_is_found_by_its_name_and_labelled(monkeypatch: pytest.MonkeyPatch) -> None:
    ended, asked = run(monkeypatch, "device", "label", 'press "3"', "site=lab", "old-")
    assert ended.exit_code == 0, ended.output
    assert [path.partition("?")[0] for _, path, _ in asked] == ["/api/v1/devices", "/api/v1/devices/01/labels"]
    assert "name+%3D+%22press+%5C%223%5C%22%22" in asked[0][1]
    assert asked[1][::2] == ("PATCH", {"site": "lab", "old": None})


def test_many_devices_are_labelled_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ended, asked = run(monkeypatch, "device", "label", "--where", "failed", "ring=a")
    assert ended.stdout == "7 devices\n"
    assert asked == [("POST", "/api/v1/devices/labels", {"where": "failed", "group": None, "labels": {"ring": "a"}})]


@pytest.mark.parametrize("words", [["press-3"], ["press-3", "site"], ["press-3", "site="], ["press-3", "=x", "-"]])
def test_labels_that_make_no_sense_are_refused_before_anything_is_asked(
    monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    ended, asked = run(monkeypatch, "device", "label", *words)
    assert isinstance(ended.exception, InvalidInput)
    assert asked == []


def test_a_drift_policy_is_put_together_from_options(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--min-accuracy", "0.9", "--retrain-on", "line-3", "--keep", "0.95", "--roll-out", "--waves", "1, 100%"]
    ended, asked = run(monkeypatch, "drift", "policy", "set", "digits", *words, "--start")
    assert ended.exit_code == 0, ended.output
    assert asked[0][1:] == (
        "/api/v1/models/digits/drift-policy",
        {
            "min_accuracy": 0.9,
            "action": "retrain",
            "retrain": {"dataset": "line-3", "options": {"keep": 0.95}},
            "rollout": {"waves": ["1", "100%"], "start": True},
        },
    )


@pytest.mark.parametrize("words", [["--keep", "0.9"], ["--start"], ["--waves", "1"]])
def test_options_that_stand_alone_say_what_is_missing(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    ended, asked = run(monkeypatch, "drift", "policy", "set", "digits", "--min-accuracy", "0.9", *words)
    assert "say --" in str(ended.exception)
    assert asked == []
