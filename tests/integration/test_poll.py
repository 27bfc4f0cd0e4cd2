"""The poll: nothing when nothing changed, else one body with all that the device lacks."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import httpx
import pytest
from fastapi import FastAPI
from fleet_calls import TestDevice, enrol, held_after, join, published, wished
from http_calls import Api
from sqlalchemy import event, select, update

from sprat_server.api.poll import PollMemory, Remembered
from sprat_server.app import create_app
from sprat_server.db.projects import DEFAULT_PROJECT
from sprat_server.db.session import Database
from sprat_server.fleet import service as fleet_service
from sprat_server.fleet.models import Device, DeviceSlots
from sprat_server.flows import rollout as rollout_flow
from sprat_server.flows.poll import Poller
from sprat_server.publish import director_root
from sprat_server.registry import service as registry
from sprat_server.rollouts.plan import RolloutPlan
from sprat_server.settings import Settings
from sprat_shared.protocol.poll import HeldMetadata, PollAnswer, format_tag
from sprat_shared.protocol.report import Outcome


@pytest.fixture
def device(app: FastAPI, operator: Api) -> TestDevice:
    """A device of a fleet whose model has two releases; it runs none."""
    published(app)
    published(app, base=1)
    return join(app, operator, 1)[0]


def bring_to(app: FastAPI, release: int) -> None:
    """Start a rollout to the whole fleet, without HTTP."""
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        made_one = rollout_flow.create(
            session,
            model="mnist",
            release=release,
            reaches=["100%"],
            devices=None,
            by="test",
            plan=RolloutPlan(override_quarantine="a test"),
        )
        rollout_flow.start(session, made_one.id, app.state.settings)


def names(answer: PollAnswer, kind: str) -> list[str]:
    return [part.name for part in answer.parts if part.kind == kind]


def held_by(device: TestDevice) -> dict[HeldMetadata, bytes]:
    """Return what the device holds once it has read everything."""
    return held_after(PollAnswer.from_bytes(device.poll().content))


def test_a_device_that_holds_the_newest_gets_304_and_nothing_else(app: FastAPI, device: TestDevice) -> None:
    bring_to(app, 1)
    answer = device.poll(held=list(held_by(device)))
    assert (answer.status_code, answer.content, dict(answer.headers)) == (304, b"", {})


def test_what_a_device_holds_beyond_its_needs_is_no_reason_for_an_answer(app: FastAPI, device: TestDevice) -> None:
    bring_to(app, 1)
    held = [*held_by(device), HeldMetadata("image", "m.former", 12)]
    assert device.poll(held=held).status_code == 304


def test_each_file_that_is_older_or_not_there_is_sent_by_itself(app: FastAPI, device: TestDevice) -> None:
    bring_to(app, 1)
    held = held_by(device)
    for missing in held:
        answer = device.poll(held=[item for item in held if item != missing])
        ((name, data),) = [
            (part.name, part.data)
            for part in PollAnswer.from_bytes(
                answer.content, b"".join(data for item, data in held.items() if item != missing)
            ).parts
        ]
        assert name.startswith(missing.repository)
        assert name.endswith(f"{missing.role}.json")
        assert data == held[missing]


def test_the_first_answer_carries_all_metadata_in_the_order_of_reading(app: FastAPI, device: TestDevice) -> None:
    bring_to(app, 2)
    got = device.poll()
    assert set(got.headers) == {"content-type", "content-length"}
    answer = PollAnswer.from_bytes(got.content)
    assert names(answer, "metadata") == [
        "image/1.root.json",
        "image/timestamp.json",
        "image/3.snapshot.json",
        "image/2.targets.json",
        "image/2.m.mnist.json",
        "director/1.root.json",
        "director/timestamp.json",
        "director/1.snapshot.json",
        "director/1.targets.json",
    ]
    for part in answer.parts:
        assert device.api.get(f"/tuf/{part.name}").content == part.data
    assert answer.poll_interval_s == app.state.settings.poll_interval_s


def test_an_answer_packed_with_what_the_device_holds_is_small_and_reads_the_same(
    app: FastAPI, device: TestDevice
) -> None:
    bring_to(app, 1)
    held = held_by(device)
    device.tell(Outcome.COMMITTED)
    published(app, base=2)
    bring_to(app, 3)
    packed = device.poll(held=list(held))
    answer = PollAnswer.from_bytes(packed.content, b"".join(held.values()))
    assert names(answer, "metadata") == [
        "image/timestamp.json",
        "image/4.snapshot.json",
        "image/3.m.mnist.json",
        "director/timestamp.json",
        "director/2.snapshot.json",
        "director/2.targets.json",
    ]
    assert set(answer.parts) <= set(PollAnswer.from_bytes(device.poll().content).parts)
    assert device.poll(held=list(held_after(answer, held))).status_code == 304
    assert len(packed.content) <= 700, "six signatures, an update's digests, and little else"
    assert len(device.poll().content) <= 4000


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
    unsaid = PollAnswer.from_bytes(device.api.get("/device/v1/poll").content)
    assert unsaid == inline


def test_a_payload_comes_with_its_assignment_and_not_again_with_later_metadata(
    app: FastAPI, device: TestDevice
) -> None:
    held = held_by(device)
    bring_to(app, 1)
    lost = device.poll(held=list(held), inline=100_000)
    again = device.poll(held=list(held), inline=100_000)
    assert again.content == lost.content
    answer = PollAnswer.from_bytes(again.content, b"".join(held.values()))
    assert len(names(answer, "blob")) == 2
    held = held_after(answer, held)
    published(app, base=2)
    later = PollAnswer.from_bytes(device.poll(held=list(held), inline=100_000).content, b"".join(held.values()))
    assert names(later, "metadata")
    assert names(later, "blob") == []


def _blob_of(app: FastAPI, number: int) -> str:
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
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
    held = list(held_by(device))
    device.tell(Outcome.COMMITTED)
    assert device.poll(held=held).status_code == 304
    everything = PollAnswer.from_bytes(device.poll(inline=100_000).content)
    assert names(everything, "blob") == []


@pytest.mark.parametrize(
    ("headers", "status", "words"),
    [
        ({"Authorization": "Basic x"}, 401, "Authorization: Bearer"),
        ({"Authorization": "Bearer spratd_wrong"}, 401, "not valid"),
        ({"If-None-Match": '"what/is=this"'}, 422, "If-None-Match"),
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


class Asking:
    """The device while the application runs; it keeps what it is sent.

    Args:
        client: with the device's token.
    """

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self.held: dict[HeldMetadata, bytes] = {}

    async def ask(self) -> httpx.Response:
        """Poll, and keep nothing of the answer."""
        return await self._client.get("/device/v1/poll", headers={"If-None-Match": format_tag(list(self.held))})

    async def settled(self) -> None:
        """Poll until there is nothing new and the server remembers it."""
        while (answer := await self.ask()).status_code == 200:
            self.keep(answer)
        for _ in range(3):
            await asyncio.sleep(0.05)
            await self.ask()

    def keep(self, answer: httpx.Response) -> PollAnswer:
        """Keep the metadata of an answer, and return it."""
        read = PollAnswer.from_bytes(answer.content, b"".join(self.held.values()))
        self.held = held_after(read, self.held)
        return read

    async def changed_within(self, seconds: float = 5.0) -> httpx.Response:
        """Poll until the answer is not 304."""
        for _ in range(int(seconds / 0.01)):
            answer = await self.ask()
            if answer.status_code != 304:
                return answer
            await asyncio.sleep(0.01)
        raise AssertionError("nothing was heard of the change")


def while_running(app: FastAPI, device: TestDevice, body: Callable[[Asking], Awaitable[None]]) -> None:
    """Run `body` with the application started: it listens, remembers, and writes last-seen times."""

    async def run() -> None:
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app)
            headers = {"Authorization": f"Bearer {device.api.token}"}
            async with httpx.AsyncClient(transport=transport, base_url="http://t", headers=headers) as client:
                asking = Asking(client)
                await asking.settled()
                await body(asking)

    asyncio.run(run())


class Statements:
    """Counts what is asked of the database."""

    def __init__(self, database: Database) -> None:
        self.count = 0
        event.listen(database.engine, "before_cursor_execute", self._seen)

    def _seen(self, *_: object) -> None:
        self.count += 1


def test_an_idle_poll_touches_no_table(app: FastAPI, device: TestDevice) -> None:
    bring_to(app, 1)

    async def body(asking: Asking) -> None:
        statements = Statements(app.state.database)
        answers = [await asking.ask() for _ in range(50)]
        assert {answer.status_code for answer in answers} == {304}
        assert statements.count == 0

    while_running(app, device, body)


def test_another_tag_than_the_one_that_is_remembered_is_looked_at(app: FastAPI, device: TestDevice) -> None:
    async def body(asking: Asking) -> None:
        del asking.held[HeldMetadata("director", "targets", 1)]
        assert (await asking.ask()).status_code == 200

    while_running(app, device, body)


def test_a_new_assignment_is_heard_of_through_the_database(app: FastAPI, device: TestDevice) -> None:
    async def body(asking: Asking) -> None:
        await asyncio.to_thread(bring_to, app, 1)
        asking.keep(await asking.changed_within())
        (wish,) = json.loads(asking.held[HeldMetadata("director", "targets", 2)])["signed"]["targets"]
        assert wish == "mnist/1/full"
        assert (await asking.ask()).status_code == 304

    while_running(app, device, body)


def test_new_metadata_are_heard_of(app: FastAPI, device: TestDevice) -> None:
    async def body(asking: Asking) -> None:
        await asyncio.to_thread(published, app, model="pcb")
        answer = asking.keep(await asking.changed_within())
        assert "image/timestamp.json" in names(answer, "metadata")

    while_running(app, device, body)


def test_a_new_root_of_the_director_is_heard_of(app: FastAPI, device: TestDevice) -> None:
    def rotate() -> None:
        with app.state.database.transaction(DEFAULT_PROJECT) as session:
            director_root.rotate_online_key(session, app.state.settings)

    async def body(asking: Asking) -> None:
        await asyncio.to_thread(rotate)
        answer = asking.keep(await asking.changed_within())
        assert "director/2.root.json" in names(answer, "metadata")
        assert (await asking.ask()).status_code == 304

    while_running(app, device, body)


def test_a_cheaper_path_is_heard_of_when_a_report_changes_what_is_held(app: FastAPI, device: TestDevice) -> None:
    bring_to(app, 1)

    async def body(asking: Asking) -> None:
        def hold_the_first() -> None:
            device.tell(Outcome.COMMITTED)
            bring_to(app, 2)

        await asyncio.to_thread(hold_the_first)
        asking.keep(await asking.changed_within())
        await asyncio.to_thread(lose_the_slots, app.state.database)
        answer = asking.keep(await asking.changed_within())
        assert names(answer, "metadata") == [
            "director/timestamp.json",
            "director/3.snapshot.json",
            "director/3.targets.json",
        ]

    def lose_the_slots(database: Database) -> None:
        with database.transaction(DEFAULT_PROJECT) as session:
            session.execute(update(DeviceSlots).values(active=None))

    while_running(app, device, body)


def test_a_revoked_device_is_refused_though_it_was_remembered(app: FastAPI, device: TestDevice) -> None:
    def revoke(database: Database, device_id: UUID) -> None:
        with database.transaction(DEFAULT_PROJECT) as session:
            fleet_service.revoke(session, device_id)

    async def body(asking: Asking) -> None:
        await asyncio.to_thread(revoke, app.state.database, device.id)
        answer = await asking.changed_within()
        assert (answer.status_code, answer.json()["code"]) == (401, "device.revoked")

    while_running(app, device, body)


def test_a_revocation_is_heard_of_by_every_replica_at_once(
    app: FastAPI, settings: Settings, operator: Api, device: TestDevice
) -> None:
    replica = create_app(settings)

    async def body(asking: Asking) -> None:
        async with replica.router.lifespan_context(replica):
            headers = {"Authorization": f"Bearer {device.api.token}"}
            transport = httpx.ASGITransport(replica)
            async with httpx.AsyncClient(transport=transport, base_url="http://t", headers=headers) as client:
                elsewhere = Asking(client)
                await elsewhere.settled()
                statements = Statements(replica.state.database)
                await elsewhere.ask()
                assert statements.count == 0, "it is remembered"
                await asyncio.to_thread(operator.post, f"/api/v1/devices/{device.id}/revoke", json={"reason": "stolen"})
                for each in (asking, elsewhere):
                    assert (await each.changed_within(1.0)).json()["code"] == "device.revoked"

    while_running(app, device, body)


def test_a_remembered_device_is_refused_when_its_token_ends_or_another_takes_its_place(
    app: FastAPI, operator: Api, device: TestDevice
) -> None:
    def expire(database: Database) -> None:
        with database.transaction(DEFAULT_PROJECT) as session:
            soon = datetime.now(UTC) + timedelta(seconds=1)
            session.execute(update(Device).values(token_expires_at=soon, token_hash=Device.token_hash))

    async def body(asking: Asking) -> None:
        await asyncio.to_thread(expire, app.state.database)
        await asking.settled()
        statements = Statements(app.state.database)
        assert (await asking.ask()).status_code == 304
        assert statements.count == 0, "it is remembered"
        await asyncio.sleep(1.1)
        assert (await asking.ask()).json()["code"] == "device.token-expired"

    while_running(app, device, body)
    (other,) = join(app, operator, 1)

    async def replaced(asking: Asking) -> None:
        token = await asyncio.to_thread(operator.post, f"/api/v1/devices/{other.id}/replace", json={})
        await asyncio.to_thread(enrol, app, token.json()["token"], other.name)
        assert (await asking.changed_within(1.0)).status_code == 401

    while_running(app, other, replaced)


def test_nothing_is_remembered_while_nobody_listens(app: FastAPI, device: TestDevice) -> None:
    def cut(database: Database) -> None:
        with database.transaction(DEFAULT_PROJECT) as session:
            cut_off = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE starts_with(query, 'LISTEN')"
            session.connection().exec_driver_sql(cut_off)

    async def body(asking: Asking) -> None:
        await asyncio.to_thread(cut, app.state.database)
        await asyncio.sleep(0.2)
        statements = Statements(app.state.database)
        assert (await asking.ask()).status_code == 304
        assert statements.count > 0
        await asyncio.sleep(2)
        await asking.settled()
        statements.count = 0
        assert (await asking.ask()).status_code == 304
        assert statements.count == 0, "it listens again"

    while_running(app, device, body)


def test_what_is_remembered_holds_until_the_director_is_to_sign_again(device: TestDevice) -> None:
    memory, now = PollMemory(), datetime.now(UTC)
    poller = Poller(device.id, device.name, token_expires_at=now + timedelta(days=2))
    memory.forget_all(listening=True)
    memory.remember(b"token", Remembered(poller, '"tag"', now + timedelta(days=1)), memory.generation)
    assert memory.who_is_current(b"token", '"tag"', now) == poller
    assert memory.who_is_current(b"token", '"tag"', now + timedelta(days=1)) is None
    assert memory.who_is_current(b"other", '"tag"', now) is None
    ended = replace(poller, token_expires_at=now + timedelta(hours=1))
    memory.remember(b"token", Remembered(ended, '"tag"', now + timedelta(days=1)), memory.generation)
    assert memory.who_is_current(b"token", '"tag"', now + timedelta(hours=2)) is None, "its token has ended"


def test_last_seen_times_are_written_together_at_the_latest_when_the_server_stops(
    app: FastAPI, device: TestDevice
) -> None:
    def last_seen() -> object:
        with app.state.database.transaction(DEFAULT_PROJECT) as session:
            return session.scalar(select(Device.last_seen_at).where(Device.id == device.id))

    assert last_seen() is None

    async def body(asking: Asking) -> None:
        await asking.ask()

    while_running(app, device, body)
    assert last_seen() is not None


def test_each_device_is_told_its_own(app: FastAPI, operator: Api, device: TestDevice) -> None:
    (other,) = join(app, operator, 1)
    bring_to(app, 1)
    device.tell(Outcome.COMMITTED)
    other.tell(Outcome.COMMITTED)
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        model = registry.get_model(session, "mnist")
        fleet_service.assign(session, model.id, {device.id: 2}, "rollout")
    mine, others = (wished(PollAnswer.from_bytes(one.poll().content)) for one in (device, other))
    assert mine is not None
    assert others is not None
    assert (mine.assigned.device, mine.path) == (device.id, ("mnist/2/from-1",))
    assert (others.assigned.device, others.release) == (other.id, 1)
