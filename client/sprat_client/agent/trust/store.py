"""What this device may install: only what both repositories vouch for, checked once more file by file.

The director says which release this device should run; the image repository says what that release is. A thief of the
keys of one can at most offer what the other signed.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, TypeVar

from sprat_client.agent.desired import Desired
from sprat_client.agent.durable import Disk
from sprat_client.agent.identity import Identity
from sprat_client.agent.store import file_sha256
from sprat_client.agent.trust.clock import Clock
from sprat_client.agent.trust.repository import MarksKeeper, TrustedRepository, TrustedTarget
from sprat_client.agent.trust.workflow import MetadataSource, Offer
from sprat_client.agent.version import VERSION
from sprat_shared.errors import (
    BaseMismatch,
    DigestMismatch,
    SpratError,
    UntrustedUpdate,
    UpdateRejected,
    WireVersionUnsupported,
)
from sprat_shared.ids import parse_digest
from sprat_shared.protocol.poll import HeldMetadata
from sprat_shared.trust.assignments import DIRECTOR_REPOSITORY, Assigned
from sprat_shared.trust.site_targets import SignedPlan, is_site_path
from sprat_shared.trust.targets import IMAGE_REPOSITORY, WIRE_VERSION, UpdateTarget, graph_path, role_of_model

_SEAL: Final = object()

Signed = Mapping[str, TrustedTarget]
_Directed = TypeVar("_Directed", Assigned, SignedPlan)


class VerifiedUpdate:
    """Metadata were signed, payload and chain were checked; `TrustStore.verify` is the only way to get one.

    Attributes:
        target: what the signer says.
        payload: the file with the update.
    """

    def __init__(self, target: UpdateTarget, payload: Path, *, seal: object) -> None:
        if seal is not _SEAL:
            raise TypeError("only TrustStore.verify() makes a VerifiedUpdate")
        self.target, self.payload = target, payload


@dataclass(frozen=True, slots=True)
class Refused:
    """An assignment of this device that will not be taken, and why."""

    assigned: Assigned
    why: UpdateRejected


@dataclass(frozen=True, slots=True)
class AgreedPlan:
    """A plan of a site that the director signed for this device; the image repository has no say in it.

    Attributes:
        plan: which one, and what this device does by it.
        length: of its file, bytes.
        sha256: of its file.
    """

    plan: SignedPlan
    length: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class Agreed:
    """What became of the director's assignments.

    Attributes:
        desired: what both repositories vouch for.
        refused: the others, of this device.
        foreign: what the director says and no assignment, and no plan, of this device is.
        plans: of the site that this device is of.
    """

    desired: tuple[Desired, ...] = ()
    refused: tuple[Refused, ...] = ()
    foreign: tuple[UpdateRejected, ...] = ()
    plans: tuple[AgreedPlan, ...] = ()


class TrustStore:
    """The trusted metadata of both repositories.

    Args:
        folder: `trust` in the agent's folder.
        disk: where it is written.
        identity: who this device is, and the roots that enrolment gave.
        keeper: where marks survive.
        clock: the reference time.
    """

    def __init__(self, folder: Path, disk: Disk, *, identity: Identity, keeper: MarksKeeper, clock: Clock) -> None:
        self._identity = identity

        def repository(name: str, bootstrap: bytes, *, tells_time: bool = False) -> TrustedRepository:
            return TrustedRepository(
                name, folder / name, disk, bootstrap=bootstrap, keeper=keeper, clock=clock, tells_time=tells_time
            )

        self.image = repository(IMAGE_REPOSITORY, identity.image_root)
        self.director = repository(DIRECTOR_REPOSITORY, identity.director_root, tells_time=True)

    def held(self) -> list[tuple[HeldMetadata, bytes]]:
        """Return the trusted files with their versions, in the order of a poll's dictionary."""
        return [*self.image.held(), *self.director.held()]

    def fresh_until(self) -> datetime:
        """Return when the first of the files that are held expires."""
        return min(self.image.fresh_until(), self.director.fresh_until())

    def take(self, parts: Mapping[str, bytes] | None = None, source: MetadataSource | None = None) -> Agreed:
        """Refresh both repositories and return what they agree on; without parts and source, of what is held.

        Args:
            parts: metadata files by name, such as `image/4.snapshot.json`, as a poll brought them.
            source: asked for what the parts lack.

        Raises:
            TryLater: metadata are expired, or link or server are not ready.
            UntrustedUpdate: signatures, versions or digests are wrong; the code says which.
        """
        directed = self.director.look_up(None, _offer(DIRECTOR_REPOSITORY, parts, source))
        assigned: list[Assigned] = []
        foreign: list[UpdateRejected] = []
        plans: list[AgreedPlan] = []
        for path, target in sorted(directed.items()):
            try:
                if is_site_path(path):
                    plan = self._mine(SignedPlan.from_custom(path, target.custom))
                    plans.append(AgreedPlan(plan, target.length, target.sha256))
                else:
                    assigned.append(self._mine(Assigned.from_custom(path, target.custom)))
            except UpdateRejected as bad:
                foreign.append(bad)
        paths = [path for one in assigned for path in (one.full, *one.path)]
        signed = self.image.look_up(paths, _offer(IMAGE_REPOSITORY, parts, source))
        self.image.let_go({role_of_model(one.model) for one in assigned})  # else every poll would name them
        desired: list[Desired] = []
        refused: list[Refused] = []
        for one in assigned:
            try:
                desired.append(self._agree(one, directed[one.full], signed))
            except UpdateRejected as bad:
                refused.append(Refused(one, bad))
        return Agreed(tuple(desired), tuple(refused), tuple(foreign), tuple(plans))

    def _mine(self, signed: _Directed) -> _Directed:
        if signed.device != self._identity.device:
            what = f"assignment {signed.full}" if isinstance(signed, Assigned) else f"plan {signed.path}"
            raise UntrustedUpdate(
                f"{what} is signed for device {signed.device}, this is {self._identity.device}",
                code="trust.other-device",
            )
        return signed

    def _agree(self, assigned: Assigned, directed: TrustedTarget, signed: Signed) -> Desired:
        """Return what to run, if the image repository signs the same file, and every step on the way to it."""
        if assigned.profile != self._identity.profile:
            raise UntrustedUpdate(
                f"assignment {assigned.full} is for profile {assigned.profile}, this is {self._identity.profile}",
                code="trust.other-profile",
            )
        full = _signed(assigned.full, signed)
        if (directed.length, directed.hashes) != (full.length, full.hashes):
            raise UntrustedUpdate(
                f"assignment {assigned.full}: director and image repository sign different files",
                code="trust.disagreement",
            )
        target = UpdateTarget.from_custom(full.path, full.custom)
        steps = [UpdateTarget.from_custom(path, _signed(path, signed).custom) for path in assigned.path]
        if any(step.model != assigned.model for step in steps) or (steps and steps[-1].weights != target.weights):
            raise UntrustedUpdate(
                f"assignment {assigned.full}: its path {', '.join(assigned.path)} does not lead there",
                code="trust.disagreement",
            )
        return Desired(
            model=assigned.model,
            release=assigned.release,
            weights=target.weights,
            assignment=assigned.assignment,
            graph=graph_path(assigned.model, target.graph),
            path=assigned.path,
            full=assigned.full,
            prefetch=assigned.prefetch,
            policy=assigned.policy,
        )

    def find(self, paths: Sequence[str], source: MetadataSource | None = None) -> Signed:
        """Return what the image repository says of targets; those that are not signed are left out.

        Without `source` only what is held is asked. See `TrustedRepository.look_up` for the errors.
        """
        return self.image.look_up(paths, Offer(source=source))

    def updates(self, wish: Desired) -> list[tuple[UpdateTarget, TrustedTarget]]:
        """Return all updates of a model that are signed, by what is held, and that this agent can read.

        They say which ways there are; `verify` checks each step of the one that is taken.

        Raises:
            TryLater, UntrustedUpdate: as `find`.
        """
        found = []
        for trusted in self.image.look_around(role_of_model(wish.model), wish.full):
            with contextlib.suppress(UpdateRejected):  # a graph, or what a newer agent reads
                target = UpdateTarget.from_custom(trusted.path, trusted.custom)
                _check_versions(target)
                if target.model == wish.model:
                    found.append((target, trusted))
        return found

    def verify(
        self, wish: Desired, steps: Sequence[str], base_weights: str | None, payloads: Path
    ) -> list[VerifiedUpdate]:
        """Check payloads and chain against the metadata that are held, without the network.

        Args:
            wish: what both repositories agreed on.
            steps: target paths of the updates, in order.
            base_weights: weights digest of the release that the first step starts from; None: from nothing.
            payloads: folder with the payloads, named by the hex of their digests.

        Raises:
            UntrustedUpdate: a target is not signed, or is not the release that was wished.
            BaseMismatch: a step needs other weights than those before it.
            DigestMismatch: a payload or the graph is not the signed one.
            WireVersionUnsupported: it needs a newer agent.
            TryLater: the metadata are expired.
        """
        signed = self.find([*steps, wish.graph])
        verified = []
        weights = base_weights
        for path in steps:
            trusted = _signed(path, signed)
            target = UpdateTarget.from_custom(path, trusted.custom)
            if target.model != wish.model:
                raise UntrustedUpdate(f"target {path} is of model {target.model!r}, not {wish.model!r}")
            if target.base_weights not in {None, weights}:
                raise BaseMismatch(f"target {path} needs the weights {target.base_weights}, this device has {weights}")
            _check_versions(target)
            weights = target.weights
            verified.append(VerifiedUpdate(target, payloads / trusted.sha256.hex(), seal=_SEAL))
            _check_payload(verified[-1].payload, trusted)
        last = verified[-1].target
        if (last.weights, last.release) != (wish.weights, wish.release):
            raise UntrustedUpdate(
                f"the assignment says {wish.model}@{wish.release} with weights {wish.weights[:23]}…, "
                f"the signed target says @{last.release} with {last.weights[:23]}…"
            )
        _check_graph(wish.graph, last.graph, signed)
        if last.local is not None:
            path = graph_path(last.model, last.local.graph)
            _check_graph(path, last.local.graph, self.find([path]))
        return verified


def _offer(repository: str, parts: Mapping[str, bytes] | None, source: MetadataSource | None) -> Offer:
    own = f"{repository}/"
    mine = {name.removeprefix(own): data for name, data in (parts or {}).items() if name.startswith(own)}
    return Offer(mine, source, polled=parts is not None)


def _signed(path: str, signed: Signed) -> TrustedTarget:
    if path not in signed:
        raise UntrustedUpdate(f"target {path} is not signed for by the image repository", code="trust.disagreement")
    return signed[path]


def _check_graph(path: str, digest: str, signed: Signed) -> None:
    sha256 = _signed(path, signed).sha256
    if sha256 != parse_digest(digest):
        raise DigestMismatch(subject=path, expected=digest, actual=sha256.hex())


def _check_payload(payload: Path, trusted: TrustedTarget) -> None:
    try:
        actual = file_sha256(payload)
    except OSError as bad:
        raise SpratError(f"the payload of {trusted.path} is not here ({bad.strerror})", code="fetch.missing") from bad
    if actual != trusted.sha256:
        raise DigestMismatch(subject=trusted.path, expected=trusted.sha256.hex(), actual=actual.hex())


def _check_versions(target: UpdateTarget) -> None:
    if target.wire != WIRE_VERSION:
        raise WireVersionUnsupported(
            f"target {target.path} is of wire version {target.wire}; this agent reads {WIRE_VERSION}: update the agent"
        )
    if _version(target.min_agent) > _version(VERSION):
        raise WireVersionUnsupported(
            f"target {target.path} needs agent {target.min_agent}; this is {VERSION}: update the agent"
        )


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())
