"""A device on a TLS connection of which every byte is counted."""

import json
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from urllib.parse import urlencode
from uuid import UUID, uuid4

import jwt
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from sprat_shared.protocol.enrol import EnrolAnswer, EnrolRequest
from sprat_shared.protocol.poll import HeldMetadata, PollAnswer, format_tag, parse_tag
from sprat_shared.protocol.report import format_signature
from sprat_shared.protocol.token import ALGORITHM, ASSERTION_TYPE, AUDIENCE, GRANT_TYPE, TOKEN_PATH, TokenAnswer


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and its answer: the status, bytes on the socket each way, bytes of head and body, the body."""

    status: int
    up_bytes: int
    down_bytes: int
    head_bytes: int
    body: bytes


class TlsConnection:
    """HTTP/1.1 over one kept TLS connection, every byte on the socket counted.

    Args:
        port: on the loopback.
        ca_file: the certificate to trust.
    """

    def __init__(self, port: int, ca_file: Path) -> None:
        self._host = f"127.0.0.1:{port}"
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._up, self._down = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.create_default_context(cafile=str(ca_file))
        self._tls = context.wrap_bio(self._down, self._up, server_hostname="127.0.0.1")
        self.up_bytes = self.down_bytes = 0
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._send()
                self._receive()
        self._send()

    def ask(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> Exchange:
        """Send one request with these headers and what HTTP needs besides, and return the answer."""
        more = {"Host": self._host, **headers, **({"Content-Length": str(len(body))} if body else {})}
        head = "".join(f"{name}: {value}\r\n" for name, value in more.items())
        self.up_bytes = self.down_bytes = 0
        self._tls.write(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body)
        self._send()
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self._read()
        said, _, rest = answer.partition(b"\r\n\r\n")
        lines = said.decode("latin-1").split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in lines[1:])
        while len(rest) < int(fields.get("content-length", 0)):
            rest += self._read()
        return Exchange(int(lines[0].split()[1]), self.up_bytes, self.down_bytes, len(said) + 4, rest)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _read(self) -> bytes:
        while True:
            try:
                return self._tls.read(1 << 16)
            except ssl.SSLWantReadError:
                self._receive()

    def _send(self) -> None:
        data = self._up.read()
        self.up_bytes += len(data)
        self._socket.sendall(data)

    def _receive(self) -> None:
        data = self._socket.recv(1 << 16)
        if not data:
            raise SystemExit("the server closed the connection")
        self.down_bytes += len(data)
        self._down.write(data)


class Device:
    """A device that holds what it is sent, and asks with as few bytes as HTTP takes.

    Args:
        link: to the server.
        enrolment_token: with which it joins.
    """

    def __init__(self, link: TlsConnection, enrolment_token: str) -> None:
        key = Ed25519PrivateKey.generate()
        request = EnrolRequest(
            name="gate-1", public_key=key.public_key().public_bytes_raw(), agent="0.1.0", attributes={}
        ).to_json()
        headers = {
            "Authorization": f"Bearer {enrolment_token}",
            "Sprat-Signature": format_signature(key.sign(request)),
        }
        self.id: UUID = EnrolAnswer.from_json(link.ask("POST", "/device/v1/enrol", headers, request).body).device
        now_s = int(time.time())
        claims = {"iss": str(self.id), "sub": str(self.id), "aud": AUDIENCE, "iat": now_s, "exp": now_s + 60}
        signed = jwt.encode({**claims, "jti": uuid4().hex}, key, algorithm=ALGORITHM)
        form = urlencode(
            {"grant_type": GRANT_TYPE, "client_assertion_type": ASSERTION_TYPE, "client_assertion": signed}
        ).encode()
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        self._token = TokenAnswer.from_json(link.ask("POST", TOKEN_PATH, headers, form).body).access_token
        self._link = link
        self.held: dict[HeldMetadata, bytes] = {}

    def poll(self, *, knowing: bool = True, inline_bytes: int | None = None) -> Exchange:
        """Ask for what is newer than what is held, or, not knowing anything, for all."""
        headers = {"Authorization": f"Bearer {self._token}"}
        if self.held and knowing:
            headers["If-None-Match"] = format_tag(list(self.held))
        if inline_bytes is not None:
            headers["Sprat-Inline"] = str(inline_bytes)
        return self._link.ask("GET", "/device/v1/poll", headers)

    def take(self, exchange: Exchange) -> PollAnswer:
        """Keep the metadata of an answer, and return it."""
        answer = PollAnswer.from_bytes(exchange.body, b"".join(self.held.values()))
        held = {(item.repository, item.role): (item, data) for item, data in self.held.items()}
        for part in answer.parts:
            if part.kind == "metadata":
                repository, _, file = part.name.partition("/")
                role = file.removesuffix(".json").lstrip("0123456789").removeprefix(".")
                version = json.loads(part.data)["signed"]["version"]
                held[repository, role] = HeldMetadata(repository, role, version), part.data
        named = parse_tag(format_tag([item for item, _ in held.values()]))
        self.held = {item: held[item.repository, item.role][1] for item in named}
        return answer


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Write a certificate for the loopback and its key, and return both files."""
    key, now = Ed25519PrivateKey.generate(), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sprat")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, None)
    )
    files = folder / "certificate.pem", folder / "certificate-key.pem"
    files[0].write_bytes(certificate.public_bytes(Encoding.PEM))
    files[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return files
