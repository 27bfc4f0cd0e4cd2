"""The link, against a real HTTP server on loopback that cuts, is busy, and sends what it should not."""

import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from device_server import ENROLMENT_TOKEN, DeviceServer

from sprat_client.agent.durable import PosixDisk
from sprat_client.agent.enrol import enrol
from sprat_client.agent.fetcher import LinkDown
from sprat_client.agent.identity import Identity, check_server_url, load_key
from sprat_client.agent.journal import Journal
from sprat_client.agent.settings import LinkSettings
from sprat_client.agent.transfer import Backoff, Blob, Link
from sprat_client.agent.trust.clock import Clock
from sprat_client.agent.trust.store import TrustStore
from sprat_shared.errors import (
    AccessDenied,
    Conflict,
    DigestMismatch,
    InvalidInput,
    NotFound,
    SpratError,
    TryLater,
    UntrustedUpdate,
)
from sprat_shared.protocol.poll import PollAnswer

PAYLOAD = bytes(range(256)) * 800  # 204,800 bytes
SHA256 = sha256(PAYLOAD).digest()


@pytest.fixture
def server() -> DeviceServer:
    server = DeviceServer()
    server.blobs[SHA256.hex()] = PAYLOAD
    return server


@pytest.fixture
def url(server: DeviceServer) -> Iterator[str]:
    with server.running() as url:
        yield url


@pytest.fixture
def device(url: str, tmp_path: Path) -> Identity:
    return enrol(tmp_path / "device", PosixDisk(), server_url=url, token=ENROLMENT_TOKEN, name="gate-7")


@pytest.fixture
def key(device: Identity, tmp_path: Path) -> Ed25519PrivateKey:
    assert device.name == "gate-7"
    return load_key(tmp_path / "device")


@pytest.fixture
def link(device: Identity, key: Ed25519PrivateKey) -> Iterator[Link]:
    with Link.of(device, key, LinkSettings(idle_timeout_s=2.0)) as link:
        yield link


class Counter:
    """Counts the bytes that arrived."""

    total = 0

    def __call__(self, size: int) -> None:
        self.total += size


def blob_in(folder: Path) -> Blob:
    return Blob(SHA256, len(PAYLOAD), folder / "downloads" / SHA256.hex())


def download_until_done(link: Link, blob: Blob, received: Counter) -> int:
    """Return how many attempts it took."""
    for attempt in range(1, 50):
        try:
            link.download(blob, PosixDisk(), received)
        except LinkDown:
            continue
        return attempt
    raise AssertionError("never done")


def test_a_cut_download_goes_on_where_it_stopped(server: DeviceServer, link: Link, tmp_path: Path) -> None:
    server.cut_after = [1000, 50_000, 1, 70_000]
    received, blob = Counter(), blob_in(tmp_path)
    assert download_until_done(link, blob, received) == 5
    assert blob.file.read_bytes() == PAYLOAD
    assert received.total == server.blob_bytes_sent == len(PAYLOAD)


def test_a_download_goes_on_in_another_process(
    server: DeviceServer, link: Link, device: Identity, key: Ed25519PrivateKey, tmp_path: Path
) -> None:
    server.cut_after = [90_000]
    received, blob = Counter(), blob_in(tmp_path)
    with pytest.raises(LinkDown):
        link.download(blob, PosixDisk(), received)
    with Link.of(device, key, LinkSettings()) as later:
        later.download(blob, PosixDisk(), received)
    assert blob.file.read_bytes() == PAYLOAD
    assert received.total == len(PAYLOAD)


def test_a_kept_part_that_was_torn_is_fetched_again_from_the_start(link: Link, tmp_path: Path) -> None:
    blob = blob_in(tmp_path)
    blob.file.parent.mkdir()
    blob.file.write_bytes(bytes(1000))
    assert download_until_done(link, blob, Counter()) == 2
    assert blob.file.read_bytes() == PAYLOAD


def test_other_bytes_than_the_signed_ones_are_refused_and_not_kept(
    server: DeviceServer, link: Link, tmp_path: Path
) -> None:
    server.blobs[SHA256.hex()] = PAYLOAD[:-1] + b"!"
    blob = blob_in(tmp_path)
    with pytest.raises(DigestMismatch):
        link.download(blob, PosixDisk(), Counter())
    assert not blob.file.exists()


def test_more_bytes_than_the_signed_length_are_not_read(server: DeviceServer, link: Link, tmp_path: Path) -> None:
    server.blobs[SHA256.hex()] = PAYLOAD * 20
    received = Counter()
    with pytest.raises(InvalidInput, match="more than") as bad:
        link.download(blob_in(tmp_path), PosixDisk(), received)
    assert bad.value.code == "link.too-long"
    assert received.total <= len(PAYLOAD)


def test_a_blob_that_is_not_there_is_said_so(server: DeviceServer, link: Link, tmp_path: Path) -> None:
    server.blobs.clear()
    with pytest.raises(NotFound, match="no such blob"):
        link.download(blob_in(tmp_path), PosixDisk(), Counter())


@pytest.mark.parametrize(("said", "waits"), [("7", 7.0), (None, 0.0), ("soon", 0.0), ("999999", 3600.0)])
def test_a_busy_server_says_how_long_to_wait(server: DeviceServer, link: Link, said: str | None, waits: float) -> None:
    server.unavailable, server.retry_after = 1, said
    with pytest.raises(LinkDown, match="busy") as bad:
        link.poll([])
    assert bad.value.wait_s == waits
    assert Backoff(LinkSettings(), draw=lambda: 0.0).next_s(bad.value) == waits


def test_waits_are_drawn_from_a_range_that_doubles_up_to_a_bound() -> None:
    backoff = Backoff(LinkSettings(backoff_s=1.0, backoff_max_s=10.0), draw=lambda: 0.5)
    assert [backoff.next_s(LinkDown("cut")) for _ in range(6)] == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0]
    backoff.reset()
    assert backoff.next_s(LinkDown("cut")) == 0.5


def metadata_of(answer: PollAnswer) -> dict[str, bytes]:
    return {part.name: part.data for part in answer.parts}


@pytest.fixture
def trust(device: Identity, tmp_path: Path) -> TrustStore:
    disk, folder = PosixDisk(), tmp_path / "device"
    keeper = Journal(folder / "journal.json", disk)
    return TrustStore(folder / "trust", disk, identity=device, keeper=keeper, clock=Clock())


def test_an_idle_poll_is_answered_304(link: Link, trust: TrustStore) -> None:
    first = link.poll(trust.held())
    assert first is not None
    trust.take(metadata_of(first), link)
    assert link.poll(trust.held()) is None


def test_the_answer_to_a_poll_brings_only_metadata_that_are_new(
    server: DeviceServer, link: Link, trust: TrustStore
) -> None:
    first = link.poll(trust.held())
    assert first is not None
    assert list(metadata_of(first)) == [
        "image/timestamp.json",
        "image/1.snapshot.json",
        "image/1.targets.json",
        "director/timestamp.json",
        "director/1.snapshot.json",
        "director/1.targets.json",
    ]
    trust.take(metadata_of(first), link)
    server.repository.publish()
    second = link.poll(trust.held())
    assert second is not None
    assert list(metadata_of(second)) == ["image/timestamp.json", "image/2.snapshot.json"]
    trust.take(metadata_of(second), link)
    assert not [path for _, path, _ in server.requests if path.startswith("/tuf/")]


def test_a_server_that_is_not_there_is_tried_later() -> None:
    with Link("http://127.0.0.1:9", None, LinkSettings()) as link, pytest.raises(LinkDown, match="no answer"):
        link.poll([])


def test_a_wrong_enrolment_token_is_refused_and_the_folder_stays_free(url: str, tmp_path: Path) -> None:
    with pytest.raises(AccessDenied, match="not known"):
        enrol(tmp_path / "d", PosixDisk(), server_url=url, token="guess", name="gate-7")
    enrol(tmp_path / "d", PosixDisk(), server_url=url, token=ENROLMENT_TOKEN, name="gate-7")
    with pytest.raises(Conflict, match="already enrolled"):
        enrol(tmp_path / "d", PosixDisk(), server_url=url, token=ENROLMENT_TOKEN, name="gate-7")


def test_the_profile_is_told_at_enrolment_and_kept(server: DeviceServer, url: str, tmp_path: Path) -> None:
    for name, profile in (("gate-8", "camera-s"), ("gate-9", None)):
        folder = tmp_path / name
        enrol(folder, PosixDisk(), server_url=url, token=ENROLMENT_TOKEN, name=name, profile=profile)
        assert Identity.load(folder).profile == server.devices[name].profile == profile


def test_the_roots_of_enrolment_are_kept_apart_from_the_metadata(device: Identity, server: DeviceServer) -> None:
    assert device.image_root == server.repository.signed["root", 1]
    assert device.director_root == server.director.signed["root", 1]


def test_roots_that_do_not_sign_themselves_enrol_nobody(server: DeviceServer, url: str, tmp_path: Path) -> None:
    for repository in (server.repository, server.director):
        good = repository.signed["root", 1]
        repository.signed["root", 1] = good.replace(b'"threshold":1', b'"threshold":2', 1)
        with pytest.raises(UntrustedUpdate, match="repository"):
            enrol(tmp_path / "d", PosixDisk(), server_url=url, token=ENROLMENT_TOKEN, name="gate-7")
        repository.signed["root", 1] = good
    assert not (tmp_path / "d" / "agent.json").exists()


def test_secrets_are_readable_by_their_owner_only(device: Identity, tmp_path: Path) -> None:
    for name in ("agent.json", "device.key"):
        assert (tmp_path / "device" / name).stat().st_mode & 0o777 == 0o600
    assert Identity.load(tmp_path / "device") == device


@pytest.mark.parametrize(
    "url", ["http://example.org", "http://10.0.0.1:80", "ftp://localhost", "localhost:80", "http://"]
)
def test_plain_http_to_another_machine_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput, match="--server"):
        check_server_url(url, insecure=False)


def test_plain_http_is_allowed_to_this_machine_and_where_asked_for() -> None:
    assert check_server_url("http://127.0.0.1:8080/", insecure=False) == "http://127.0.0.1:8080"
    assert check_server_url("http://example.org", insecure=True) == "http://example.org"
    assert check_server_url("https://example.org/", insecure=False) == "https://example.org"


@pytest.mark.parametrize("status", [302, 407, 408, 416, 421, 423, 425, 429, 500, 501, 503, 507, 511, 520])
def test_what_is_not_the_request_s_fault_is_asked_again_later(
    status: int, server: DeviceServer, link: Link, tmp_path: Path
) -> None:
    link.poll([])  # a token is there
    server.unavailable, server.unavailable_status, server.retry_after = 1, status, "9"
    with pytest.raises(LinkDown) as later:
        link.download(blob_in(tmp_path), PosixDisk(), Counter())
    assert later.value.wait_s == 9.0
    link.download(blob_in(tmp_path), PosixDisk(), Counter())


@pytest.mark.parametrize("status", [400, 402, 403, 404, 405, 409, 410, 413, 422, 451])
def test_what_the_server_will_never_give_is_not_asked_for_again(
    status: int, server: DeviceServer, link: Link, tmp_path: Path
) -> None:
    link.poll([])
    server.unavailable, server.unavailable_status = 1, status
    with pytest.raises(SpratError, match=str(status)) as final:
        link.download(blob_in(tmp_path), PosixDisk(), Counter())
    assert not isinstance(final.value, TryLater)


def test_a_part_that_the_server_says_does_not_exist_is_dropped(
    server: DeviceServer, link: Link, tmp_path: Path
) -> None:
    blob = blob_in(tmp_path)
    blob.file.parent.mkdir()
    blob.file.write_bytes(PAYLOAD[:1000])
    link.poll([])
    server.unavailable, server.unavailable_status = 1, 416
    with pytest.raises(LinkDown):
        link.download(blob, PosixDisk(), Counter())
    assert not blob.file.exists()


def test_a_poll_within_a_download_costs_it_none_of_its_time(
    server: DeviceServer, device: Identity, key: Ed25519PrivateKey, tmp_path: Path
) -> None:
    polled: list[float] = []

    def poll(_: int) -> None:
        if not polled:
            began = time.monotonic()
            with pytest.raises(LinkDown, match="given up"):
                link.poll([])
            polled.append(time.monotonic() - began)

    with Link.of(device, key, LinkSettings(total_timeout_s=0.8)) as link:
        link.poll([])
        server.drip_s = 0.05
        blob = blob_in(tmp_path)
        link.download(blob, PosixDisk(), poll)  # the poll took all of the 0.8 s, and the download has them still
    assert polled[0] >= 0.8
    assert blob.file.read_bytes() == PAYLOAD
