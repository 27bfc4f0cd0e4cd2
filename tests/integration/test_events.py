"""Events over HTTP: as pages, and as a stream that goes on where it was cut and holds no connection to the database."""

import asyncio
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import httpx
import pytest
from fastapi import FastAPI
from fleet_calls import join, made, published
from http_calls import Api, as_scope, served
from starlette.requests import ClientDisconnect

from sprat_client.api import SpratClient
from sprat_server.access.tokens import Scope
from sprat_server.api import events as route
from sprat_server.db.projects import DEFAULT_PROJECT
from sprat_server.db.session import Database
from sprat_server.observe import outbox
from sprat_server.settings import Settings
from sprat_shared.errors import SpratError

URL = "/api/v1/events"


@pytest.fixture(autouse=True)
def short_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have streams say soon that they are alive, so that they also end soon."""
    monkeypatch.setattr(route, "HEARTBEAT_S", 0.3)


@pytest.fixture
def url(app: FastAPI) -> Iterator[str]:
    """The address of the application on loopback."""
    with served(app) as address:
        yield address


def tell(database: Database, subject: str, kind: str = "rollout.halted", project_id: UUID = DEFAULT_PROJECT) -> None:
    """Let something happen."""
    with database.transaction(project_id) as session:
        outbox.tell(session, kind, subject, {"why": subject})


@contextmanager
def stream(url: str, api: Api, *, last: int | None = None, kinds: tuple[str, ...] = ()) -> Iterator[Iterator[str]]:
    """Follow events; gives the lines of the stream as they come."""
    headers = {"Accept": "text/event-stream", "Authorization": f"Bearer {api.token}"}
    if last is not None:
        headers["Last-Event-ID"] = str(last)
    with (
        httpx.Client(timeout=10, trust_env=False) as client,
        client.stream("GET", url + URL, headers=headers, params={"type": list(kinds)}) as answer,
    ):
        if answer.status_code >= 400:
            answer.read()
            raise AssertionError(answer.text)
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.iter_lines()
        assert next(lines) == ": sprat events"
        yield lines


def take(lines: Iterator[str], count: int) -> list[dict[str, Any]]:
    """Return the next events."""
    found: list[dict[str, Any]] = []
    while len(found) < count:
        line = next(lines)
        if line.startswith("data: "):
            found.append(json.loads(line.removeprefix("data: ")))
    return found


def test_a_stream_tells_what_happens_as_it_happens(url: str, viewer: Api, database: Database) -> None:
    tell(database, "before")
    with stream(url, viewer) as lines:
        time.sleep(0.2)
        begun = time.monotonic()
        tell(database, "now")
        (event,) = take(lines, 1)
        assert time.monotonic() - begun < 5
    assert (event["seq"], event["type"], event["subject"], event["data"]) == (
        2,
        "rollout.halted",
        "now",
        {"why": "now"},
    )


def test_a_stream_goes_on_after_the_last_event_that_was_seen(url: str, viewer: Api, database: Database) -> None:
    for number in range(1, 251):
        tell(database, f"s-{number}")
    with stream(url, viewer, last=7) as lines:
        assert [one["seq"] for one in take(lines, 243)] == list(range(8, 251))
    with stream(url, viewer, last=0) as lines:
        assert take(lines, 1)[0]["seq"] == 1


def test_events_of_writers_at_once_are_seen_in_order_and_without_a_gap(
    url: str, viewer: Api, database: Database
) -> None:
    with stream(url, viewer, last=0) as lines:
        threads = [
            threading.Thread(target=lambda at=at: [tell(database, f"{at}-{one}") for one in range(20)])
            for at in range(4)
        ]
        for thread in threads:
            thread.start()
        seen = take(lines, 80)
        for thread in threads:
            thread.join()
    assert [one["seq"] for one in seen] == list(range(1, 81))


def test_a_stream_and_a_page_can_be_of_some_kinds_only(url: str, viewer: Api, database: Database) -> None:
    tell(database, "one")
    tell(database, "two", "job.failed")
    with stream(url, viewer, last=0, kinds=("job.failed",)) as lines:
        assert take(lines, 1)[0]["subject"] == "two"
    page = made(viewer.get(URL, params={"type": "job.failed"}))
    assert [one["subject"] for one in page["items"]] == ["two"]
    assert viewer.get(URL, params={"type": "job.exploded"}).status_code == 422


def test_another_projects_events_are_not_seen(
    url: str, app: FastAPI, server_admin: Api, viewer: Api, database: Database
) -> None:
    other = UUID(made(server_admin.post("/api/v1/projects", json={"name": "other"}))["id"])
    stranger = as_scope(app, Scope.VIEWER, other)
    tell(database, "ours")
    with stream(url, stranger, last=0) as lines:
        tell(database, "ours again")
        tell(database, "theirs", project_id=other)
        (event,) = take(lines, 1)
    assert (event["seq"], event["subject"]) == (1, "theirs")
    assert [one["subject"] for one in made(viewer.get(URL))["items"]] == ["ours again", "ours"]


def test_a_quiet_stream_says_that_it_is_alive_and_holds_no_connection_to_the_database(
    url: str, app: FastAPI, viewer: Api
) -> None:
    with stream(url, viewer) as first, stream(url, viewer) as second:
        for lines in (first, second):
            assert ": still here" in [next(lines) for _ in range(4)]
        pool = app.state.database.engine.pool
        end = time.monotonic() + 5
        while pool.checkedout() and time.monotonic() < end:
            time.sleep(0.01)
        assert pool.checkedout() == 0


def test_a_stream_ends_when_its_token_is_revoked(url: str, admin: Api, app: FastAPI) -> None:
    made_token = made(admin.post("/api/v1/tokens", json={"name": "short", "scopes": ["viewer"]}))
    with stream(url, Api(app, made_token["token"])) as lines:
        assert admin.delete(f"/api/v1/tokens/{made_token['id']}").is_success
        rest = list(lines)
    assert "event: error" in rest
    assert any("access.unauthenticated" in line for line in rest)


def test_no_more_follow_than_a_process_allows(url: str, app: FastAPI, viewer: Api) -> None:
    app.state.event_hub._most = 1
    headers = {"Accept": "text/event-stream"}
    with stream(url, viewer):
        answer = viewer.get(URL, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (503, "events.too-many-streams")
    end = time.monotonic() + 5
    while app.state.event_hub._streams and time.monotonic() < end:
        time.sleep(0.02)
    with stream(url, viewer):
        pass


def test_metrics_show_how_many_follow(url: str, viewer: Api, server_viewer: Api) -> None:
    def following() -> float:
        (value,) = re.findall(r"^sprat_event_streams ([0-9.]+)$", server_viewer.get("/metrics").text, re.MULTILINE)
        return float(value)

    with stream(url, viewer), stream(url, viewer):
        assert following() == 2
    end = time.monotonic() + 5
    while following() and time.monotonic() < end:
        time.sleep(0.02)
    assert following() == 0


def test_streams_end_when_the_server_stops(
    url: str, app: FastAPI, viewer: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(route, "HEARTBEAT_S", 60.0)

    @app.get("/stop")
    async def stop() -> None:
        app.state.event_hub.end()

    with stream(url, viewer) as lines:
        time.sleep(0.3)
        begun = time.monotonic()
        assert httpx.get(f"{url}/stop", trust_env=False).status_code == 200
        list(lines)
        assert time.monotonic() - begun < 5


def test_a_follower_who_is_gone_before_the_first_line_is_not_counted_for_ever(app: FastAPI, viewer: Api) -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(_message: object) -> None:
        raise OSError("the line is cut")

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": URL,
        "raw_path": URL.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"accept", b"text/event-stream"), (b"authorization", f"Bearer {viewer.token}".encode())],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 1),
    }

    async def streams_afterwards() -> int:
        with pytest.raises((OSError, ClientDisconnect)):
            await app(scope, receive, send)
        streams: int = app.state.event_hub._streams
        return streams

    assert asyncio.run(streams_afterwards()) == 0


@pytest.mark.parametrize("last", ["x", "-1", "1.5"])
def test_a_last_event_id_that_is_no_number_is_refused(viewer: Api, last: str) -> None:
    answer = viewer.get(URL, headers={"Accept": "text/event-stream", "Last-Event-ID": last})
    assert answer.status_code == 422


def test_a_stream_needs_a_token(anonymous: Api) -> None:
    assert anonymous.get(URL, headers={"Accept": "text/event-stream"}).status_code == 401


def test_the_client_follows_and_goes_on_where_a_stream_was_cut(
    url: str, app: FastAPI, viewer: Api, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(route, "_LONGEST_S", 0.1)  # each stream ends at its first look after that
    assert viewer.token is not None
    for number in range(5):
        tell(database, f"e-{number}")
    with SpratClient(url, viewer.token) as client:
        followed = client.events.follow(after=2)
        assert [next(followed)["seq"] for _ in range(3)] == [3, 4, 5]
        tell(database, "later")
        assert next(followed)["seq"] == 6
        assert [one["seq"] for one in client.events.list(limit=2)] == [6, 5]
    with SpratClient(url, "sprat_" + "0" * 32 + "_x") as client, pytest.raises(SpratError):
        next(client.events.follow())
    assert app.state.event_hub is not None


def test_what_happens_between_two_streams_of_a_follower_is_not_missed(
    url: str, app: FastAPI, viewer: Api, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(route, "_LONGEST_S", 0.1)
    assert viewer.token is not None
    tell(database, "before")
    seen: list[int] = []
    with SpratClient(url, viewer.token) as client:
        reader = threading.Thread(target=lambda: seen.append(next(client.events.follow())["seq"]))
        reader.start()
        for wished in (1, 0):  # it began, and it was cut before it told anything
            end = time.monotonic() + 10
            while app.state.event_hub._streams != wished and time.monotonic() < end:
                time.sleep(0.005)
        tell(database, "between")
        reader.join(20)
    assert seen == [2]


def test_releases_devices_and_moves_of_rollouts_are_events(
    app: FastAPI, operator: Api, releaser: Api, settings: Settings
) -> None:
    published(app)
    published(app, base=1)
    (device,) = join(app, operator, 1)
    rollout = made(releaser.post("/api/v1/rollouts", json={"model": "mnist", "release": 2}))["id"]
    for verb in ("start", "pause", "resume", "abort"):
        made(operator.post(f"/api/v1/rollouts/{rollout}/{verb}", json={"reason": "a test"}))
    made(operator.post(f"/api/v1/devices/{device.id}/revoke", json={"reason": "a test"}))
    told = made(operator.get(URL))["items"][::-1]
    assert [one["type"] for one in told] == [
        "release.published",
        "release.published",
        "device.joined",
        "rollout.created",
        "rollout.started",
        "rollout.paused",
        "rollout.resumed",
        "rollout.aborted",
        "device.left",
    ]
    assert told[5]["data"] == {"model": "mnist", "release": 2, "reason": "a test"}
    assert settings.auto_sign == "*"
