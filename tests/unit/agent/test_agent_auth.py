"""How the agent proves itself: a token when there is none, another after a 401, once; and a clock that is wrong."""

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from device_server import ENROLMENT_TOKEN, DeviceServer

from sprat_client.agent.auth import DeviceAuth, signed_claims
from sprat_client.agent.durable import PosixDisk
from sprat_client.agent.enrol import enrol
from sprat_client.agent.identity import load_key
from sprat_client.agent.settings import LinkSettings
from sprat_client.agent.transfer import Link, LinkDown
from sprat_shared.errors import InvalidInput, Unauthenticated
from sprat_shared.ids import new_id
from sprat_shared.protocol.enrol import EnrolPending, fingerprint
from sprat_shared.protocol.token import TOKEN_PATH


@pytest.fixture
def server() -> DeviceServer:
    return DeviceServer()


@pytest.fixture
def url(server: DeviceServer) -> Iterator[str]:
    with server.running() as url:
        yield url


@pytest.fixture
def link(url: str, tmp_path: Path) -> Iterator[Link]:
    folder = tmp_path / "device"
    identity = enrol(folder, PosixDisk(), server_url=url, token=ENROLMENT_TOKEN, name="gate-7")
    with Link.of(identity, load_key(folder), LinkSettings(idle_timeout_s=2.0)) as link:
        yield link


def asked(server: DeviceServer) -> list[str]:
    """What was asked since the enrolment."""
    return [path for _, path, _ in server.requests if path != "/device/v1/enrol"]


def test_another_implementation_reads_the_assertion_and_finds_a_changed_one_forged() -> None:
    key, claims = Ed25519PrivateKey.generate(), {"iss": "gate-7", "aud": "urn:x", "iat": 1, "jti": "ü"}
    token = signed_claims(claims, key)
    assert jwt.decode(token, key.public_key(), algorithms=["EdDSA"], audience="urn:x") == claims
    assert jwt.get_unverified_header(token) == {"alg": "EdDSA", "typ": "JWT"}
    for forged in (token[:-8] + "AAAAAAAA", signed_claims({**claims, "iat": 2}, Ed25519PrivateKey.generate())):
        with pytest.raises(jwt.InvalidSignatureError):
            jwt.decode(forged, key.public_key(), algorithms=["EdDSA"], audience="urn:x")


def test_one_token_serves_many_requests(server: DeviceServer, link: Link) -> None:
    link.poll([])
    link.poll([])
    assert asked(server) == [TOKEN_PATH, "/device/v1/poll", "/device/v1/poll"]


def test_a_token_that_the_server_does_not_know_any_more_is_replaced_once(server: DeviceServer, link: Link) -> None:
    link.poll([])
    server.devices["gate-7"].token = "another's"
    link.poll([])
    assert asked(server)[2:] == ["/device/v1/poll", TOKEN_PATH, "/device/v1/poll"]


def test_a_token_is_replaced_before_it_ends(server: DeviceServer, link: Link) -> None:
    server.token_lives_s = 1.0
    link.poll([])
    link.poll([])
    assert asked(server) == [TOKEN_PATH, "/device/v1/poll"] * 2


@pytest.mark.parametrize("ahead_s", [-40 * 365 * 86400.0, -3600.0, 3600.0, 40 * 365 * 86400.0])
def test_a_device_whose_clock_is_wrong_gets_in_by_the_servers(server: DeviceServer, link: Link, ahead_s: float) -> None:
    server.clock_ahead_s = ahead_s
    server.token_lives_s = 0.1  # so that the second poll needs another token
    link.poll([])
    link.poll([])
    assert asked(server) == [TOKEN_PATH, TOKEN_PATH, "/device/v1/poll", TOKEN_PATH, "/device/v1/poll"]


def test_a_device_that_is_not_known_is_told_so_without_asking_on(server: DeviceServer, link: Link) -> None:
    server.devices.clear()
    with pytest.raises(Unauthenticated, match="not known"):
        link.poll([])
    assert asked(server) == [TOKEN_PATH]


def test_a_busy_server_is_asked_for_a_token_later(server: DeviceServer, link: Link) -> None:
    server.unavailable, server.retry_after = 1, "7"
    with pytest.raises(LinkDown) as failed:
        link.poll([])
    assert failed.value.wait_s == 7.0


def answering(handler: httpx.MockTransport) -> Link:
    auth = DeviceAuth("http://127.0.0.1:9", new_id(), Ed25519PrivateKey.generate())
    return Link("http://127.0.0.1:9", auth, LinkSettings(), transport=handler)


@pytest.mark.parametrize(
    "response",
    [
        httpx.Response(200, content=b"<html>"),
        httpx.Response(200, json={"access_token": "t", "token_type": "Bearer", "expires_in": -1}),
        httpx.Response(200, json={"access_token": "t", "token_type": "mac", "expires_in": 60}),
        httpx.Response(204),
        httpx.Response(304),
        httpx.Response(200, stream=httpx.ByteStream(b"x" * (1 << 20))),
    ],
)
def test_an_answer_that_is_no_token_is_never_taken_for_one(response: httpx.Response) -> None:
    with answering(httpx.MockTransport(lambda _: response)) as link, pytest.raises(InvalidInput):
        link.poll([])


def test_a_server_that_never_agrees_with_its_own_time_is_not_asked_for_ever() -> None:
    paths: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        paths.append(request.url.path)
        return httpx.Response(401, json={"server_time": time.time(), "detail": "of another time"})

    with answering(httpx.MockTransport(answer)) as link, pytest.raises(Unauthenticated):
        link.poll([])
    assert paths == [TOKEN_PATH] * 2


@pytest.mark.parametrize("told", ["now", True, -5, 1e300, None, [1]])
def test_a_time_that_is_none_is_not_believed(told: object) -> None:
    def answer(_request: httpx.Request) -> httpx.Response:
        return httpx.Response(401, json={"server_time": told})

    with answering(httpx.MockTransport(answer)) as link, pytest.raises(Unauthenticated):
        link.poll([])


def test_a_device_without_a_token_waits_says_its_fingerprint_once_and_is_let_in(
    server: DeviceServer, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.accepted = False
    said: list[EnrolPending] = []
    naps: list[float] = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        server.accepted = len(naps) == 3
        server.unavailable = 1 if len(naps) == 1 else 0  # a server that is away meanwhile is waited for

    monkeypatch.setattr(time, "sleep", nap)
    identity = enrol(tmp_path / "d", PosixDisk(), server_url=url, token=None, name="gate-7", waiting=said.append)
    key = load_key(tmp_path / "d").public_key().public_bytes_raw()
    assert [answer.fingerprint for answer in said] == [fingerprint(key)]
    assert identity.device == server.devices["gate-7"].id
    assert min(naps[0], naps[2]) >= 1.0, "however soon the server wishes to be asked again"


def test_no_secret_is_kept_in_the_folder_but_the_key(url: str, tmp_path: Path, link: Link) -> None:
    link.poll([])
    kept = {file.name: file.read_bytes() for file in (tmp_path / "device").rglob("*") if file.is_file()}
    assert not [name for name, data in kept.items() if b"token" in data]
    assert url
