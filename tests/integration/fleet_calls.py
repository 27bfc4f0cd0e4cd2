"""A small registry and devices that behave: they make keys, enrol, poll and sign their reports."""

import hashlib
import json
import time
from dataclasses import dataclass, field
from uuid import UUID, uuid4

import httpx
import jwt
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi import FastAPI
from http_calls import MADE, Api
from sqlalchemy.orm import Session

from sprat_server.db.blobs import Blobs
from sprat_server.flows.publishing import publish_release
from sprat_server.publish import repository
from sprat_server.registry import service as registry
from sprat_server.registry.models import Release
from sprat_server.registry.service import NewUpdate
from sprat_server.settings import Settings
from sprat_shared.protocol.enrol import EnrolAnswer, EnrolRequest
from sprat_shared.protocol.poll import Desired, HeldMetadata, PollAnswer, format_have
from sprat_shared.protocol.report import Outcome, Report, format_signature
from sprat_shared.protocol.token import ASSERTION_TYPE, AUDIENCE, GRANT_TYPE
from sprat_shared.wire.tensors import TensorSpec, TensorTable, weights_digest

TABLE = TensorTable([TensorSpec("w", "F32", (500,))])


def publish(
    session: Session, blobs: Blobs, settings: Settings, *, model: str = "mnist", base: int | None = None
) -> Release:
    """Publish the next release of a model with random weights: the first, or one with an update from `base`."""
    weights = np.random.default_rng(next(MADE)).standard_normal(500).astype("<f4").tobytes()
    graph, full = blobs.put_bytes(b"the graph of " + model.encode()), blobs.put_bytes(weights)
    updates = [NewUpdate(None, full.digest, full.length)]
    if base is None:
        lineage = registry.create_model(session, name=model, recipe=None, example=None)
    else:
        lineage = registry.get_model(session, model)
        small = blobs.put_bytes(b"update " + weights[:93])
        updates.append(NewUpdate(base, small.digest, small.length))
    return publish_release(
        session,
        blobs,
        settings,
        model=lineage,
        graph_blob=graph.digest,
        weights_blob=full.digest,
        table=TABLE,
        weights_digest=weights_digest(TABLE, [hashlib.sha256(weights).digest()]),
        updates=updates,
        metrics={"accuracy": 0.9},
        origin="registered" if base is None else "created",
        base=base,
    )


def published(app: FastAPI, *, model: str = "mnist", base: int | None = None) -> Release:
    """Publish in a transaction of its own."""
    with app.state.database.transaction() as session:
        repository.ensure_repository(session, app.state.settings)
        return publish(session, app.state.blobs, app.state.settings, model=model, base=base)


def made(answer: httpx.Response) -> dict:  # type: ignore[type-arg]
    """Return the JSON of an answer that must be a success."""
    assert answer.is_success, (answer.status_code, answer.text)
    body: dict = answer.json()  # type: ignore[type-arg]
    return body


@dataclass
class TestDevice:
    """A device of the fleet, over HTTP."""

    __test__ = False

    api: Api
    id: UUID
    name: str
    key: Ed25519PrivateKey
    answer: EnrolAnswer
    sequence: int = 0
    held: list[HeldMetadata] = field(default_factory=list)

    def poll(
        self, *, etag: str | None = None, inline: int = 0, held: list[HeldMetadata] | None = None
    ) -> httpx.Response:
        """Ask what is wished."""
        headers = {"Sprat-Inline": str(inline)}
        if held:
            headers["Sprat-Have"] = format_have(held)
        if etag is not None:
            headers["If-None-Match"] = etag
        return self.api.get("/device/v1/poll", headers=headers)

    def wish(self, model: str = "mnist") -> Desired | None:
        """Return the desired release of a model."""
        answer = self.poll()
        assert answer.status_code == 200, answer.text
        desired = {wish.model: wish for wish in PollAnswer.from_bytes(answer.content).desired}
        return desired.get(model)

    def report(self, wish: Desired, outcome: Outcome, **changes: object) -> Report:
        """Return a report about a wish: the release serves if it was committed or returned to."""
        self.sequence += 1
        serves = outcome in {Outcome.COMMITTED, Outcome.RETURNED}
        fields: dict[str, object] = {
            "device": self.id,
            "sequence": self.sequence,
            "model": wish.model,
            "assignment": wish.assignment,
            "release": wish.release,
            "outcome": outcome,
            "serving_release": wish.release if serves else None,
            "serving_weights": wish.weights if serves else None,
            "error_code": None if serves else "validation.worse",
            "error_detail": None if serves else "31 of 200 samples went wrong",
            "evidence": None,
            "received_bytes": 900,
            "seconds": 2.5,
            "agent": "0.1.0",
        }
        return Report(**(fields | changes))  # type: ignore[arg-type]

    def send(self, report: Report, *, key: Ed25519PrivateKey | None = None) -> httpx.Response:
        """Sign and send a report."""
        body = report.to_json()
        signature = format_signature((key or self.key).sign(body))
        return self.api.post("/device/v1/reports", content=body, headers={"Sprat-Signature": signature})

    def tell(self, outcome: Outcome, model: str = "mnist", **changes: object) -> None:
        """Report about what is wished now; it must be taken."""
        wish = self.wish(model)
        assert wish is not None
        answer = self.send(self.report(wish, outcome, **changes))
        assert answer.status_code == 204, answer.text


def enrol(app: FastAPI, token: str | None, name: str, key: Ed25519PrivateKey | None = None) -> httpx.Response:
    """Ask to join, signed with the key."""
    key = key or Ed25519PrivateKey.generate()
    body = enrol_request(name, key).to_json()
    headers = {"Sprat-Signature": format_signature(key.sign(body))}
    return Api(app, token).post("/device/v1/enrol", content=body, headers=headers)


def enrol_request(name: str, key: Ed25519PrivateKey) -> EnrolRequest:
    """Return what a device says of itself."""
    public_key = key.public_key().public_bytes_raw()
    return EnrolRequest(name=name, public_key=public_key, agent="0.1.0", attributes={"machine": "x86_64"})


def assertion(device: UUID, key: Ed25519PrivateKey, **changes: object) -> str:
    """Return what a device signs to get a token; a claim that is changed to None is left out."""
    now_s = int(time.time())
    claims: dict[str, object] = {
        "iss": str(device),
        "sub": str(device),
        "aud": AUDIENCE,
        "iat": now_s,
        "exp": now_s + 60,
        "jti": uuid4().hex,
    }
    claims = {name: value for name, value in (claims | changes).items() if value is not None}
    return jwt.encode(claims, key, algorithm="EdDSA")


def ask_for_token(app: FastAPI, signed: str) -> httpx.Response:
    """Exchange an assertion for a token."""
    form = {"grant_type": GRANT_TYPE, "client_assertion_type": ASSERTION_TYPE, "client_assertion": signed}
    return Api(app, None).post("/device/v1/token", data=form)


def device_of(app: FastAPI, answer: httpx.Response, name: str, key: Ed25519PrivateKey) -> "TestDevice":
    """Return the device that an answer to its enrolment lets in, with a token."""
    read = EnrolAnswer.from_json(answer.content)
    token: str = made(ask_for_token(app, assertion(read.device, key)))["access_token"]
    return TestDevice(Api(app, token), read.device, name, key, read, read.report_sequence)


def join(app: FastAPI, operator: Api, count: int) -> list[TestDevice]:
    """Let so many devices join."""
    token = made(operator.post("/api/v1/enrolment-tokens", json={"uses": count}))["token"]
    devices = []
    for _ in range(count):
        key, name = Ed25519PrivateKey.generate(), f"device-{next(MADE)}"
        answer = enrol(app, token, name, key)
        assert answer.status_code == 201, answer.text
        devices.append(device_of(app, answer, name, key))
    return devices


def held_after(answer: PollAnswer) -> tuple[list[HeldMetadata], bytes]:
    """Return what a device names and holds after it has read an answer with every file, and the dictionary."""
    held, dictionary = [], b""
    for part in answer.parts:
        if part.kind == "metadata":
            version, _, role = part.name.removeprefix("image/").removesuffix(".json").partition(".")
            held.append(HeldMetadata("image", role, int(version)) if role else _timestamp(part.data))
            dictionary += part.data
    return held, dictionary


def _timestamp(body: bytes) -> HeldMetadata:
    return HeldMetadata("image", "timestamp", json.loads(body)["signed"]["version"])
