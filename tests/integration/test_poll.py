"""The poll: nothing when nothing changed, else one body with all that the device lacks."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

import httpx
import pytest
from fastapi import FastAPI
from fleet_calls import TestDevice, enrol, held_after, join, published
from http_calls import Api
from sqlalchemy import event, select, update

from sprat_server.app import create_app
from sprat_server.db.session import Database
from sprat_server.fleet import service as fleet_service
from sprat_server.fleet.models import Device
from sprat_server.fleet.tokens import hash_token
from sprat_server.flows import rollout as rollout_flow
from sprat_server.registry import service as registry
from sprat_server.settings import Settings
from sprat_shared.protocol.poll import HeldMetadata, PollAnswer
from sprat_shared.protocol.report import Outcome


@pytest.fixture
def device(app: FastAPI, operator: Api) -> TestDevice:
    """A device of a fleet whose model has two releases; it runs none."""
    published(app)
    published(app, base=1)
    return join(app, operator, 1)[0]


def bring_to(app: FastAPI, release: int) -> None:
    """Start a rollout to the whole fleet, without HTTP."""
    with app.state.database.transaction() as session:
        made_one = rollout_flow.create(
            session, model="mnist", release=release, reaches=["100%"], devices=None, by="test"
        )
        rollout_flow.start(session, made_one.id)


def names(answer: PollAnswer, kind: str) -> list[str]:
    return [part.name for part in answer.parts if part.kind == kind]


def test_a_device_that_knows_the_state_gets_304_without_a_body(device: TestDevice) -> None:
    first = device.poll()
    assert first.status_code == 200
    again = device.poll(etag=first.headers["etag"])
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]


def test_the_first_answer_carries_all_metadata_in_the_order_of_reading(app: FastAPI, device: TestDevice) -> None:
    bring_to(app, 2)
    answer = PollAnswer.from_bytes(device.poll().content)
    assert names(answer, "metadata") == [
        "image/1.root.json",
        "image/timestamp.json",
        "image/3.snapshot.json",
        "image/2.targets.json",
        "image/2.m.mnist.json",
    ]
    for part in answer.parts:
        path = part.name.replace("image/", "/tuf/image/")
        assert device.api.get(path).content == part.data
    assert answer.poll_interval_s == app.state.settings.poll_interval_s


def test_an_answer_packed_with_what_the_device_holds_is_small_and_reads_the_same(
    app: FastAPI, device: TestDevice
) -> None:
    bring_to(app, 1)
    plain = device.poll()
    held, dictionary = held_after(PollAnswer.from_bytes(plain.content))
    device.tell(Outcome.COMMITTED)
    bring_to(app, 2)
    published(app, base=2)
    packed = device.poll(held=held)
    answer = PollAnswer.from_bytes(packed.content, dictionary)
    assert names(answer, "metadata") == [
        "image/timestamp.json",
        "image/4.snapshot.json",
        "image/3.m.mnist.json",
    ]
    same = PollAnswer.from_bytes(device.poll().content)
    assert set(answer.parts) <= set(same.parts)
    assert answer.desired == same.desired
    assert len(packed.content) < 800, "three signatures, an update's digests, and little else"


def test_metadata_that_the_server_never_made_mean_a_plain_answer(device: TestDevice) -> None:
    answer = device.poll(held=[HeldMetadata("image", "root", 1), HeldMetadata("image", "snapshot", 77)])
    assert names(PollAnswer.from_bytes(answer.content), "metadata")[0] == "image/timestamp.json"


def test_payloads_that_fit_come_with_the_answer(app: FastAPI, device: TestDevice) -> None:
    bring_to(app, 1)
    wish = device.wish()
    assert wish is not None
    full = f"/blobs/sha256/{_blob_of(app, 1)[7:]}"
    inline = PollAnswer.from_bytes(device.poll(inline=100_000).content)
    (update, graph) = [part for part in inline.parts if part.kind == "blob"]
    assert update.data == device.api.get(full).content
    assert graph.data == b"the graph of mnist"
    some = PollAnswer.from_bytes(device.poll(inline=100).content)
    assert [part.data for part in some.parts if part.kind == "blob"] == [b"the graph of mnist"]
    assert names(PollAnswer.from_bytes(device.poll().content), "blob") == []


def _blob_of(app: FastAPI, number: int) -> str:
    with app.state.database.transaction() as session:
        release = registry.get_release(session, registry.get_model(session, "mnist"), number)
        return registry.updates_of(session, release)[0].blob


def test_a_device_that_has_the_graph_is_sent_the_update_alone(app: FastAPI, device: TestDevice) -> None:
    bring_to(app, 1)
    device.tell(Outcome.COMMITTED)
    bring_to(app, 2)
    answer = PollAnswer.from_bytes(device.poll(inline=1000).content)
    (payload,) = [part for part in answer.parts if part.kind == "blob"]
    assert payload.data.startswith(b"update ")
    assert len(payload.data) == 100


def test_after_the_commit_is_reported_nothing_is_sent_again(app: FastAPI, device: TestDevice) -> None:
    bring_to(app, 1)
    etag = device.poll().headers["etag"]
    device.tell(Outcome.COMMITTED)
    assert device.poll(etag=etag).status_code == 304
    wish = device.wish()
    assert wish is not None
    assert (wish.release, wish.path) == (1, ())


@pytest.mark.parametrize(
    ("headers", "status", "words"),
    [
        ({"Authorization": "Basic x"}, 401, "Authorization: Bearer"),
        ({"Authorization": "Bearer spratd_wrong"}, 401, "not valid"),
        ({"Sprat-Have": "what/is=this"}, 422, "Sprat-Have"),
        ({"Sprat-Inline": "-5"}, 422, "Sprat-Inline"),
    ],
)
def test_a_poll_that_cannot_be_read_says_what_is_wrong(
    device: TestDevice, headers: dict[str, str], status: int, words: str
) -> None:
    answer = device.api.get("/device/v1/poll", headers=headers)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert words in answer.json()["detail"]


def test_an_operators_token_does_not_poll(admin: Api, device: TestDevice) -> None:
    assert device.poll().status_code == 200
    assert admin.get("/device/v1/poll").status_code == 401


Ask = Callable[..., Awaitable[httpx.Response]]


def while_running(app: FastAPI, device: TestDevice, body: Callable[[Ask], Awaitable[None]]) -> None:
    """Run `body` with the application started: it listens, remembers, and writes last-seen times."""

    async def run() -> None:
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app)
            headers = {"Authorization": f"Bearer {device.api.token}"}
            async with httpx.AsyncClient(transport=transport, base_url="http://t", headers=headers) as client:

                async def ask(etag: str = "") -> httpx.Response:
                    return await client.get("/device/v1/poll", headers={"If-None-Match": etag})

                await settled(ask)
                await body(ask)

    asyncio.run(run())


async def settled(ask: Ask) -> str:
    """Poll until the answer is remembered; return its entity tag."""
    etag = (await ask()).headers["etag"]
    for _ in range(3):
        await asyncio.sleep(0.05)
        await ask(etag)
    return etag


class Statements:
    """Counts what is asked of the database."""

    def __init__(self, database: Database) -> None:
        self.count = 0
        event.listen(database.engine, "before_cursor_execute", self._seen)

    def _seen(self, *_: object) -> None:
        self.count += 1


def test_an_idle_poll_touches_no_table(app: FastAPI, device: TestDevice) -> None:
    async def body(ask: Ask) -> None:
        etag = await settled(ask)
        statements = Statements(app.state.database)
        answers = [await ask(etag) for _ in range(50)]
        assert {answer.status_code for answer in answers} == {304}
        assert statements.count == 0

    while_running(app, device, body)


async def changed_within(ask: Ask, etag: str, seconds: float = 5.0) -> httpx.Response:
    """Poll until the answer is not 304."""
    for _ in range(int(seconds / 0.01)):
        answer = await ask(etag)
        if answer.status_code != 304:
            return answer
        await asyncio.sleep(0.01)
    raise AssertionError("nothing was heard of the change")


def test_a_new_assignment_is_heard_of_through_the_database(app: FastAPI, device: TestDevice) -> None:
    async def body(ask: Ask) -> None:
        etag = await settled(ask)
        await asyncio.to_thread(bring_to, app, 1)
        answer = await changed_within(ask, etag)
        assert [wish.release for wish in PollAnswer.from_bytes(answer.content).desired] == [1]
        etag = answer.headers["etag"]
        assert (await ask(etag)).status_code == 304

    while_running(app, device, body)


def test_new_metadata_are_heard_of(app: FastAPI, device: TestDevice) -> None:
    async def body(ask: Ask) -> None:
        etag = await settled(ask)
        await asyncio.to_thread(published, app, model="pcb")
        answer = await changed_within(ask, etag)
        assert "image/timestamp.json" in names(PollAnswer.from_bytes(answer.content), "metadata")

    while_running(app, device, body)


def test_a_revoked_device_is_refused_though_it_was_remembered(app: FastAPI, device: TestDevice) -> None:
    def revoke(database: Database, device_id: UUID) -> None:
        with database.transaction() as session:
            fleet_service.revoke(session, device_id)

    async def body(ask: Ask) -> None:
        etag = await settled(ask)
        await asyncio.to_thread(revoke, app.state.database, device.id)
        assert (await changed_within(ask, etag)).json()["code"] == "device.revoked"

    while_running(app, device, body)


def test_a_revocation_is_heard_of_by_every_replica_at_once(
    app: FastAPI, settings: Settings, operator: Api, device: TestDevice
) -> None:
    replica = create_app(settings)

    async def body(ask: Ask) -> None:
        async with replica.router.lifespan_context(replica):
            headers = {"Authorization": f"Bearer {device.api.token}"}
            transport = httpx.ASGITransport(replica)
            async with httpx.AsyncClient(transport=transport, base_url="http://t", headers=headers) as client:

                async def ask_replica(etag: str = "") -> httpx.Response:
                    return await client.get("/device/v1/poll", headers={"If-None-Match": etag})

                etag = await settled(ask_replica)
                assert replica.state.poll.memory.get(hash_token(device.api.token or "")) is not None
                await asyncio.to_thread(operator.post, f"/api/v1/devices/{device.id}/revoke", json={"reason": "stolen"})
                for each in (ask, ask_replica):
                    assert (await changed_within(each, etag, 1.0)).json()["code"] == "device.revoked"

    while_running(app, device, body)


def test_a_remembered_device_is_refused_when_its_token_ends_or_another_takes_its_place(
    app: FastAPI, operator: Api, device: TestDevice
) -> None:
    def expire(database: Database) -> None:
        with database.transaction() as session:
            soon = datetime.now(UTC) + timedelta(seconds=1)
            session.execute(update(Device).values(token_expires_at=soon, token_hash=Device.token_hash))

    async def body(ask: Ask) -> None:
        await asyncio.to_thread(expire, app.state.database)
        etag = await settled(ask)
        statements = Statements(app.state.database)
        assert (await ask(etag)).status_code == 304
        assert statements.count == 0, "it is remembered"
        await asyncio.sleep(1.1)
        assert (await ask(etag)).json()["code"] == "device.token-expired"

    while_running(app, device, body)
    (other,) = join(app, operator, 1)

    async def replaced(ask: Ask) -> None:
        etag = await settled(ask)
        token = await asyncio.to_thread(operator.post, f"/api/v1/devices/{other.id}/replace", json={})
        await asyncio.to_thread(enrol, app, token.json()["token"], other.name)
        assert (await changed_within(ask, etag, 1.0)).status_code == 401

    while_running(app, other, replaced)


def test_nothing_is_remembered_while_nobody_listens(app: FastAPI, device: TestDevice) -> None:
    def cut(database: Database) -> None:
        with database.transaction() as session:
            cut_off = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE starts_with(query, 'LISTEN')"
            session.connection().exec_driver_sql(cut_off)

    async def body(ask: Ask) -> None:
        etag = await settled(ask)
        await asyncio.to_thread(cut, app.state.database)
        await asyncio.sleep(0.2)
        statements = Statements(app.state.database)
        assert (await ask(etag)).status_code == 304
        assert statements.count > 0
        await asyncio.sleep(2)
        await settled(ask)
        statements.count = 0
        assert (await ask(etag)).status_code == 304
        assert statements.count == 0, "it listens again"

    while_running(app, device, body)


def test_last_seen_times_are_written_together_at_the_latest_when_the_server_stops(
    app: FastAPI, device: TestDevice
) -> None:
    def last_seen() -> object:
        with app.state.database.transaction() as session:
            return session.scalar(select(Device.last_seen_at).where(Device.id == device.id))

    assert last_seen() is None

    async def body(ask: Ask) -> None:
        await ask()

    while_running(app, device, body)
    assert last_seen() is not None


def test_each_device_is_told_its_own(app: FastAPI, operator: Api, device: TestDevice) -> None:
    (other,) = join(app, operator, 1)
    bring_to(app, 1)
    device.tell(Outcome.COMMITTED)
    mine, others = device.wish(), other.wish()
    assert mine is not None
    assert others is not None
    assert (mine.path, others.path) == ((), ("mnist/1/full",))
