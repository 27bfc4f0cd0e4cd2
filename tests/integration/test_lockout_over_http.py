"""Who fails too often is answered 429; who is known, and who is somebody else, is not concerned."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime

import httpx
import pytest
from fastapi import FastAPI
from fleet_calls import TestDevice, ask_for_token, assertion, enrol, join, published
from http_calls import Api
from sqlalchemy import update

from sprat_server.app import create_app
from sprat_server.db.projects import DEFAULT_PROJECT
from sprat_server.fleet.models import Device
from sprat_server.settings import Settings


@pytest.fixture
def app(settings: Settings) -> Iterator[FastAPI]:
    """The application, which takes 20 failures of an address a minute, 2 of them with one token."""
    made = create_app(settings.model_copy(update={"auth_failures_per_minute": 20}))
    yield made
    made.state.database.close()


@pytest.fixture
def device(app: FastAPI, operator: Api) -> TestDevice:
    """A device of the fleet."""
    published(app)
    return join(app, operator, 1)[0]


def wrong(api: Api) -> str:
    """The token of this operator with another secret."""
    assert api.token is not None
    return api.token[:-4] + "AAAA"


def test_guesses_of_a_tokens_secret_are_locked_out_and_so_is_the_secret_from_there(app: FastAPI, viewer: Api) -> None:
    guess = Api(app, wrong(viewer))
    answers = [guess.get("/api/v1/jobs") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [401, 401, 429]
    assert answers[-1].json()["code"] == "access.too-many-failures"
    assert 0 < int(answers[-1].headers["retry-after"]) <= 60
    assert viewer.get("/api/v1/jobs").status_code == 429


def test_others_behind_the_same_address_are_not_concerned(app: FastAPI, viewer: Api, operator: Api) -> None:
    for _ in range(5):
        Api(app, wrong(viewer)).get("/api/v1/jobs")
    assert operator.get("/api/v1/jobs").status_code == 200


def test_from_another_address_the_owner_is_let_in(app: FastAPI, viewer: Api) -> None:
    for _ in range(5):
        Api(app, wrong(viewer)).get("/api/v1/jobs")

    async def ask() -> int:
        transport = httpx.ASGITransport(app, client=("192.0.2.1", 1))
        headers = {"Authorization": f"Bearer {viewer.token}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://t", headers=headers) as client:
            return (await client.get("/api/v1/jobs")).status_code

    assert asyncio.run(ask()) == 200


@pytest.mark.parametrize("way", ["poll", "enrol", "token", "blob", "upload", "operator"])
def test_every_way_in_is_locked(app: FastAPI, device: TestDevice, way: str) -> None:
    stranger = Api(app, "spratd_made-up" if way in {"poll", "blob"} else "sprat_made-up")
    ask = {
        "poll": lambda: stranger.get("/device/v1/poll"),
        "enrol": lambda: enrol(app, "sprate_made-up", "press-9"),
        "token": lambda: ask_for_token(app, assertion(device.id, device.key, aud="other")),
        "blob": lambda: stranger.get("/blobs/sha256/" + "0" * 64),
        "upload": lambda: stranger.post("/api/v1/blobs", content=b"x"),
        "operator": lambda: stranger.get("/api/v1/jobs"),
    }[way]
    statuses = [ask().status_code for _ in range(21)]
    assert statuses[-1] == 429
    assert set(statuses) == {401, 429}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"token_expires_at": datetime(2020, 1, 1, tzinfo=UTC)}, "device.token-expired"),
        ({"revoked_at": datetime(2020, 1, 1, tzinfo=UTC)}, "device.revoked"),
    ],
)
def test_a_device_that_is_known_locks_out_nobody_behind_its_address(
    app: FastAPI, operator: Api, device: TestDevice, changes: dict[str, datetime], code: str
) -> None:
    (other,) = join(app, operator, 1)
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        session.execute(update(Device).where(Device.id == device.id).values(token_hash=Device.token_hash, **changes))
    for path in ("/device/v1/poll", "/blobs/sha256/" + "0" * 64):
        for _ in range(25):
            assert device.api.get(path).json()["code"] == code
    assert other.poll().status_code == 200


def test_a_device_whose_clock_is_wrong_is_not_punished(app: FastAPI, device: TestDevice) -> None:
    for _ in range(25):
        answer = ask_for_token(app, assertion(device.id, device.key, iat=1, exp=60))
        assert answer.json()["code"] == "device.clock"
    assert ask_for_token(app, assertion(device.id, device.key)).status_code == 200
