"""A server of the device API in memory, on a real loopback socket: it behaves, it does not record.

Releases are made with the real encoder and signed with python-tuf. Faults are switched on by attributes: bodies cut
after so many bytes, answers of 503, bytes that are not what was signed.
"""

import itertools
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs
from uuid import UUID

import jwt
import numpy as np
import tiny_onnx
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from signed_repository import SignedDirector, SignedRepository, file_name
from simulated_release import MemorySink, Release
from tuf.api.metadata import TargetFile

from sprat_shared.apply import apply_update
from sprat_shared.encode import encode_delta, encode_full
from sprat_shared.ids import digest_text, new_id
from sprat_shared.protocol.enrol import EnrolAnswer, EnrolPending, EnrolRequest, fingerprint
from sprat_shared.protocol.facts_report import FactsReport
from sprat_shared.protocol.holdout_report import HoldoutReport
from sprat_shared.protocol.measures_report import MeasuresReport
from sprat_shared.protocol.poll import (
    CONTENT_TYPE,
    DEFAULT_INLINE_BYTES,
    INLINE_HEADER,
    HeldMetadata,
    Part,
    PollAnswer,
    format_tag,
    parse_tag,
)
from sprat_shared.protocol.report import SIGNATURE_HEADER, Report, TrustReport, parse_signature, read_report
from sprat_shared.protocol.site_report import SiteReport
from sprat_shared.protocol.token import AUDIENCE, SERVER_TIME, TOKEN_PATH, TokenAnswer
from sprat_shared.trust.assignments import Assigned
from sprat_shared.trust.signed_time import NONCE_HEADER
from sprat_shared.trust.site_targets import SignedPlan
from sprat_shared.trust.targets import Shares, UpdateTarget, graph_path, role_of_model, update_path
from sprat_shared.wire.records import Held
from sprat_shared.wire.records.held import PREFIX_BYTES
from sprat_shared.wire.tensors import ArrayTensors, WithoutLocal, digest_of
from sprat_shared.wire.update import encode_update

ENROLMENT_TOKEN = "let-me-in"


@dataclass
class Device:
    """An enrolled device: its key, what it should run, what it reported."""

    id: UUID
    key: Ed25519PublicKey
    name: str
    token: str = ""  # none until it asks for one
    profile: str | None = None
    wishes: dict[str, tuple[int, int]] = field(default_factory=dict)  # model to (release, assignment)
    assigned: dict[tuple[str, int, int], Assigned] = field(default_factory=dict)  # what the director made of them
    counter: int = 0
    sequence: int = 0
    reports: list[Report] = field(default_factory=list)
    refusals: list[TrustReport] = field(default_factory=list)
    drifts: list[HoldoutReport] = field(default_factory=list)
    facts: list[FactsReport] = field(default_factory=list)
    plans: list[tuple[SignedPlan, bytes]] = field(default_factory=list)  # signed for it, with their files
    told: list[SiteReport] = field(default_factory=list)
    measured: list[MeasuresReport] = field(default_factory=list)

    def running(self, model: str) -> int | None:
        """The release that the device last said it serves."""
        said = [report.serving_release for report in self.reports if report.model == model]
        return said[-1] if said else None


class DeviceServer:
    """The server. Use `running()` to listen."""

    def __init__(self) -> None:
        self.repository, self.director = SignedRepository(), SignedDirector()
        self.blobs: dict[str, bytes] = {}
        self.models: dict[str, dict[int, Release]] = {}
        self.devices: dict[str, Device] = {}  # by name
        self.lock = threading.RLock()
        self.reported = threading.Condition(self.lock)
        self.requests: list[tuple[str, str, Mapping[str, str]]] = []
        self.inline = True
        self.poll_interval_s = 0.05
        self.offered: dict[int, tuple[str, ...]] = {}  # the path to a release, whatever a device holds
        # who may join, and how they prove themselves
        self.accepted = True  # a device without a token, by an operator
        self.clock_ahead_s = 0.0
        self.token_lives_s = 3600.0
        self.spent: set[str] = set()
        # faults and attacks
        self.tamper: Callable[[list[Part]], list[Part]] = lambda parts: parts  # what a poll's answer brings
        self.says: Callable[[Assigned], Assigned] = lambda assigned: assigned  # what the director signs
        self.drip_s = 0.0  # between two bytes of a poll's answer
        self.endless = False  # a poll's answer never ends
        self.proves_time = True
        self.cut_after: list[int] = []  # the next blob bodies end after so many bytes
        self.unavailable = 0  # so many answers of
        self.unavailable_status = 503  # with
        self.retry_after: str | None = None
        self.blob_bytes_sent = 0

    # what an operator does --------------------------------------------------------------------------------------

    def add_release(
        self,
        model: str,
        weights: Mapping[str, tuple[str, np.ndarray[Any, Any]]],
        *,
        base: int | None = None,
        graph: bytes | None = None,
        lossless: bool = False,
        corrupt: bool = False,
        local: tuple[int, ...] = (),
        statistics: bytes | None = None,
        shares: Shares | None = None,
        donor: Mapping[str, tuple[str, np.ndarray[Any, Any]]] | None = None,
    ) -> Release:
        """Make the next release; from `base` the released weights are what decoding the update gives.

        Args:
            model: its name.
            weights: what the release should be close to.
            base: number of the release that the update starts from.
            graph: ONNX bytes; the tiny model's when left out.
            lossless: the update gives exactly `weights`.
            corrupt: the signed update gives other weights than the signed digest.
            local: indices of the tensors that devices compute themselves.
            statistics: the graph from which they do.
            shares: of which release it is a near copy that shares layers.
            donor: weights of another model: the update only names those of its tensors that are in `weights`, and all
                others are the base's.
        """
        with self.lock:
            releases = self.models.setdefault(model, {})
            number, graph = len(releases) + 1, graph or tiny_onnx.graph()
            update = None
            if base is not None and donor is not None:
                update = _naming(releases[base].source, ArrayTensors(weights), ArrayTensors(donor))
            elif base is not None:
                old = releases[base].source
                new = WithoutLocal(ArrayTensors(weights), local)
                update = bytes(encode_delta(old, new, lossless=lossless).data)
                sink = MemorySink(old)
                apply_update(memoryview(update), old, sink, expected=None, local=local)
                weights = sink.weights()
            source = WithoutLocal(ArrayTensors(weights), local)
            digest = digest_of(source)
            if corrupt:
                digest = digest_text(sha256(digest.encode()).digest())
            full = bytes(encode_full(source))
            release = Release(number, weights, digest, graph, base, update, full, local, statistics, shares)
            releases[number] = release
            self._publish(model, release)
            return release

    def _publish(self, model: str, release: Release) -> None:
        graph_digest = digest_text(sha256(release.graph).digest())
        for base, data in ((None, release.full), (release.base, release.update)):
            if data is None:
                continue
            base_weights = None if base is None else self.models[model][base].digest
            target = UpdateTarget(
                model=model,
                release=release.number,
                weights=release.digest,
                graph=graph_digest,
                base_release=base,
                base_weights=base_weights,
                local=release.signed_local,
                shares=release.shares,
            )
            self.repository.add(model, target.path, data, target.to_custom())
            self.blobs[sha256(data).hexdigest()] = data
        for data in (release.graph, *filter(None, [release.statistics])):
            self.repository.add(model, graph_path(model, digest_text(sha256(data).digest())), data)
            self.blobs[sha256(data).hexdigest()] = data
        self.repository.publish(model)

    def assign(self, model: str, release: int, device: Device | None = None) -> int:
        """Wish a release of one device, or of the only one; return the assignment's counter."""
        with self.lock:
            device = device or next(iter(self.devices.values()))
            device.counter += 1
            device.wishes[model] = (release, device.counter)
            return device.counter

    def wait_for_report(self, assignment: int, timeout_s: float = 20.0) -> Report:
        """Return the report on an assignment, once it is there."""
        with self.reported:

            def found() -> Report | None:
                every = [report for device in self.devices.values() for report in device.reports]
                return next((report for report in every if report.assignment == assignment), None)

            self.reported.wait_for(lambda: found() is not None, timeout_s)
            report = found()
            assert report is not None, f"no report on assignment {assignment} in {timeout_s} s"
            return report

    # what a device asks ------------------------------------------------------------------------------------------

    def poll(self, device: Device, headers: Mapping[str, str]) -> bytes | None:
        """Return the body of a poll's answer; None where nothing changed."""
        with self.lock:
            tag, nonce = headers.get("If-None-Match"), headers.get(NONCE_HEADER)
            held = [] if tag is None else parse_tag(tag)
            self.director.direct(device.id, self._assignments(device))
            if nonce is not None and self.proves_time:
                self.director.stamp(device.id, nonce)
            newest = self._newest(device)
            if (nonce is None or not self.proves_time) and tag == format_tag([item for item, _, _ in newest]):
                return None
            known = [self._signed(device, item) for item in held]
            dictionary = b"" if None in known else b"".join(body for body in known if body is not None)
            have = {(item.repository, item.role): item.version for item in held}
            parts = [
                Part(kind="metadata", name=f"{item.repository}/{name}", data=data)
                for item, name, data in self._roots_between(have, newest)
                if have.get((item.repository, item.role)) != item.version
            ]
            room = int(headers.get(INLINE_HEADER, DEFAULT_INLINE_BYTES))
            for assigned, _ in (self.director.devices[device.id].said or []) if self.inline else ():
                for path in () if isinstance(assigned, SignedPlan) else assigned.path:
                    data = self._target(assigned.model, path)
                    if data is not None and len(data) <= room:
                        parts.append(Part(kind="blob", name=digest_text(sha256(data).digest()), data=data))
                        room -= len(data)
            plans = [data for _, data in device.plans] if self.inline else []
            parts += [Part(kind="blob", name=digest_text(sha256(data).digest()), data=data) for data in plans]
            answer = PollAnswer(poll_interval_s=self.poll_interval_s, parts=tuple(self.tamper(parts)))
            return answer.to_bytes(dictionary)

    def _newest(self, device: Device) -> list[tuple[HeldMetadata, str, bytes]]:
        """Return the newest files that a device needs, with their names, in the order of reading."""
        image, director = self.repository, self.director
        needed = {"root", "timestamp", "snapshot", "targets", *(role_of_model(model) for model in device.wishes)}
        return [
            *(
                (HeldMetadata("image", role, version), name, image.files[name])
                for role, version, name in image.newest()
                if role in needed
            ),
            *(
                (HeldMetadata("director", role, version), name, director.file(device.id, name) or b"")
                for role, version, name in director.newest(device.id)
            ),
        ]

    def _roots_between(
        self, have: Mapping[tuple[str, str], int], newest: list[tuple[HeldMetadata, str, bytes]]
    ) -> Iterator[tuple[HeldMetadata, str, bytes]]:
        """Yield the newest files, and before a newer root those that lead to it."""
        for item, name, data in newest:
            if item.role == "root":
                files = self.repository.files if item.repository == "image" else self.director.files
                for version in range(have.get((item.repository, "root"), 0) + 1, item.version):
                    name_before = file_name("root", version)
                    yield HeldMetadata(item.repository, "root", version), name_before, files[name_before]
            yield item, name, data

    def _signed(self, device: Device, item: HeldMetadata) -> bytes | None:
        if item.repository == "image":
            return self.repository.signed.get((item.role, item.version))
        own = self.director.signed if item.role == "root" else self.director.devices[device.id].signed
        return own.get((item.role, item.version))

    def _assignments(self, device: Device) -> list[tuple[Assigned | SignedPlan, TargetFile]]:
        said: list[tuple[Assigned | SignedPlan, TargetFile]] = [
            (signed, TargetFile(len(data), {"sha256": sha256(data).hexdigest()}, signed.path))
            for signed, data in device.plans
        ]
        for model, (number, counter) in sorted(device.wishes.items()):
            key = (model, number, counter)
            if key not in device.assigned:
                device.assigned[key] = self._assigned(device, *key)
            assigned = self.says(device.assigned[key])
            said.append((assigned, self.repository.models[model].targets[assigned.full]))
        return said

    def _assigned(self, device: Device, model: str, number: int, counter: int) -> Assigned:
        release = self.models[model][number]
        path: tuple[str, ...] = ()
        if number in self.offered:
            path = self.offered[number]
        elif release.base is not None and device.running(model) == release.base:
            path = (update_path(model, number, release.base),)
        return Assigned(
            device=device.id, model=model, release=number, assignment=counter, path=path, profile=device.profile
        )

    def _target(self, model: str, path: str) -> bytes | None:  # a test may have it say what is not there
        target = self.repository.models[model].targets.get(path)
        return None if target is None else self.blobs[target.hashes["sha256"]]

    def metadata(self, device: Device, path: str) -> bytes | None:
        """Return a metadata file, such as `image/timestamp.json`, as it is served to a device."""
        repository, _, name = path.partition("/")
        with self.lock:
            return self.repository.files.get(name) if repository == "image" else self.director.file(device.id, name)

    def enrol(self, body: bytes, signature: str, token: str) -> tuple[int, bytes]:
        """Add a device; return the status and the body."""
        asked = EnrolRequest.from_json(body)
        key = Ed25519PublicKey.from_public_bytes(asked.public_key)
        try:
            key.verify(parse_signature(signature), body)
        except InvalidSignature:
            return 403, b'{"detail": "not signed by its key"}'
        if token not in {"", ENROLMENT_TOKEN}:
            return 401, b'{"detail": "this enrolment token is not known"}'
        if not token and not self.accepted:
            return 202, EnrolPending(fingerprint=fingerprint(asked.public_key), ask_again_s=0.01).to_json()
        with self.lock:
            device = self.devices.get(asked.name)
            if device is None or device.key != key:
                device = self.devices[asked.name] = Device(new_id(), key, asked.name, profile=asked.profile)
        answer = EnrolAnswer(
            device=device.id,
            image_root=self.repository.signed["root", 1],
            director_root=self.director.signed["root", 1],
            poll_interval_s=self.poll_interval_s,
        )
        return 201, answer.to_json()

    def issue_token(self, body: bytes) -> tuple[int, bytes]:
        """Exchange an assertion for a token; return the status and the body."""
        signed = parse_qs(body.decode())["client_assertion"][0]
        issuer = jwt.decode(signed, options={"verify_signature": False})["iss"]
        device = next((one for one in self.devices.values() if str(one.id) == issuer), None)
        if device is None:
            return 401, b'{"detail": "this device is not known"}'
        now_s = time.time() + self.clock_ahead_s
        leave = {"verify_exp": False, "verify_iat": False}
        claims = jwt.decode(signed, device.key, algorithms=["EdDSA"], audience=AUDIENCE, options=leave)
        if not claims["iat"] - 30 <= now_s < claims["exp"] + 30:
            return 401, json.dumps({"detail": "of another time", SERVER_TIME: now_s}).encode()
        with self.lock:
            assert claims["jti"] not in self.spent
            self.spent.add(claims["jti"])
            device.token = f"token-{len(self.spent)}"
        return 200, TokenAnswer(access_token=device.token, expires_in=self.token_lives_s).to_json()

    def report(self, device: Device, body: bytes, signature: str) -> int:
        """Take a report; return the status."""
        try:
            device.key.verify(parse_signature(signature), body)
        except InvalidSignature:
            return 403
        report = read_report(body)
        with self.reported:
            if report.sequence <= device.sequence:
                return 409
            device.sequence = report.sequence
            kept: dict[type, list[Any]] = {
                Report: device.reports,
                TrustReport: device.refusals,
                HoldoutReport: device.drifts,
                FactsReport: device.facts,
                SiteReport: device.told,
                MeasuresReport: device.measured,
            }
            kept[type(report)].append(report)
            self.reported.notify_all()
        return 204

    @contextmanager
    def running(self) -> Iterator[str]:
        """Listen on a free port of loopback; yield the URL."""
        server = self

        class Handler(_Handler):
            behind = server

        http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        http.daemon_threads = True
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_address[1]}"
        finally:
            http.shutdown()
            http.server_close()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    behind: DeviceServer

    def log_message(self, *_: Any) -> None:
        """Stay quiet."""

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", "0"))))

    def _answer(self, body: bytes) -> None:  # noqa: PLR0911  # one return for each route
        server, path = self.behind, self.path
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        with server.lock:
            server.requests.append((self.command, path, dict(self.headers)))
            busy = server.unavailable > 0
            server.unavailable -= busy
        if busy:
            after = {} if server.retry_after is None else {"Retry-After": server.retry_after}
            return self._send(server.unavailable_status, b'{"detail": "busy"}', after)
        if path == "/device/v1/enrol":
            return self._send(*server.enrol(body, self.headers.get(SIGNATURE_HEADER, ""), token))
        if path == TOKEN_PATH:
            return self._send(*server.issue_token(body))
        device = next((one for one in server.devices.values() if token and one.token == token), None)
        if device is None:
            return self._send(401, b'{"detail": "this device is not known"}')
        if path == "/device/v1/poll":
            return self._poll(server.poll(device, self.headers))
        if path == "/device/v1/reports":
            return self._send(server.report(device, body, self.headers.get(SIGNATURE_HEADER, "")), b"")
        if path.startswith("/tuf/"):
            found = server.metadata(device, path.removeprefix("/tuf/"))
            return self._send(404 if found is None else 200, found or b"")
        return self._blob(path.removeprefix("/blobs/sha256/"))

    def _poll(self, answer: bytes | None) -> None:
        if answer is None:
            return self._send(304, b"")
        if self.behind.drip_s or self.behind.endless:
            return self._hold_up(answer)
        return self._send(200, answer, {"Content-Type": CONTENT_TYPE})

    def _hold_up(self, answer: bytes) -> None:
        """Send bytes one at a time, or without end, until the device has had enough."""
        self.close_connection = True
        self.send_response(200)
        self.end_headers()
        pieces = (
            itertools.repeat(bytes(4096)) if self.behind.endless else (answer[at : at + 1] for at in itertools.count())
        )
        try:
            for piece in pieces:
                self.wfile.write(piece)
                time.sleep(self.behind.drip_s)
        except OSError:
            return

    def _blob(self, name: str) -> None:
        data = self.behind.blobs.get(name)
        if data is None:
            return self._send(404, b'{"detail": "no such blob"}')
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked and self.headers.get("If-Range", f'"{name}"') == f'"{name}"':
            start, end = int(asked[1]), min(int(asked[2] or len(data)) + 1, len(data))
            said = {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}", "ETag": f'"{name}"'}
            return self._send(206, data[start:end], said, cut=True)
        return self._send(200, data, {"ETag": f'"{name}"'}, cut=True)

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None, *, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status not in {204, 304}:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if cut:
            with self.behind.lock:
                if self.behind.cut_after and self.behind.cut_after[0] < len(body):
                    body = body[: self.behind.cut_after.pop(0)]
                    self.close_connection = True
                self.behind.blob_bytes_sent += len(body)
        self.wfile.write(body)


def _naming(base: WithoutLocal, target: ArrayTensors, donor: ArrayTensors) -> bytes:
    """Return the update from `base` to `target` whose records name the donor's tensors."""
    theirs = {donor.sha256(index) for index in range(len(donor.table))}
    own = {base.sha256(index) for index in range(len(base.table))}
    new = [index for index in range(len(target.table)) if target.sha256(index) not in own]
    assert new, "nothing is the donor's"
    assert {target.sha256(index) for index in new} <= theirs
    records = [Held(index, target.sha256(index)[:PREFIX_BYTES]) for index in new]
    return bytes(encode_update(target.table, records, base_digest=digest_of(base), base_table=base.table))
