"""One played device on the wire: it joins, polls and reports as an agent does, and holds two slots of digests."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from random import Random
from typing import Any, Final
from uuid import UUID

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sprat_client.agent.auth import DeviceAuth
from sprat_client.agent.version import VERSION
from sprat_client.simulate.behaviour import Reaction, Trouble, first, react
from sprat_shared.errors import Conflict, InvalidInput, TryLater
from sprat_shared.protocol.enrol import PLAYED, EnrolAnswer, EnrolRequest
from sprat_shared.protocol.poll import HeldMetadata, PollAnswer, format_tag, parse_tag
from sprat_shared.protocol.report import SIGNATURE_HEADER, Outcome, Report, format_signature
from sprat_shared.trust.assignments import DIRECTOR_REPOSITORY, Assigned
from sprat_shared.trust.targets import IMAGE_REPOSITORY, UpdateTarget, role_of_model

_JSON: Final = {"Content-Type": "application/json"}


@dataclass(frozen=True, slots=True)
class Held:
    """A release in a slot: its number, and the weights digest that is signed for it."""

    release: int
    weights: str


@dataclass(slots=True)
class PlayedDevice:
    """A device of one model; what is assigned of others it lets be. Not for several threads at a time.

    Attributes:
        name: what people call it.
        model: its model's name.
        profile: the class of devices that it is of.
        draw: everything that is left to chance on it.
        troubles: what is wrong with which release; others are taken unseen, for they are not what is rehearsed.
        id: None before it has joined.
        active: what serves; None: nothing yet.
        previous: what it can go back to.
        declined: the newest release that it refused or rolled back by its own judgement.
        polls: answered so far.
        acted: counters of the assignments that it acted on, in order: none twice.
    """

    name: str
    model: str
    profile: str
    draw: Random
    troubles: Mapping[int, Trouble] = field(default_factory=dict)
    id: UUID | None = None
    active: Held | None = None
    previous: Held | None = None
    declined: int | None = None
    polls: int = 0
    acted: list[int] = field(default_factory=list)
    _key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate, repr=False)
    _auth: DeviceAuth | None = field(default=None, repr=False)
    _files: dict[tuple[str, str], bytes] = field(default_factory=dict, repr=False)  # the newest of each role
    _unsent: list[Report] = field(default_factory=list, repr=False)
    _sequence: int = 0
    _gone: bool = False

    def join(self, client: httpx.Client, token: str) -> None:
        """Enrol with a token.

        Raises:
            TryLater: the server is not ready.
            InvalidInput: it refuses.
        """
        request = EnrolRequest(
            name=self.name,
            public_key=self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw),
            agent=VERSION,
            profile=self.profile,
            attributes=PLAYED,
        )
        body = request.to_json()
        headers = {**_JSON, **self._signed(body), "Authorization": f"Bearer {token}"}
        answer = _sent(client, "POST", "/device/v1/enrol", content=body, headers=headers)
        joined = EnrolAnswer.from_json(answer.content)
        self.id, self._sequence = joined.device, joined.report_sequence
        self._auth = DeviceAuth(str(client.base_url).rstrip("/"), joined.device, self._key)
        self._files = {
            (IMAGE_REPOSITORY, "root"): joined.image_root,
            (DIRECTOR_REPOSITORY, "root"): joined.director_root,
        }

    def turn(self, client: httpx.Client) -> float | None:
        """Report what waits, poll, and act on what is assigned; return the interval that the server wishes, if it said.

        Raises:
            TryLater: the server is not ready; what waits, waits.
            InvalidInput: it refuses for good.
        """
        if self._gone:
            return None
        self._deliver(client)
        wished = self._poll(client)
        for assigned in self._assigned():
            if not self.acted or assigned.assignment > self.acted[-1]:
                self._act(assigned)
        self._deliver(client)
        return wished

    def has_settled_on(self, release: int) -> bool:
        """Whether a release serves, or was declined, and the server was told; or nobody will ever hear anything."""
        return self._gone or (self.is_where(release) and not self._unsent)

    def is_where(self, release: int) -> bool:
        """Whether a release serves, or was declined."""
        return release == self.declined or (self.active is not None and self.active.release == release)

    @property
    def is_silent(self) -> bool:
        """Whether it will never be heard of again."""
        return self._gone

    def _poll(self, client: httpx.Client) -> float | None:
        held = self._holdings()
        headers = {"If-None-Match": format_tag([name for name, _ in held]), "Sprat-Inline": "0"}
        answer = _sent(client, "GET", "/device/v1/poll", headers=headers, auth=self._auth)
        self.polls += 1
        if answer.status_code == HTTPStatus.NOT_MODIFIED:
            return None
        told = PollAnswer.from_bytes(answer.content, b"".join(data for _, data in held))
        for part in told.parts:
            if part.kind == "metadata":
                self._files[_role_of(part.name)] = part.data
        return told.poll_interval_s

    def _holdings(self) -> list[tuple[HeldMetadata, bytes]]:
        held = [HeldMetadata(*role, _signed(data)["version"]) for role, data in self._files.items()]
        in_order = parse_tag(format_tag(held))
        return [(one, self._files[one.repository, one.role]) for one in in_order]

    def _assigned(self) -> list[Assigned]:
        targets = self._files.get((DIRECTOR_REPOSITORY, "targets"))
        if targets is None:
            return []
        said = _signed(targets)["targets"]
        found = [Assigned.from_custom(path, target.get("custom")) for path, target in said.items()]
        own = (one for one in found if one.model == self.model and not one.prefetch)
        return sorted(own, key=lambda one: one.assignment)

    def _act(self, assigned: Assigned) -> None:
        self.acted.append(assigned.assignment)
        wished = Held(assigned.release, self._weights_of(assigned))
        if self.active is not None and wished.release == self.active.release:
            self._say(assigned, Reaction(outcome=Outcome.COMMITTED, evidence=first(self.draw).evidence))
            return
        if self.previous is not None and wished.release == self.previous.release:
            self.active, self.previous = self.previous, self.active
            self._say(assigned, None)
            return
        trouble = None if self.active is None else self.troubles.get(wished.release)
        reaction = first(self.draw) if trouble is None else react(trouble, self.profile, self.draw)
        if reaction is None:
            self._gone = True
            return
        if reaction.outcome is Outcome.COMMITTED:
            self.active, self.previous = wished, self.active
        else:
            self.declined = wished.release
        self._say(assigned, reaction)

    def _weights_of(self, assigned: Assigned) -> str:
        """Return the digest that the image repository signs for the release, of its full update."""
        targets = self._files.get((IMAGE_REPOSITORY, role_of_model(assigned.model)))
        target = None if targets is None else _signed(targets)["targets"].get(assigned.full)
        if target is None:
            raise InvalidInput(f"{self.name}: the poll assigns {assigned.full}, which its metadata do not sign")
        return UpdateTarget.from_custom(assigned.full, target["custom"]).weights

    def _say(self, assigned: Assigned, reaction: Reaction | None) -> None:
        assert self.id is not None  # noqa: S101 - it polled
        self._sequence += 1
        report = Report(
            device=self.id,
            sequence=self._sequence,
            model=assigned.model,
            assignment=assigned.assignment,
            release=assigned.release,
            outcome=Outcome.RETURNED if reaction is None else reaction.outcome,
            serving_release=None if self.active is None else self.active.release,
            serving_weights=None if self.active is None else self.active.weights,
            error_code=None if reaction is None else reaction.error_code,
            error_detail=None if reaction is None else reaction.error_detail,
            evidence=None if reaction is None else reaction.evidence,
            received_bytes=0,
            seconds=0.0,
            agent=VERSION,
        )
        self._unsent.append(report)

    def _deliver(self, client: httpx.Client) -> None:
        while self._unsent:
            body = self._unsent[0].to_json()
            headers = {**_JSON, **self._signed(body)}
            with suppress(Conflict):  # it was taken, and the answer was lost
                _sent(client, "POST", "/device/v1/reports", content=body, headers=headers, auth=self._auth)
            del self._unsent[0]

    def _signed(self, body: bytes) -> dict[str, str]:
        return {SIGNATURE_HEADER: format_signature(self._key.sign(body))}


def _role_of(name: str) -> tuple[str, str]:
    """Return repository and role of a metadata file's name: `image/4.snapshot.json` is of the snapshot."""
    repository, _, file = name.partition("/")
    stem = file.removesuffix(".json")
    version, _, role = stem.partition(".")
    return repository, role if version.isdigit() else stem


def _signed(data: bytes) -> dict[str, Any]:
    signed: dict[str, Any] = json.loads(data)["signed"]
    return signed


def _sent(client: httpx.Client, method: str, path: str, **how: Any) -> httpx.Response:
    try:
        answer = client.request(method, path, **how)
    except httpx.TransportError as bad:
        raise TryLater(f"{path}: {bad or type(bad).__name__}", code="simulate.no-answer") from bad
    if answer.is_success or answer.status_code == HTTPStatus.NOT_MODIFIED:
        return answer
    if answer.is_server_error or answer.status_code in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.REQUEST_TIMEOUT}:
        raise TryLater(f"{path}: status {answer.status_code}", code="simulate.no-answer")
    if answer.status_code == HTTPStatus.CONFLICT:
        raise Conflict(f"{path}: {answer.text[:400]}", code="simulate.conflict")
    raise InvalidInput(f"{path}: status {answer.status_code}: {answer.text[:400]}", code="simulate.refused")
