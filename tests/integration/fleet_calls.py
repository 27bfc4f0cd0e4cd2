"""A small registry and devices that behave: they make keys, enrol, poll and sign their reports."""

import hashlib
import json
import time
from dataclasses import dataclass
from uuid import UUID, uuid4

import httpx
import jwt
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi import FastAPI
from http_calls import MADE, Api
from sqlalchemy.orm import Session

from sprat_server.db.blobs import Blobs
from sprat_server.db.projects import DEFAULT_PROJECT
from sprat_server.flows.publishing import publish_release
from sprat_server.publish import director_root
from sprat_server.publish.image import open_repository
from sprat_server.registry import service as registry
from sprat_server.registry.models import Release
from sprat_server.registry.service import NewUpdate
from sprat_server.settings import Settings
from sprat_shared.protocol.enrol import EnrolAnswer, EnrolRequest
from sprat_shared.protocol.poll import HeldMetadata, PollAnswer, format_tag, parse_tag
from sprat_shared.protocol.report import AnyReport, Outcome, Report, format_signature
from sprat_shared.protocol.token import ASSERTION_TYPE, AUDIENCE, GRANT_TYPE
from sprat_shared.trust.assignments import Assigned
from sprat_shared.trust.site_targets import is_site_path
from sprat_shared.trust.targets import UpdateTarget, role_of_model
from sprat_shared.wire.tensors import TensorSpec, TensorTable, weights_digest

TABLE = TensorTable([TensorSpec("w", "F32", (500,))])


def publish(
    session: Session,
    blobs: Blobs,
    settings: Settings,
    *,
    model: str = "mnist",
    base: int | None = None,
    recipe: dict[str, object] | None = None,
) -> Release:
    """Publish the next release of a model with random weights: the first, or one with an update from `base`."""
    weights = np.random.default_rng(next(MADE)).standard_normal(500).astype("<f4").tobytes()
    graph, full = blobs.put_bytes(b"the graph of " + model.encode()), blobs.put_bytes(weights)
    updates = [NewUpdate(None, full.digest, full.length)]
    if base is None:
        lineage = registry.create_model(session, name=model, recipe=recipe, example=None)
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


def published(
    app: FastAPI,
    *,
    model: str = "mnist",
    base: int | None = None,
    recipe: dict[str, object] | None = None,
    project_id: UUID = DEFAULT_PROJECT,
) -> Release:
    """Publish in a transaction of its own."""
    with app.state.database.transaction(project_id) as session:
        open_repository(session, app.state.settings)
        director_root.ensure(session, app.state.settings)
        return publish(session, app.state.blobs, app.state.settings, model=model, base=base, recipe=recipe)


def made(answer: httpx.Response) -> dict:  # type: ignore[type-arg]
    """Return the JSON of an answer that must be a success."""
    assert answer.is_success, (answer.status_code, answer.text)
    body: dict = answer.json()  # type: ignore[type-arg]
    return body


@dataclass(frozen=True)
class Wished:
    """A release that a device should run: what the director says of it, and what the image repository says."""

    assigned: Assigned
    target: UpdateTarget

    @property
    def release(self) -> int:
        """Its number."""
        return self.assigned.release

    @property
    def path(self) -> tuple[str, ...]:
        """The updates that lead there."""
        return self.assigned.path

    @property
    def assignment(self) -> int:
        """The counter of the assignment."""
        return self.assigned.assignment

    @property
    def weights(self) -> str:
        """The weights digest that the image repository signs for it."""
        return self.target.weights


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

    def poll(self, *, held: list[HeldMetadata] | None = None, inline: int = 0) -> httpx.Response:
        """Ask for what is newer than what is held."""
        headers = {"Sprat-Inline": str(inline)}
        if held is not None:
            headers["If-None-Match"] = format_tag(held)
        return self.api.get("/device/v1/poll", headers=headers)

    def wish(self, model: str = "mnist") -> Wished | None:
        """Return the release of a model that it should run."""
        answer = self.poll()
        assert answer.status_code == 200, answer.text
        return wished(PollAnswer.from_bytes(answer.content), model)

    def report(self, wish: Wished, outcome: Outcome, **changes: object) -> Report:
        """Return a report about a wish: the release serves if it was committed or returned to."""
        self.sequence += 1
        serves = outcome in {Outcome.COMMITTED, Outcome.RETURNED}
        fields: dict[str, object] = {
            "device": self.id,
            "sequence": self.sequence,
            "model": wish.assigned.model,
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

    def send(self, report: AnyReport, *, key: Ed25519PrivateKey | None = None) -> httpx.Response:
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


def enrol(
    app: FastAPI, token: str | None, name: str, key: Ed25519PrivateKey | None = None, profile: str | None = None
) -> httpx.Response:
    """Ask to join, signed with the key."""
    key = key or Ed25519PrivateKey.generate()
    body = enrol_request(name, key, profile).to_json()
    headers = {"Sprat-Signature": format_signature(key.sign(body))}
    return Api(app, token).post("/device/v1/enrol", content=body, headers=headers)


def enrol_request(name: str, key: Ed25519PrivateKey, profile: str | None = None) -> EnrolRequest:
    """Return what a device says of itself."""
    public_key = key.public_key().public_bytes_raw()
    return EnrolRequest(
        name=name, public_key=public_key, agent="0.1.0", profile=profile, attributes={"machine": "x86_64"}
    )


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


def join(app: FastAPI, operator: Api, count: int, project_id: UUID = DEFAULT_PROJECT) -> list[TestDevice]:
    """Let so many devices join a server that was started."""
    with app.state.database.transaction(project_id) as session:
        director_root.ensure(session, app.state.settings)
    token = made(operator.post("/api/v1/enrolment-tokens", json={"uses": count}))["token"]
    devices = []
    for _ in range(count):
        key, name = Ed25519PrivateKey.generate(), f"device-{next(MADE)}"
        answer = enrol(app, token, name, key)
        assert answer.status_code == 201, answer.text
        devices.append(device_of(app, answer, name, key))
    return devices


def wished(answer: PollAnswer, model: str = "mnist") -> Wished | None:
    """Return the release of a model that an answer with every file wishes for."""
    files = signed_in(answer)
    for path, target in files["director", "targets"]["targets"].items():
        if is_site_path(path):
            continue
        assigned = Assigned.from_custom(path, target["custom"])
        if assigned.model == model:
            published = files["image", role_of_model(model)]["targets"][path]
            assert (published["length"], published["hashes"]) == (target["length"], target["hashes"])
            return Wished(assigned, UpdateTarget.from_custom(path, published["custom"]))
    return None


def signed_in(answer: PollAnswer) -> dict[tuple[str, str], dict]:  # type: ignore[type-arg]
    """Return what is signed in an answer, by repository and role."""
    return {
        _file(part.name): json.loads(part.data)["signed"]
        for part in sorted(answer.parts, key=lambda part: len(part.name))
        if part.kind == "metadata"
    }


def held_after(answer: PollAnswer, before: dict[HeldMetadata, bytes] | None = None) -> dict[HeldMetadata, bytes]:
    """Return what a device holds after it has read an answer, in the order of the dictionary."""
    held = {(item.repository, item.role): (item, data) for item, data in (before or {}).items()}
    for part in answer.parts:
        if part.kind == "metadata":
            repository_name, role = _file(part.name)
            version = json.loads(part.data)["signed"]["version"]
            held[repository_name, role] = HeldMetadata(repository_name, role, version), part.data
    named = parse_tag(format_tag([item for item, _ in held.values()]))
    return {item: held[item.repository, item.role][1] for item in named}


def _file(name: str) -> tuple[str, str]:
    """Return repository and role of a metadata file's name."""
    repository_name, _, file = name.partition("/")
    return repository_name, file.removesuffix(".json").lstrip("0123456789").removeprefix(".")
