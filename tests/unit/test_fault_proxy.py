"""The bad link does what tests of transfers rely on: exact cuts, a pace, an outage."""

import http.server
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
from demo.fault_proxy import FaultProxy

BODY = bytes(range(256)) * 400


class Fixed(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def target() -> Iterator[tuple[str, int]]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Fixed) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield "127.0.0.1", server.server_port
        server.shutdown()
        thread.join()


def fetch(url: str) -> bytes:
    with httpx.Client(trust_env=False) as client:
        return client.get(url).content


def test_a_link_without_faults_carries_every_byte(target: tuple[str, int]) -> None:
    with FaultProxy(target) as link:
        assert fetch(link.url) == BODY
        assert link.log.bytes_down > len(BODY)


def test_each_planned_cut_resets_one_transfer_at_its_byte(target: tuple[str, int]) -> None:
    with FaultProxy(target, cuts_at=[10_000, 30_000]) as link:
        for at in (10_000, 30_000):
            with pytest.raises(httpx.ReadError):
                fetch(link.url)
            assert link.log.bytes_down == at
        assert fetch(link.url) == BODY
        assert link.log.cuts == 2


def test_a_cut_can_be_planned_from_now_on(target: tuple[str, int]) -> None:
    with FaultProxy(target) as link:
        fetch(link.url)
        before = link.log.bytes_down
        link.cut_after(5_000)
        with pytest.raises(httpx.ReadError):
            fetch(link.url)
        assert link.log.bytes_down == before + 5_000


def test_the_link_carries_no_more_than_its_rate(target: tuple[str, int]) -> None:
    with FaultProxy(target, bytes_per_s=400_000) as link:
        begun = time.monotonic()
        fetch(link.url)
        assert time.monotonic() - begun >= 0.9 * len(BODY) / 400_000


def test_a_link_that_is_down_resets_connections_until_it_is_up(target: tuple[str, int]) -> None:
    with FaultProxy(target) as link:
        link.set_down(down=True)
        with pytest.raises(httpx.TransportError):
            fetch(link.url)
        link.set_down(down=False)
        assert fetch(link.url) == BODY
