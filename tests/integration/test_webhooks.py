"""Webhooks: events arrive signed, again after failures and after a worker was killed; never what did not happen."""

import base64
import hashlib
import hmac
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from fastapi import FastAPI
from fleet_calls import made
from http_calls import Api, as_scope
from sqlalchemy import select, text, update

from sprat_server.access import delivery, webhooks
from sprat_server.access.tokens import Scope
from sprat_server.access.webhook_models import Delivery, Webhook
from sprat_server.db.projects import DEFAULT_PROJECT
from sprat_server.db.session import Database
from sprat_server.observe import outbox
from sprat_server.observe.outbox import Event
from sprat_server.settings import Settings

URL = "/api/v1/webhooks"


class Receiver:
    """An HTTP server on loopback that keeps what it was sent and answers as it is told."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.answers: list[int] = []
        self.hold = threading.Event()
        self.hold.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
                outer.hold.wait(30)
                self.send_response(outer.answers.pop(0) if outer.answers else 204)
                self.send_header("Location", "http://127.0.0.1:1/")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook?x=1"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    def close(self) -> None:
        """Answer nothing more."""
        self.hold.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver on loopback."""
    one = Receiver()
    yield one
    one.close()


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Settings that allow private addresses."""
    return settings.model_copy(update={"webhook_private": True})


@pytest.fixture
def hook(admin: Api, receiver: Receiver) -> dict[str, Any]:
    """A webhook for all kinds of events."""
    return made(admin.post(URL, json={"name": "pager", "url": receiver.url}))


def tell(database: Database, kind: str = "rollout.halted", **data: Any) -> int:
    """Let something happen; return its number."""
    with database.transaction(DEFAULT_PROJECT) as session:
        outbox.tell(session, kind, "rollout:1", data)
    with database.transaction(DEFAULT_PROJECT) as session:
        return outbox.newest_seq(session)


def deliver(database: Database, *, private: bool = True) -> int:
    """Do what the worker would do now: everything that is queued and due; return how much."""
    query = "DELETE FROM procrastinate_jobs WHERE queue_name = 'sprat-webhooks' AND status = 'todo' RETURNING args"
    with database.across_projects() as session:
        queued = list(session.scalars(text(query)))
    for args in queued:
        delivery.deliver(database, UUID(args["webhook_id"]), args["seq"], private=private)
    return len(queued)


def make_due(database: Database) -> None:
    """Let the pause before the next attempt be over."""
    with database.across_projects() as session:
        session.execute(update(Delivery).where(Delivery.state == "pending").values(next_at=datetime.now(UTC)))


def deliveries(api: Api) -> list[dict[str, Any]]:
    """Return the log of deliveries."""
    items: list[dict[str, Any]] = made(api.get(f"{URL}/pager/deliveries"))["items"]
    return items


def is_signed(secret: str, headers: dict[str, str], body: bytes) -> bool:
    """Check a message as a receiver does, written apart from what signs."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    return expected in headers["webhook-signature"].split(" ")


def test_an_event_arrives_signed_and_the_log_says_so(
    admin: Api, hook: dict[str, Any], receiver: Receiver, database: Database
) -> None:
    seq = tell(database, model="mnist", reason="worse by 2 points: é, 犬")
    assert deliver(database) == 1
    ((headers, body),) = receiver.got
    assert is_signed(hook["secret"], headers, body)
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 60
    said = json.loads(body)
    shown = made(admin.get("/api/v1/events"))["items"][0]
    assert said == {key: shown[key] for key in ("id", "type", "timestamp", "subject", "data")}
    assert (said["type"], said["data"]["model"], headers["webhook-id"]) == ("rollout.halted", "mnist", said["id"])
    assert headers["host"] == receiver.url.split("/")[2]
    (one,) = deliveries(admin)
    assert (one["seq"], one["state"], one["attempts"], one["status"]) == (seq, "delivered", 1, 204)
    assert deliver(database) == 0


def test_the_secret_is_shown_once_and_never_again(admin: Api, hook: dict[str, Any]) -> None:
    for path in (URL, f"{URL}/pager", "/api/v1/audit"):
        assert hook["secret"].removeprefix("whsec_") not in admin.get(path).text


def test_only_the_kinds_that_were_asked_for_are_sent(admin: Api, receiver: Receiver, database: Database) -> None:
    made(admin.post(URL, json={"name": "pager", "url": receiver.url, "types": ["job.failed"]}))
    tell(database)
    tell(database, "job.failed")
    deliver(database)
    assert [json.loads(body)["type"] for _, body in receiver.got] == ["job.failed"]


def test_an_unknown_kind_is_refused_and_the_known_ones_are_named(admin: Api, receiver: Receiver) -> None:
    answer = admin.post(URL, json={"name": "pager", "url": receiver.url, "types": ["rollout.exploded"]})
    assert answer.status_code == 422
    assert "rollout.halted" in answer.json()["detail"]


def test_an_event_of_a_transaction_that_is_rolled_back_is_never_told(
    admin: Api, hook: dict[str, Any], receiver: Receiver, database: Database
) -> None:
    class Failed(Exception):
        pass

    def happen_and_fail() -> None:
        with database.transaction(DEFAULT_PROJECT) as session:
            outbox.tell(session, "rollout.halted", "rollout:never")
            session.flush()
            raise Failed

    with pytest.raises(Failed):
        happen_and_fail()
    assert made(admin.get("/api/v1/events"))["items"] == []
    assert deliver(database) == 0
    assert tell(database) == 1  # numbers have no gap
    assert hook["state"] == "enabled"
    assert receiver.got == []


def test_a_savepoint_that_is_undone_takes_its_own_events_with_it_and_no_others(admin: Api, database: Database) -> None:
    with database.transaction(DEFAULT_PROJECT) as session:
        outbox.tell(session, "rollout.halted", "first")
        with session.begin_nested():
            outbox.tell(session, "rollout.halted", "second")
            undone = session.begin_nested()
            outbox.tell(session, "rollout.halted", "undone")
            undone.rollback()
        outer = session.begin_nested()
        with session.begin_nested():
            outbox.tell(session, "rollout.halted", "undone too")
        outer.rollback()
        outbox.tell(session, "rollout.halted", "third")
    events = made(admin.get("/api/v1/events"))["items"]
    assert [(one["seq"], one["subject"]) for one in events] == [(3, "third"), (2, "second"), (1, "first")]


def test_what_fails_is_tried_again_after_a_pause_and_given_up_after_the_last_attempt(
    admin: Api, hook: dict[str, Any], receiver: Receiver, database: Database
) -> None:
    receiver.answers = [500] * 50
    tell(database)
    for attempt in range(1, webhooks.MOST_ATTEMPTS + 1):
        assert deliver(database) == 1
        (one,) = deliveries(admin)
        assert (one["attempts"], one["status"]) == (attempt, 500)
        assert "500" in one["error"]
        if attempt < webhooks.MOST_ATTEMPTS:
            assert one["state"] == "pending"
            pause = datetime.fromisoformat(one["next_at"]) - datetime.fromisoformat(one["tried_at"])
            assert timedelta(0) <= pause <= timedelta(seconds=webhooks.pause_s(attempt, 1.0))
            make_due(database)
    assert (one["state"], one["next_at"]) == ("failed", None)
    assert deliver(database) == 0
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1  # by which receivers know it again
    assert all(is_signed(hook["secret"], *one) for one in receiver.got)
    assert made(admin.get(f"{URL}/pager"))["failing_since"] is not None


def test_an_attempt_that_is_queued_for_later_waits_in_the_queue(
    hook: dict[str, Any], receiver: Receiver, database: Database
) -> None:
    receiver.answers = [503]
    tell(database)
    deliver(database)
    with database.across_projects() as session:
        at = session.scalars(text("SELECT scheduled_at FROM procrastinate_jobs")).one()
        assert at == session.scalars(select(Delivery.next_at)).one()
    assert hook["failing_since"] is None


@pytest.mark.parametrize("status", [301, 302, 307, 404])
def test_a_redirect_is_not_followed_and_counts_as_a_failure(
    admin: Api, hook: dict[str, Any], receiver: Receiver, database: Database, status: int
) -> None:
    receiver.answers = [status]
    tell(database)
    deliver(database)
    assert deliveries(admin)[0]["status"] == status
    assert (len(receiver.got), deliveries(admin)[0]["state"], hook["state"]) == (1, "pending", "enabled")


def test_an_event_is_sent_again_on_request(
    admin: Api, hook: dict[str, Any], receiver: Receiver, database: Database
) -> None:
    tell(database)
    deliver(database)
    event = deliveries(admin)[0]["event"]
    again = made(admin.post(f"{URL}/pager/deliveries/{event}/replay"))
    assert (again["state"], again["attempts"]) == ("pending", 0)
    assert deliver(database) == 1
    (first, second) = receiver.got
    assert (first[1], first[0]["webhook-id"]) == (second[1], second[0]["webhook-id"])
    assert deliveries(admin)[0]["state"] == "delivered"
    answer = admin.post(f"{URL}/pager/deliveries/{hook['id']}/replay")
    assert (answer.status_code, answer.json()["code"]) == (404, "webhook.unknown")


def test_after_a_rotation_the_old_secret_signs_beside_the_new_one_for_a_day(
    admin: Api, hook: dict[str, Any], receiver: Receiver, database: Database
) -> None:
    new = made(admin.post(f"{URL}/pager/rotate"))["secret"]
    tell(database)
    deliver(database)
    assert is_signed(hook["secret"], *receiver.got[0])
    assert is_signed(new, *receiver.got[0])
    with database.across_projects() as session:
        session.execute(update(Webhook).values(old_secret_until=datetime.now(UTC)))
    tell(database)
    deliver(database)
    assert not is_signed(hook["secret"], *receiver.got[1])
    assert is_signed(new, *receiver.got[1])


def test_a_webhook_that_failed_for_days_is_disabled_and_goes_on_with_what_waited_when_it_is_enabled(
    admin: Api, hook: dict[str, Any], receiver: Receiver, database: Database
) -> None:
    receiver.answers = [500, 500]
    tell(database)
    deliver(database)
    long_ago = datetime.now(UTC) - webhooks.FAILING_ALLOWED - timedelta(minutes=1)
    with database.across_projects() as session:
        session.execute(update(Webhook).values(failing_since=long_ago))
    make_due(database)
    deliver(database)
    shown = made(admin.get(f"{URL}/pager"))
    assert (shown["state"], "500" in shown["disabled_because"], shown["id"]) == ("disabled", True, hook["id"])
    tell(database)  # of this it is told nothing
    deliver(database)
    later = datetime.now(UTC) + timedelta(days=1)
    with database.across_projects() as session:
        assert webhooks.queue_overdue(session, later) == 0
    event = deliveries(admin)[0]["event"]
    assert admin.post(f"{URL}/pager/deliveries/{event}/replay").json()["code"] == "webhook.disabled"
    made(admin.post(f"{URL}/pager/enable"))
    with database.across_projects() as session:
        assert webhooks.queue_overdue(session, later) == 1
    make_due(database)
    deliver(database)
    assert [one["state"] for one in deliveries(admin)] == ["delivered"]


def test_addresses_of_private_networks_are_refused_unless_that_is_allowed(
    admin: Api, hook: dict[str, Any], receiver: Receiver, database: Database
) -> None:
    tell(database)
    deliver(database, private=False)
    (one,) = deliveries(admin)
    assert (receiver.got, one["state"], one["status"], hook["state"]) == ([], "pending", None, "enabled")
    assert "AddressRefused" in one["error"]
    with database.across_projects() as session:
        session.execute(update(Webhook).values(url=receiver.url.replace("http://", "https://")))
    make_due(database)
    deliver(database, private=False)
    assert "not a public address" in deliveries(admin)[0]["error"]
    assert receiver.got == []


def test_a_test_reaches_this_webhook_alone_whatever_it_asks_for(
    admin: Api, receiver: Receiver, database: Database
) -> None:
    made(admin.post(URL, json={"name": "pager", "url": receiver.url, "types": ["job.failed"]}))
    made(admin.post(URL, json={"name": "other", "url": receiver.url}))
    made(admin.post(f"{URL}/pager/test"))
    assert deliver(database) == 1
    assert [json.loads(body)["data"] for _, body in receiver.got] == [{"webhook": "pager"}]


def test_a_deleted_webhook_is_sent_nothing(
    admin: Api, hook: dict[str, Any], receiver: Receiver, database: Database
) -> None:
    tell(database)
    assert admin.delete(f"{URL}/{hook['name']}").status_code == 204
    deliver(database)
    assert receiver.got == []
    assert admin.get(f"{URL}/pager").status_code == 404


def test_names_are_unique_and_a_project_has_so_many(admin: Api, hook: dict[str, Any], app: FastAPI) -> None:
    body = {"name": hook["name"], "url": hook["url"]}
    assert admin.post(URL, json=body).json()["code"] == "webhook.exists"
    for number in range(49):
        made(admin.post(URL, json=body | {"name": f"w-{number}"}))
    assert admin.post(URL, json=body | {"name": "more"}).json()["code"] == "webhook.too-many"
    assert as_scope(app, Scope.OPERATOR).post(URL, json=body).status_code == 403


def test_a_delivery_that_was_queued_twice_is_made_once(
    hook: dict[str, Any], receiver: Receiver, database: Database
) -> None:
    seq = tell(database)
    deliver(database)
    delivery.deliver(database, UUID(hook["id"]), seq, private=True)
    assert len(receiver.got) == 1


@pytest.fixture
def worker(settings: Settings, tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts worker processes; they are killed at the end."""
    environment = os.environ | {
        "SPRAT_DATABASE_URL": settings.database_url or "",
        "SPRAT_DATA_DIR": str(settings.data_dir),
        "SPRAT_WORKER_HEARTBEAT_S": "0.2",
        "SPRAT_WORKER_LOST_AFTER_S": "1.5",
        "SPRAT_WEBHOOK_PRIVATE": "1",
    }
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        script = Path(__file__).with_name("worker_with_test_tasks.py")
        with (tmp_path / "workers.log").open("ab") as log:
            started.append(subprocess.Popen([sys.executable, script], env=environment, stderr=log))
        return started[-1]

    yield start
    for each in started:
        each.kill()
        each.wait()


def wait_for(condition: Callable[[], object], what: str, timeout_s: float = 60) -> None:
    """Return when the condition holds; fail after the timeout."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"waited {timeout_s} s for: {what}"
        time.sleep(0.05)


def test_a_delivery_in_the_middle_of_which_the_worker_is_killed_is_made_again(
    admin: Api,
    hook: dict[str, Any],
    receiver: Receiver,
    database: Database,
    worker: Callable[[], subprocess.Popen[bytes]],
) -> None:
    receiver.hold.clear()
    tell(database)
    first = worker()
    wait_for(lambda: receiver.got, "the first attempt")
    first.kill()
    first.wait()
    receiver.hold.set()
    assert (deliveries(admin)[0]["state"], hook["state"]) == ("pending", "enabled")
    second = worker()
    with database.across_projects() as session:
        assert webhooks.queue_overdue(session) == 0
        session.execute(update(Delivery).values(next_at=datetime.now(UTC) - timedelta(minutes=6)))
    with database.across_projects() as session:
        assert webhooks.queue_overdue(session) == 1
    wait_for(lambda: deliveries(admin)[0]["state"] == "delivered", "the second attempt")
    assert [headers["webhook-id"] for headers, _ in receiver.got] == [receiver.got[0][0]["webhook-id"]] * 2
    second.terminate()
    assert second.wait(timeout=30) == 0


def test_old_events_are_forgotten_with_their_deliveries_and_numbers_go_on(
    hook: dict[str, Any], receiver: Receiver, database: Database
) -> None:
    for _ in range(3):
        tell(database)
    deliver(database)
    with database.across_projects() as session:
        outbox.forget_old(session, datetime.now(UTC) + outbox.KEPT + timedelta(hours=1))
    with database.transaction(DEFAULT_PROJECT) as session:
        assert session.scalars(select(Event.seq)).all() == [3]
        assert session.scalars(select(Delivery.event_seq)).all() == [3]
    assert (tell(database), len(receiver.got), hook["name"]) == (4, 3, "pager")


def test_metrics_count_attempts_by_how_they_ended_and_show_what_waits(
    admin: Api, server_viewer: Api, hook: dict[str, Any], receiver: Receiver, database: Database
) -> None:
    assert hook["name"] == "pager"

    def metric(name: str, **labels: str) -> float:
        wanted = {"project": "default", "webhook": "pager"} | labels
        by = ",".join(f'{label}="{wanted[label]}"' for label in sorted(wanted))
        series = f"{name}{{{by}}} "
        lines = server_viewer.get("/metrics").text.splitlines()
        (value,) = [line.removeprefix(series) for line in lines if line.startswith(series)]
        return float(value)

    receiver.answers = [500, 204] + [500] * webhooks.MOST_ATTEMPTS
    tell(database)
    with database.across_projects() as session:
        session.execute(update(Delivery).values(created_at=datetime.now(UTC) - timedelta(hours=2)))
    assert metric("sprat_webhook_waiting") == 1
    assert 7200 <= metric("sprat_webhook_oldest_seconds") < 7300
    for _ in range(2):
        deliver(database)
        make_due(database)
    assert (metric("sprat_webhook_waiting"), metric("sprat_webhook_oldest_seconds")) == (0, 0)
    tell(database)
    for _ in range(webhooks.MOST_ATTEMPTS):
        deliver(database)
        make_due(database)
    outcomes = ("delivered", "failed", "given_up")
    counts = [metric("sprat_webhook_deliveries_total", outcome=outcome) for outcome in outcomes]
    assert counts == [1, webhooks.MOST_ATTEMPTS, 1]
    admin.delete(f"{URL}/pager")
    assert "pager" not in server_viewer.get("/metrics").text


def test_metrics_keep_webhooks_of_one_name_in_two_projects_apart(
    server_admin: Api, server_viewer: Api, hook: dict[str, Any]
) -> None:
    made(server_admin.post("/api/v1/projects", json={"name": "line-3"}))
    made(server_admin.post(URL, json={"name": hook["name"], "url": hook["url"]}, headers={"Sprat-Project": "line-3"}))
    text_ = server_viewer.get("/metrics").text
    for project in ("default", "line-3"):
        assert f'sprat_webhook_waiting{{project="{project}",webhook="pager"}} 0.0' in text_
