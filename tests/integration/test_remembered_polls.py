"""What a server remembers between polls, and when it forgets: idle polls ask no database."""

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import httpx
import pytest
from fastapi import FastAPI
from fleet_calls import TestDevice, enrol, join, published, wished
from http_calls import Api
from poll_calls import Asking, bring_to, names, while_running
from sqlalchemy import event, select, update

from sprat_server.api.poll import PollMemory, Remembered
from sprat_server.app import create_app
from sprat_server.db.projects import DEFAULT_PROJECT
from sprat_server.db.session import Database
from sprat_server.fleet import service as fleet_service
from sprat_server.fleet.models import Device, DeviceSlots
from sprat_server.flows.poll import Poller
from sprat_server.observe import metrics
from sprat_server.publish import director_root
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


def test_an_idle_poll_is_answered_before_the_application_and_counted(app: FastAPI, device: TestDevice) -> None:
    bring_to(app, 1)
    counted = metrics.REQUESTS.labels("GET", "/device/v1/poll", "304")

    async def broken(*_: object) -> None:
        raise AssertionError("an idle poll came as far as the application")

    async def body(asking: Asking) -> None:
        before, behind = counted._value.get(), app.middleware_stack
        app.middleware_stack = broken
        try:
            assert (await asking.ask()).status_code == 304
            with pytest.raises(AssertionError, match="as far as the application"):
                await asking.ask(Authorization="Bearer nobody")
        finally:
            app.middleware_stack = behind
        assert counted._value.get() == before + 1

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
