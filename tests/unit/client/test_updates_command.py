"""How devices come to a release, as operators see it."""

import json

import pytest
from answering_server import answering
from typer.testing import CliRunner

from sprat_client.cli.app import app

WAYS = [
    {"base": 3, "to": 3, "devices": 40, "way": "none", "files": 0, "bytes": 0, "share": 0.0, "path": []},
    {"base": 2, "to": 3, "devices": 2, "way": "direct", "files": 1, "bytes": 1384, "share": 0.00132, "path": ["d/3/2"]},
    {"base": 1, "to": 3, "devices": 0, "way": "full", "files": 1, "bytes": 912_004, "share": 0.87, "path": ["d/3"]},
]  # fmt: skip


def test_each_release_has_a_row_with_its_devices_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def answer(_method: str, path: str, _body: object) -> object:
        asked.append(path)
        return {"items": WAYS, "next": None}

    with answering(monkeypatch, answer):
        table = CliRunner().invoke(app, ["release", "updates", "digits", "--to", "3"])
        lines = CliRunner().invoke(app, ["release", "updates", "digits", "--json"]).stdout.splitlines()
    assert [line.split() for line in table.stdout.splitlines()] == [
        ["from", "to", "devices", "way", "files", "bytes", "share"],
        ["digits@3", "digits@3", "40", "none", "0", "0", "0", "%"],
        ["digits@2", "digits@3", "2", "direct", "1", "1,384", "0.132", "%"],
        ["digits@1", "digits@3", "0", "full", "1", "912,004", "87", "%"],
    ]
    assert [json.loads(line) for line in lines] == WAYS
    assert "to=3" in asked[0]
    assert "to=" not in asked[1]
