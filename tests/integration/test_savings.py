"""The savings report, out of what devices really reported."""

import csv
import io
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fastapi import FastAPI
from fleet_calls import TestDevice, join, made, published
from http_calls import Api
from poll_calls import bring_to
from sqlalchemy import text
from typer.testing import CliRunner

from sprat_client.api.transport import Transport
from sprat_client.cli.app import app as commands
from sprat_server.db.projects import ACROSS, DEFAULT_PROJECT
from sprat_server.fleet.savings_schemas import AskedSavings
from sprat_server.flows.savings import savings
from sprat_shared.protocol.report import Evidence, Outcome

URL = "/api/v1/reports/savings"
pytestmark = pytest.mark.usefixtures("fleet")


def evidence(old: int | None, new: int, samples: int = 100) -> Evidence:
    return Evidence(
        samples=samples,
        old_correct=old,
        new_correct=new,
        only_old=0,
        only_new=0,
        p_worse=1.0,
        old_latency_s=None,
        new_latency_s=0.01,
    )


@pytest.fixture
def fleet(app: FastAPI, operator: Api) -> list[TestDevice]:
    """Three devices that have release 1; two take the update to 2, one fails first, one refuses it."""
    published(app)
    published(app, base=1)
    devices = join(app, operator, 3)
    bring_to(app, 1)
    for device in devices:
        device.tell(Outcome.COMMITTED, received_bytes=2000, evidence=evidence(None, 90))
    bring_to(app, 2)
    first, second, third = devices
    first.tell(Outcome.READY, received_bytes=150, serving_release=1, serving_weights="sha256:" + "0" * 64)
    first.tell(Outcome.COMMITTED, received_bytes=0, evidence=evidence(90, 95))
    weights = "sha256:" + "0" * 64
    second.tell(Outcome.FAILED, received_bytes=70, serving_release=1, serving_weights=weights)
    bring_to(app, 2)
    second.tell(Outcome.COMMITTED, received_bytes=100, evidence=evidence(80, 81))
    third.tell(
        Outcome.REFUSED, received_bytes=100, serving_release=1, serving_weights=weights, evidence=evidence(99, 1)
    )
    return devices


def test_the_report_says_what_devices_read_and_what_full_updates_are(
    viewer: Api, operator: Api, fleet: list[TestDevice]
) -> None:
    made(operator.request("PATCH", f"/api/v1/devices/{fleet[0].id}/labels", json={"link": "sat"}))
    prices = {"per_mb": 1.0, "links": [{"where": 'labels.link = "sat"', "per_mb": 10.0}], "per_update": 0.5}
    said = made(viewer.post(URL, json={"prices": prices}))
    step = next(row for row in said["rows"] if row["base"] == 1)
    assert (step["model"], step["release"], step["updates"]) == ("mnist", 2, 3)
    assert step["bytes"] == 150 + 70 + 100 + 100
    assert step["full_bytes"] == 3 * 2000  # the full update of the small model takes 2000 bytes
    assert step["saved_share"] == pytest.approx(1 - 420 / 6000)
    assert (step["samples"], step["accuracy_before"], step["accuracy_after"]) == (
        200,
        0.85,
        0.88,
    )  # of those that kept it
    assert step["cost"] == pytest.approx(3 * 0.5 + (150 * 10 + 270 * 1) / 1e6)
    assert step["full_cost"] == pytest.approx(3 * 0.5 + (2000 * 10 + 4000) / 1e6)
    assert said["updates"] == {name: step[name] for name in said["updates"]}
    assert (said["first"]["updates"], said["first"]["bytes"], said["devices"]) == (3, 6000, 3)
    assert said["projections"] == []


def test_the_report_is_of_a_time_and_of_a_model(app: FastAPI, viewer: Api) -> None:
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    assert made(viewer.post(URL, json={"since": later, "until": later}))["rows"] == []
    wrong = viewer.post(URL, json={"since": later, "until": "2020-01-01T00:00:00Z"})
    assert (wrong.status_code, "later than until" in wrong.json()["detail"]) == (422, True)
    assert viewer.post(URL, json={"model": "mnits"}).status_code == 404
    published(app, model="other")
    assert made(viewer.post(URL, json={"model": "other"}))["rows"] == []
    bad = viewer.post(URL, json={"prices": {"links": [{"where": "labls.a = 1", "per_mb": 1}]}})
    assert bad.json()["code"] == "filter.bad"


def test_ten_days_are_projected(app: FastAPI) -> None:
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        since = session.scalar(text("SELECT min(received_at) FROM report"), execution_options=ACROSS)
        asked = AskedSavings(since=since, until=since + timedelta(days=10))
        said = savings(session, asked)
    assert [(one.horizon, one.bytes) for one in said.projections] == [
        ("6 months", pytest.approx(420 * 18.25)),
        ("2 years", pytest.approx(420 * 73)),
    ]


def test_the_command_prints_a_table_and_csv(viewer: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Transport, "post", lambda _, path, body: made(viewer.post(f"/api/v1{path}", json=body)))
    config = tmp_path / "prices.yaml"
    config.write_text("currency: CHF\nper_mb: 2.5\n")
    environment = {"SPRAT_SERVER": "http://127.0.0.1:1", "SPRAT_TOKEN": "t"}
    table = CliRunner().invoke(commands, ["report", "savings", "--config", str(config)], env=environment)
    assert table.exit_code == 0, table.output
    assert "all updates" in table.stdout
    assert "93.00%" in table.stdout
    assert "85.00% to 88.00% (n=200)" in table.stdout
    assert "nothing is projected" in table.stdout
    sheet = CliRunner().invoke(commands, ["report", "savings", "--csv"], env=environment)
    rows = list(csv.DictReader(io.StringIO(sheet.stdout)))
    assert [row["part"] for row in rows] == ["step", "step", "updates", "first releases"]
    assert rows[2]["bytes"] == "420"
