"""`sprat audit` against the real application: from where, the chain recomputed outside, and what an export says."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from fleet_calls import join, published
from http_calls import Api, served
from sqlalchemy import text
from typer.testing import CliRunner, Result

from sprat_client.cli.app import app as sprat
from sprat_server.app import create_app
from sprat_server.db.projects import ACROSS, DEFAULT_PROJECT
from sprat_server.settings import Settings


@pytest.fixture
def url(settings: Settings) -> Iterator[str]:
    """The application on a real socket, on the test's database."""
    with served(create_app(settings)) as url:
        yield url


@pytest.fixture
def history(app: FastAPI, operator: Api, admin: Api) -> int:
    """Some hundred records of many kinds; how many."""
    published(app)
    join(app, operator, 2)
    for number in range(120):
        admin.post("/api/v1/tokens", json={"name": f"ü-{number}".replace("ü", "u"), "scopes": ["viewer"]})
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        return int(session.scalar(text("SELECT count(*) FROM audit"), execution_options=ACROSS) or 0)


def run(url: str, api: Api, *words: str) -> Result:
    return CliRunner().invoke(sprat, ["--server", url, *words], env={"SPRAT_TOKEN": api.token})


def test_the_chain_is_whole_as_the_client_sees_it_and_its_head_can_be_expected(
    url: str, viewer: Api, history: int
) -> None:
    ended = run(url, viewer, "audit", "verify", "--json")
    head = json.loads(ended.stdout)
    assert head["records"] == history > 100, "more than one page"
    again = run(url, viewer, "audit", "verify", "--expect", f"{history}:{head['digest']}")
    assert (again.exit_code, "is whole" in again.stdout) == (0, True)


def test_a_record_changed_behind_the_databases_back_is_named(
    app: FastAPI, url: str, viewer: Api, history: int, tmp_path: Path
) -> None:
    assert history > 100
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        session.execute(text("ALTER TABLE audit DISABLE TRIGGER USER"), execution_options=ACROSS)
        session.execute(text("UPDATE audit SET address = '10.0.0.1' WHERE seq = 110"), execution_options=ACROSS)
    broken = run(url, viewer, "audit", "verify")
    assert "record 110 of the audit log" in str(broken.exception)
    exported = tmp_path / "audit.jsonl"
    assert run(url, viewer, "audit", "export", "-o", str(exported)).exit_code == 0
    assert len(exported.read_text().splitlines()) == history
    assert "record 110" in str(run(url, viewer, "audit", "verify", str(exported)).exception)


def test_an_export_is_verified_without_a_server(url: str, viewer: Api, history: int, tmp_path: Path) -> None:
    exported = tmp_path / "audit.jsonl"
    exported.write_text(run(url, viewer, "audit", "export").stdout)
    ended = run("http://127.0.0.1:9", viewer, "audit", "verify", str(exported))
    assert f"the chain of {history} records is whole" in ended.stdout


def test_a_record_says_from_where_and_believes_no_header_of_a_stranger(url: str, admin: Api, viewer: Api) -> None:
    headers = {"Authorization": f"Bearer {admin.token}", "X-Forwarded-For": "203.0.113.9", "Forwarded": "for=1.2.3.4"}
    answer = httpx.post(f"{url}/api/v1/tokens", json={"name": "bot", "scopes": ["viewer"]}, headers=headers)
    assert answer.status_code == 201
    (newest,) = viewer.get("/api/v1/audit", params={"limit": 1}).json()["items"]
    assert newest["address"] == "127.0.0.1"
