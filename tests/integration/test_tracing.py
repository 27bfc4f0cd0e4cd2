"""Traces: a real collector is sent what requests, statements, jobs and deliveries took, and nothing secret."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fleet_calls import held_after, join, made
from http_calls import Api, as_scope, served
from otlp_receiver import Collector, Seen, collecting

from sprat_server.access.tokens import Scope
from sprat_server.app import check, create_app
from sprat_server.db.projects import DEFAULT_PROJECT
from sprat_server.observe import logs, tracing
from sprat_server.settings import Settings
from sprat_shared.errors import InvalidInput
from sprat_shared.protocol.poll import PollAnswer, format_tag

CALLER = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLERS_SPAN = "00f067aa0ba902b7"


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector, and an environment that asks for traces to it."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    with collecting() as running:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", running.url)
        monkeypatch.setenv("OTEL_SERVICE_NAME", "sprat-of-the-works")
        yield running
        tracing.stop()


@pytest.fixture
def traced(collector: Collector, settings: Settings) -> Iterator[FastAPI]:
    """The application, with traces."""
    assert collector.url
    made_ = create_app(settings.model_copy(update={"webhook_private": True}))
    yield made_
    made_.state.database.close()


def of_request(collector: Collector, answer: httpx.Response) -> Seen:
    """The span of an answered request."""
    tracing.flush()
    wanted = answer.headers["X-Request-Id"]
    (span,) = [span for span in collector.spans if span.attributes.get("sprat.request_id") == wanted]
    return span


def test_a_request_is_a_span_by_method_and_route_with_who_asked_and_how_it_ended(
    collector: Collector, traced: FastAPI
) -> None:
    admin = as_scope(traced, Scope.ADMIN)
    unknown = admin.get("/api/v1/jobs/01a229d7-0000-7000-8000-000000000000")
    span = of_request(collector, unknown)
    assert (span.name, span.kind) == ("GET /api/v1/jobs/{job_id}", "server")
    assert span.resource["service.name"] == "sprat-of-the-works"
    assert span.resource["sprat.process"] == "api"
    assert span.attributes == {
        "http.request.method": "GET",
        "http.route": "/api/v1/jobs/{job_id}",
        "http.response.status_code": 404,
        "http.response.body.size": len(unknown.content),
        "url.path": "/api/v1/jobs/01a229d7-0000-7000-8000-000000000000",
        "sprat.request_id": unknown.headers["X-Request-Id"],
        "sprat.actor.kind": "operator",
        "sprat.project": str(DEFAULT_PROJECT),
        "sprat.problem.code": "job.unknown",
    }
    assert not span.failed


def test_the_caller_s_trace_goes_on_and_statements_are_beneath_the_request(
    collector: Collector, traced: FastAPI
) -> None:
    admin = as_scope(traced, Scope.ADMIN)
    answer = admin.get("/api/v1/models", headers={"traceparent": f"00-{CALLER}-{CALLERS_SPAN}-01"})
    span = of_request(collector, answer)
    assert (span.trace_id, span.parent_id) == (CALLER, CALLERS_SPAN)
    beneath = [each for each in collector.spans if each.parent_id == span.span_id]
    assert {"SELECT operator_token", "SELECT model"} <= {each.name for each in beneath}
    assert {(each.trace_id, each.kind, each.attributes["db.system.name"]) for each in beneath} == {
        (CALLER, "client", "postgresql")
    }


def test_a_caller_who_says_that_it_is_not_sampled_leaves_no_span(collector: Collector, traced: FastAPI) -> None:
    admin = as_scope(traced, Scope.ADMIN)
    admin.get("/api/v1/models", headers={"traceparent": f"00-{CALLER}-{CALLERS_SPAN}-00"})
    of_request(collector, admin.get("/api/v1/models", headers={"traceparent": "not one"}))
    assert len(collector.named("GET /api/v1/models")) == 1
    assert not [span for span in collector.spans if span.trace_id == CALLER]


def test_no_value_and_no_token_is_in_a_span(collector: Collector, traced: FastAPI) -> None:
    admin = as_scope(traced, Scope.ADMIN)
    refused = [
        admin.post("/api/v1/projects", json={"name": "line-3", "title": "a-secret-title"}),
        admin.post("/api/v1/enrolment-tokens", json={"uses": 1, "group": "a-secret-group"}),
        admin.post("/api/v1/enrolment-tokens", json={"uses": 1, "group": "a-secret-group\0"}),
    ]
    assert refused[0].status_code == 403
    assert of_request(collector, refused[2]).attributes["sprat.problem.code"]
    told = repr(collector.spans)
    assert "INSERT INTO enrolment_token" in told
    for secret in ("a-secret", str(admin.token), made(refused[1])["token"]):
        assert secret not in told


def test_a_statement_that_fails_is_marked_with_its_sqlstate_alone(collector: Collector, traced: FastAPI) -> None:
    admin = as_scope(traced, Scope.ADMIN)
    hook = {"name": "pager-of-anna", "url": "http://127.0.0.1:1/hook"}
    made(admin.post("/api/v1/webhooks", json=hook))
    assert admin.post("/api/v1/webhooks", json=hook).status_code == 409
    tracing.flush()
    good, bad = collector.named("INSERT webhook")
    assert (good.failed, bad.failed, bad.attributes["error.type"]) == (False, True, "23505")
    assert "anna" not in repr(collector.spans).replace("/api/v1", "")


def test_a_bug_is_a_failed_span(collector: Collector, traced: FastAPI) -> None:
    @traced.get("/broken")
    def broken() -> None:
        raise RuntimeError("a secret")

    span = of_request(collector, Api(traced, None).get("/broken"))
    assert (span.failed, span.attributes["error.type"]) == (True, "500")
    assert span.attributes["sprat.problem.code"] == "server.bug"
    assert "a secret" not in repr(collector.spans)


def test_a_poll_that_reads_is_traced_and_an_idle_one_is_not(collector: Collector, traced: FastAPI) -> None:
    check(traced)
    (device,) = join(traced, as_scope(traced, Scope.ADMIN), 1)
    with served(traced) as url, httpx.Client(base_url=url) as client:
        headers = {"Authorization": f"Bearer {device.api.token}"}
        client.get("/healthz")
        answer = client.get("/device/v1/poll", headers=headers)
        assert answer.status_code == 200
        tracing.flush()
        (first, *_) = collector.named("GET /device/v1/poll")
        assert (first.attributes["sprat.actor.kind"], first.attributes["http.response.status_code"]) == ("device", 200)
        assert first.attributes["sprat.project"] == str(DEFAULT_PROJECT)
        headers["If-None-Match"] = format_tag(list(held_after(PollAnswer.from_bytes(answer.content))))
        while not traced.state.poll.memory._current:
            assert client.get("/device/v1/poll", headers=headers).status_code == 304
        tracing.flush()
        seen = len(collector.named("GET /device/v1/poll"))
        for _ in range(5):
            assert client.get("/device/v1/poll", headers=headers).status_code == 304
        tracing.flush()
        assert len(collector.named("GET /device/v1/poll")) == seen
    assert not [span for span in collector.spans if "healthz" in span.name]


def test_a_log_line_names_the_span_in_which_it_was_written(
    collector: Collector, traced: FastAPI, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure(log_format="json", log_level="info")
    try:
        span = of_request(collector, as_scope(traced, Scope.ADMIN).get("/api/v1/models"))
        outside = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    finally:
        logs.configure(log_format="json", log_level="warning")
    (line,) = [line for line in outside if line.get("request_id") == span.attributes["sprat.request_id"]]
    assert (line["trace_id"], line["span_id"]) == (span.trace_id, span.span_id)


def worker(settings: Settings, log: Path, **environment: str) -> "subprocess.Popen[bytes]":
    """Start a real worker on these settings."""
    given = {
        "SPRAT_DATABASE_URL": settings.database_url or "",
        "SPRAT_DATA_DIR": str(settings.data_dir),
        "SPRAT_WEBHOOK_PRIVATE": "1",
        "SPRAT_WORKER_HEARTBEAT_S": "0.2",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    with log.open("wb") as stderr:
        command = [sys.executable, "-m", "sprat_server.cli", "worker"]
        return subprocess.Popen(command, env=os.environ | given | environment, stderr=stderr)


def test_a_real_worker_s_job_is_linked_to_the_request_that_asked_and_deliveries_are_spans(
    collector: Collector, traced: FastAPI, settings: Settings, tmp_path: Path
) -> None:
    admin = as_scope(traced, Scope.ADMIN)
    made(admin.post("/api/v1/webhooks", json={"name": "pager", "url": f"{collector.url}/no-such-path"}))
    blob: dict[str, Any] = made(admin.post("/api/v1/blobs", content=b"no dataset"))
    asked = admin.post("/api/v1/datasets", json={"name": "winter", "blob": blob["digest"]})
    job = made(asked)["job"]
    request = of_request(collector, asked)
    running = worker(settings, tmp_path / "worker.log")
    try:
        span = collector.wait_for(lambda one: one.attributes.get("sprat.job") == job["id"])
        delivery = collector.wait_for(
            lambda one: one.name == "webhook.deliver" and bool(one.attributes.get("error.type"))
        )
    finally:
        running.terminate()
        assert running.wait(60) == 0
    assert (span.name, span.kind, span.parent_id) == ("job validate-dataset", "consumer", "")
    assert span.links == [(request.trace_id, request.span_id)]
    assert span.trace_id != request.trace_id
    assert (span.failed, span.attributes["sprat.job.outcome"]) == (True, "failed")
    assert span.attributes["sprat.project"] == str(DEFAULT_PROJECT)
    assert span.resource["sprat.process"] == "worker"
    assert [one.name for one in collector.spans if one.parent_id == span.span_id].count("SELECT job") > 0
    assert (delivery.kind, delivery.attributes["http.response.status_code"]) == ("client", 404)
    lines = [json.loads(line) for line in (tmp_path / "worker.log").read_text().splitlines()]
    assert {line["trace_id"] for line in lines if line.get("job") == job["id"]} == {span.trace_id}


def test_without_the_extra_the_error_says_which_to_install(
    collector: Collector, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert collector.url
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with pytest.raises(
        InvalidInput, match=r"OTEL_EXPORTER_OTLP_ENDPOINT asks for traces.*pip install 'sprat\[server,otel\]'"
    ):
        create_app(settings)


def test_another_protocol_is_refused_with_what_is_spoken(
    collector: Collector, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert collector.url
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(InvalidInput, match=r"'grpc'.*http/protobuf.*4318"):
        create_app(settings)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_unless_asked_for_nothing_of_it_is_loaded(environment: dict[str, str], settings: Settings) -> None:
    look = (
        "import sys; from sprat_server.app import create_app; from sprat_server.settings import load_settings;"
        "create_app(load_settings());"
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))])"
    )
    bare = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    given = {"SPRAT_DATABASE_URL": settings.database_url or "", "SPRAT_DATA_DIR": str(settings.data_dir)}
    said = subprocess.run([sys.executable, "-c", look], env=bare | given | environment, capture_output=True, check=True)
    assert said.stdout.strip() == b"[]"
