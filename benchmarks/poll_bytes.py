"""What does a poll cost on the link, and what does the director cost the server?

    python benchmarks/poll_bytes.py [--past 1000] [--json FILE]

A real server on its private PostgreSQL, reached over TLS 1.3 on a kept connection; a device that enrols, holds a
release and polls. Bytes are counted on the socket, TLS's records included. Goals: an idle poll takes at most 250 bytes
up and down; the signed metadata that bring one update, of both repositories, take at most 700 bytes where the device
holds the ones before, 4,000 where it holds nothing: with one release in the past, and with a thousand. Those stand in
PostgreSQL alone, as live metadata are pruned to what a device may need.
"""

import argparse
import hashlib
import json
import shutil
import socket
import ssl
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import numpy as np
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from fastapi import FastAPI
from sqlalchemy.orm import Session

from sprat_server.app import create_app
from sprat_server.db import migrate
from sprat_server.db.embedded import EmbeddedPostgres
from sprat_server.db.session import Database
from sprat_server.fleet import service as fleet
from sprat_server.fleet.models import DeviceSlots
from sprat_server.flows import poll as flow
from sprat_server.flows.publishing import publish_release
from sprat_server.observe import logs
from sprat_server.observe.actors import SYSTEM
from sprat_server.registry import service as registry
from sprat_server.registry.service import NewUpdate
from sprat_server.settings import Settings
from sprat_shared.protocol.enrol import EnrolAnswer, EnrolRequest
from sprat_shared.protocol.poll import HeldMetadata, PollAnswer, format_tag, parse_tag
from sprat_shared.wire.tensors import TensorSpec, TensorTable, weights_digest

GOAL_IDLE_BYTES: Final = 250
GOAL_KNOWN_BYTES: Final = 700
GOAL_PLAIN_BYTES: Final = 4000
MODEL: Final = "pcb-defects"
_TABLE: Final = TensorTable([TensorSpec("w", "F32", (500,))])
_PAYLOAD_BYTES: Final = 500
_CHANGES: Final = 50


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
        request = EnrolRequest(
            name="gate-1",
            public_key=Ed25519PrivateKey.generate().public_key().public_bytes_raw(),
            agent="0.1.0",
            attributes={},
        )
        headers = {"Authorization": f"Bearer {enrolment_token}"}
        answer = EnrolAnswer.from_json(link.ask("POST", "/device/v1/enrol", headers, request.to_json()).body)
        self.id: UUID = answer.device
        self._link, self._token = link, answer.token
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


def measure(past: int, folder: Path) -> dict[str, Any]:
    """Return the bytes of polls of a device whose model has so many releases in the past, and the director's cost.

    Args:
        past: releases before the one that the update brings, at least 1.
        folder: an empty folder, for everything.
    """
    with serving(folder) as (app, link):
        database: Database = app.state.database
        with database.transaction() as session:
            model = publish(session, app, past)
            _, token = fleet.create_enrolment_token(session, uses=1, expires_s=3600, group="default", by=SYSTEM)
        device = Device(link, token)
        with database.transaction() as session:
            fleet.assign(session, model, {device.id: past}, "rollout")
        first = device.poll(inline_bytes=0)
        device.take(first)
        with database.transaction() as session:
            hold(session, device.id, model, past)
            publish(session, app, past + 1)
            fleet.assign(session, model, {device.id: past + 1}, "rollout")
        known, whole = device.poll(inline_bytes=0), device.poll()
        plain = device.poll(knowing=False, inline_bytes=0)
        files = {part.name: len(part.data) for part in device.take(whole).parts if part.kind == "metadata"}
        idle = [device.poll() for _ in range(5)][-1]
        if idle.status != 304:  # noqa: PLR2004 - nothing is new
            raise SystemExit(f"an idle poll was answered {idle.status}")
        return {
            "past_releases": past,
            "idle": {"up_bytes": idle.up_bytes, "down_bytes": idle.down_bytes},
            "update": {
                "up_bytes": whole.up_bytes,
                "down_bytes": whole.down_bytes,
                "head_bytes": whole.head_bytes,
                "body_bytes": len(whole.body),
                "payload_bytes": _PAYLOAD_BYTES,
                "metadata_bytes": len(known.body),
                "metadata_unknown_bytes": len(plain.body),
                "files": files,
            },
            "director": director_cost(app, device, model, past),
        }


def director_cost(app: FastAPI, device: Device, model: UUID, past: int) -> dict[str, Any]:
    """Return what one change of an assignment costs: bytes of the answer, CPU time of signing and of the whole poll."""
    database: Database = app.state.database
    settings: Settings = app.state.settings
    signing, polling, bodies = [], [], []
    for change in range(_CHANGES):
        with database.transaction() as session:
            fleet.assign(session, model, {device.id: past + change % 2}, "rollout")
        with database.transaction() as session:
            wishes = flow.wishes_of(session, device.id)
            begin = time.process_time()
            flow.director.current(session, settings, device.id, lambda wishes=wishes: wishes)  # type: ignore[misc]
            signing.append(time.process_time() - begin)
        begin = time.process_time()
        answer = device.poll(inline_bytes=0)
        polling.append(time.process_time() - begin)
        bodies.append(len(answer.body))
        device.take(answer)
    return {
        "body_bytes": statistics.median(bodies),
        "signing_cpu_ms": 1000 * statistics.median(signing),
        "poll_cpu_ms": 1000 * statistics.median(polling),
    }


@contextmanager
def serving(folder: Path) -> Iterator[tuple[FastAPI, TlsConnection]]:
    """Run the server on TLS, and give it with a connection to it."""
    logs.configure(log_format="json", log_level="error")
    with EmbeddedPostgres(folder / "postgres") as postgres:
        database = Database(postgres.url)
        migrate.upgrade(database.engine)
        database.close()
        app = create_app(Settings(database_url=postgres.url, data_dir=folder / "data"))
        certificate, key = make_certificate(folder)
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                port=0,
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                ssl_certfile=certificate,
                ssl_keyfile=key,
            )
        )
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            while not server.started:
                if not thread.is_alive():
                    raise SystemExit("the server did not start")
                time.sleep(0.01)
            link = TlsConnection(server.servers[0].sockets[0].getsockname()[1], certificate)
            yield app, link
            link.close()
        finally:
            server.should_exit = True
            thread.join()


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


def publish(session: Session, app: FastAPI, number: int) -> UUID:
    """Publish release `number`, with random weights and an update from the one before; return the model's id.

    Releases before it that do not exist are added to the history, with nothing signed for them but the first.
    """
    models = registry.all_models(session)
    model = models[0] if models else registry.create_model(session, name=MODEL, recipe=None, example=None)
    newest = registry.latest_release(session, model).number if models else 0
    for past in range(newest + 1, number + 1):
        weights = np.random.default_rng(past).bytes(2000)
        digest = weights_digest(_TABLE, [hashlib.sha256(weights).digest()])
        blobs = app.state.blobs
        graph, full = blobs.put_bytes(b"the graph"), blobs.put_bytes(weights)
        update = blobs.put_bytes(np.random.default_rng(-past % (1 << 32)).bytes(_PAYLOAD_BYTES))
        base = past - 1 or None
        updates = [NewUpdate(None, full.digest, full.length)]
        updates += [NewUpdate(base, update.digest, update.length)] if base is not None else []
        facts: dict[str, Any] = {
            "model": model,
            "weights_blob": full.digest,
            "table": _TABLE,
            "weights_digest": digest,
            "updates": updates,
            "metrics": {},
            "origin": "registered" if base is None else "created",
            "base": base,
        }
        if base is None or past == number:
            publish_release(session, blobs, app.state.settings, graph_blob=graph.digest, **facts)
        else:
            kept = registry.ensure_graph(session, digest=graph.digest, length=graph.length, probe=None)
            registry.add_release(session, graph=kept, **facts)
    return model.id


def hold(session: Session, device: UUID, model: UUID, number: int) -> None:
    """Have the device hold this release, as its report would say."""
    session.add(
        DeviceSlots(
            device_id=device,
            model_id=model,
            active=number,
            previous=None,
            weights=None,
            outcome="committed",
            reported_at=datetime.now(UTC),
        )
    )


def lines_of(report: Mapping[str, Any]) -> list[str]:
    """Return the report in words."""
    idle, update, director = report["idle"], report["update"], report["director"]
    both = idle["up_bytes"] + idle["down_bytes"]
    files = sum(update["files"].values())
    return [
        f"{report['past_releases']:,} releases in the past",
        f"  idle poll: {both:,} bytes, goal {GOAL_IDLE_BYTES} ({idle['up_bytes']} up, {idle['down_bytes']} down)",
        f"  metadata of an update: {update['metadata_bytes']:,} bytes, goal {GOAL_KNOWN_BYTES} (as files: {files:,})",
        f"  where nothing is held: {update['metadata_unknown_bytes']:,} bytes, goal {GOAL_PLAIN_BYTES:,}",
        f"  with the payload of {update['payload_bytes']}: {update['up_bytes']} up, {update['down_bytes']:,} down",
        f"  the director, for a change of assignment: {director['body_bytes']:,.0f} bytes",
        f"  CPU time: signing {director['signing_cpu_ms']:.1f} ms, the whole poll {director['poll_cpu_ms']:.1f} ms",
    ]


def main() -> None:
    """Print the figures; write JSON where it is asked for; end with 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--past", type=int, nargs="+", default=[1, 1000], help="releases in the past (default: 1 1000)")
    parser.add_argument("--json", type=Path, help="write the report here too")
    asked = parser.parse_args()
    reports = []
    for past in asked.past:
        folder = Path(tempfile.mkdtemp(prefix="sprat-poll-"))
        try:
            reports.append(measure(past, folder))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        print("\n".join(lines_of(reports[-1])), flush=True)
    if asked.json:
        asked.json.write_text(json.dumps(reports, indent=1) + "\n", encoding="utf-8")
    met = all(
        report["idle"]["up_bytes"] + report["idle"]["down_bytes"] <= GOAL_IDLE_BYTES
        and report["update"]["metadata_bytes"] <= GOAL_KNOWN_BYTES
        and report["update"]["metadata_unknown_bytes"] <= GOAL_PLAIN_BYTES
        for report in reports
    )
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
