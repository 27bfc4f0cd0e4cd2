"""The fetcher, against servers that send too much, too slowly, or never: real sockets, bytes counted on the wire."""

import datetime as dt
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from sprat_client.agent.fetcher import Fetcher, LinkDown
from sprat_client.agent.settings import LinkSettings
from sprat_client.agent.transfer import Link
from sprat_shared.errors import InvalidInput
from sprat_shared.protocol.poll import HeldMetadata

GOAL_BYTES = 250  # of an idle poll, up and down, TLS records included
QUICK = LinkSettings(least_bytes_per_s=1000.0, rate_window_s=0.2, total_timeout_s=5.0, idle_timeout_s=2.0)


@contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """Listen on loopback; hand each connection to `answer`; yield the URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(20.0)

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                try:
                    answer(connection)
                except OSError:
                    continue  # the client had enough

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


def request_of(connection: socket.socket) -> bytes:
    """Read one request without a body."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        piece = connection.recv(4096)
        if not piece:
            raise OSError("the client is gone")
        data += piece
    return data


def drip(connection: socket.socket, data: bytes) -> None:
    for at in range(len(data)):
        connection.sendall(data[at : at + 1])
        time.sleep(0.01)


def whole_body(fetcher: Fetcher, max_bytes: int) -> bytes:
    with fetcher.ask("GET", "/x") as response:
        return b"".join(fetcher.body(response, max_bytes))


def test_a_body_that_never_ends_is_read_no_further_than_its_cap() -> None:
    sent = 0

    def endless(connection: socket.socket) -> None:
        nonlocal sent
        request_of(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            sent += connection.send(bytes(1024))

    with answering(endless) as url:
        fetcher = Fetcher(url, QUICK)
        pieces: list[int] = []
        with fetcher.ask("GET", "/x") as response, pytest.raises(InvalidInput, match="more than 10000") as bad:
            pieces.extend(map(len, fetcher.body(response, 10_000)))
        fetcher.close()
    assert bad.value.code == "link.too-long"
    assert max(pieces) <= 4096
    assert sum(pieces) <= 10_000


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", b""])
def test_a_drip_of_a_body_or_of_a_head_is_given_up(head: bytes) -> None:
    def dripping(connection: socket.socket) -> None:
        request_of(connection)
        connection.sendall(head)
        drip(connection, b"HTTP/1.1 200 OK\r\nServer: " + b"x" * 5000)

    with answering(dripping) as url:
        fetcher, begun = Fetcher(url, QUICK), time.monotonic()
        with pytest.raises(LinkDown, match=r"bytes in 0\.2 s") as bad:
            whole_body(fetcher, 1 << 20)
        fetcher.close()
    assert bad.value.code == "link.too-slow"
    assert time.monotonic() - begun < 2.0


def test_a_transfer_ends_at_its_deadline_however_fast_it_is() -> None:
    def steady(connection: socket.socket) -> None:
        request_of(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(bytes(1000))
            time.sleep(0.01)

    with answering(steady) as url:
        fetcher = Fetcher(url, LinkSettings(total_timeout_s=0.5, rate_window_s=0.2))
        with pytest.raises(LinkDown, match=r"not done in 0\.5 s"):
            whole_body(fetcher, 1 << 30)
        fetcher.close()


def test_a_server_that_thinks_for_a_while_is_waited_for() -> None:
    def slow_to_begin(connection: socket.socket) -> None:
        request_of(connection)
        time.sleep(0.5)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone")

    with answering(slow_to_begin) as url:
        fetcher = Fetcher(url, LinkSettings(rate_window_s=2.0))
        assert whole_body(fetcher, 100) == b"done"
        fetcher.close()


# bytes of an idle poll ---------------------------------------------------------------------------------------------

HELD = [
    *(HeldMetadata("image", role, version) for role, version in (("root", 4), ("timestamp", 17), ("snapshot", 17))),
    HeldMetadata("image", "targets", 5),
    HeldMetadata("image", "m.pcb-defects", 9),
    *(HeldMetadata("director", role, version) for role, version in (("root", 1), ("timestamp", 31), ("snapshot", 8))),
    HeldMetadata("director", "targets", 8),
]
TOKEN = "A" * 43  # 32 random bytes in base64
NOT_MODIFIED = b"HTTP/1.1 304 Not Modified\r\n\r\n"


def certificate(folder: Path) -> Path:
    """Write a key and a certificate of loopback, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "loopback")])
    now = dt.datetime.now(dt.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = folder / "server.pem"
    encoding = serialization.Encoding.PEM
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file.write_bytes(private + signed.public_bytes(encoding))
    return file


def test_an_idle_poll_carries_no_header_that_http_can_do_without() -> None:
    requests = []

    def answer(connection: socket.socket) -> None:
        requests.append(request_of(connection))
        connection.sendall(NOT_MODIFIED)

    with answering(answer) as url, Link(url, TOKEN, LinkSettings()) as link:
        assert link.poll([(item, b"") for item in HELD]) is None
    lines = requests[0].decode().rstrip().split("\r\n")
    assert lines[0] == "GET /device/v1/poll HTTP/1.1"
    assert [line.partition(":")[0].lower() for line in lines[1:]] == ["host", "authorization", "if-none-match"]


def test_an_idle_poll_in_a_kept_tls_connection_meets_its_goal(tmp_path: Path) -> None:
    file = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    polls: list[int] = []
    connections = 0

    def answer(connection: socket.socket) -> None:
        """Serve TLS over buffers, so that what crosses the socket is counted, records and all."""
        nonlocal connections
        connections += 1
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls, crossed, shaken = context.wrap_bio(incoming, outgoing, server_side=True), 0, False
        while True:
            try:
                if not shaken:
                    tls.do_handshake()
                    shaken = True
                    connection.sendall(outgoing.read())
                    crossed = 0
                if tls.read(4096).endswith(b"\r\n\r\n"):
                    tls.write(NOT_MODIFIED)
                    sent = outgoing.read()
                    connection.sendall(sent)
                    polls.append(crossed + len(sent))
                    crossed = 0
            except ssl.SSLWantReadError:
                connection.sendall(outgoing.read())
                data = connection.recv(65536)
                if not data:
                    return
                crossed += len(data)
                incoming.write(data)

    with (
        answering(answer) as url,
        Link(url.replace("http:", "https:"), TOKEN, LinkSettings(), ca_file=str(file)) as link,
    ):
        for _ in range(3):
            assert link.poll([(item, b"") for item in HELD]) is None
    assert connections == 1, "the connection is kept"
    assert polls[1:] == [polls[1]] * 2
    assert polls[1] <= GOAL_BYTES, f"{polls[1]} bytes"
