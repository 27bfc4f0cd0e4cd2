"""Both repositories in memory, behaving like the real ones: signed by python-tuf, consistent snapshots."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any
from uuid import UUID

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization.json import JSONSerializer

from sprat_shared.trust.assignments import Assigned
from sprat_shared.trust.signed_time import SignedTime
from sprat_shared.trust.site_targets import SignedPlan
from sprat_shared.trust.targets import paths_of_model, role_of_model

_COMPACT = JSONSerializer(compact=True)


def in_days(days: float) -> datetime:
    """Return a time as metadata say it: whole seconds, UTC."""
    return datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)


def file_name(role: str, version: int) -> str:
    """Return the name under which a repository of consistent snapshots serves a file."""
    return "timestamp.json" if role == "timestamp" else f"{version}.{role}.json"


@dataclass
class _Keys:
    """The keys of four roles, and the root that names them."""

    expires: datetime = field(default_factory=lambda: in_days(30))
    files: dict[str, bytes] = field(default_factory=dict)
    signed: dict[tuple[str, int], bytes] = field(default_factory=dict)  # by role and version, all that ever were

    def __post_init__(self) -> None:
        self.signers = {
            role: [CryptoSigner.generate_ed25519()] for role in ("root", "targets", "snapshot", "timestamp")
        }
        self.root = Root(expires=self.expires, consistent_snapshot=True)
        for role, signers in self.signers.items():
            self.root.add_key(signers[0].public_key, role)
        self._write("root", self.root)

    def rotate(self, *roles: str) -> None:
        """Sign the next root, with new keys for these roles."""
        for role in roles:
            for old in self.signers[role]:
                self.root.revoke_key(old.public_key.keyid, role)
            self.signers[role] = [CryptoSigner.generate_ed25519()]
            self.root.add_key(self.signers[role][0].public_key, role)
        self.root.version += 1
        self._write("root", self.root)

    def require_two(self, role: str) -> None:
        """Sign the next root, which wants two signatures for a role."""
        self.signers[role].append(CryptoSigner.generate_ed25519())
        self.root.add_key(self.signers[role][1].public_key, role)
        self.root.roles[role].threshold = 2
        self.root.version += 1
        self._write("root", self.root)

    def _write(self, role: str, signed: Any, signers: list[CryptoSigner] | None = None) -> None:
        name = file_name(role, signed.version)
        data = sign(signed, self.signers[role] if signers is None else signers)
        self.files[name] = self.signed[role, signed.version] = data


def sign(signed: Any, signers: list[CryptoSigner]) -> bytes:
    """Return signed metadata."""
    metadata = Metadata(signed)
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes(_COMPACT)


@dataclass
class SignedRepository(_Keys):
    """The image repository: files by the names under which `/tuf/image/` serves them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.model_signer = CryptoSigner.generate_ed25519()
        self.targets = Targets(expires=self.expires)
        self.targets.delegations = Delegations({}, {})
        self.snapshot, self.timestamp = Snapshot(expires=self.expires), Timestamp(expires=self.expires)
        self.snapshot.meta = {}
        self.models: dict[str, Targets] = {}
        self.publish()

    def rotate_root(self) -> None:
        """Sign the next root, with a new timestamp key."""
        self.rotate("timestamp")
        self.publish()

    def add(self, model: str, path: str, data: bytes, custom: dict[str, Any] | None = None) -> None:
        """Add a target; signed at the next `publish`."""
        if model not in self.models:
            self.models[model] = Targets(expires=self.expires)
            role = role_of_model(model)
            delegations = self.targets.delegations
            assert delegations is not None
            assert delegations.roles is not None
            delegations.roles[role] = DelegatedRole(role, [], 1, terminating=True, paths=paths_of_model(model))
            self.targets.add_key(self.model_signer.public_key, role)
            self.targets.version += 1
        target = TargetFile(len(data), {"sha256": sha256(data).hexdigest()}, path)
        if custom is not None:
            target.unrecognized_fields["custom"] = custom
        self.models[model].targets[path] = target

    def publish(self, model: str | None = None) -> None:
        """Sign the next version of everything that changed."""
        if model is not None:
            role = role_of_model(model)
            self.models[model].version += (role, self.models[model].version) in self.signed
            self._write(role, self.models[model], [self.model_signer])
            self.snapshot.meta[f"{role}.json"] = MetaFile(self.models[model].version)
        self._write("targets", self.targets)
        self.snapshot.meta["targets.json"] = MetaFile(self.targets.version)
        if f"{self.snapshot.version}.snapshot.json" in self.files:
            self.snapshot.version += 1
            self.timestamp.version += 1
        self._write("snapshot", self.snapshot)
        self.timestamp.snapshot_meta = MetaFile(self.snapshot.version)
        self._write("timestamp", self.timestamp)

    def newest(self) -> list[tuple[str, int, str]]:
        """Return role, version and name of the newest file of each role, in the order in which a client reads them."""
        signed: list[tuple[str, Any]] = [
            ("root", self.root),
            ("timestamp", self.timestamp),
            ("snapshot", self.snapshot),
            ("targets", self.targets),
            *((role_of_model(model), targets) for model, targets in sorted(self.models.items())),
        ]
        return [(role, one.version, file_name(role, one.version)) for role, one in signed]


@dataclass
class Directed:
    """What the director signed for one device."""

    versions: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("timestamp", "snapshot", "targets"), 0))
    files: dict[str, bytes] = field(default_factory=dict)
    signed: dict[tuple[str, int], bytes] = field(default_factory=dict)
    said: list[tuple[Assigned | SignedPlan, TargetFile]] | None = None


class SignedDirector(_Keys):
    """The director's repository: one root, and a timestamp, snapshot and targets for each device."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.devices: dict[UUID, Directed] = {}

    def direct(self, device: UUID, said: list[tuple[Assigned | SignedPlan, TargetFile]]) -> Directed:
        """Sign what a device should run, if it changed; return what is signed for it."""
        directed = self.devices.setdefault(device, Directed())
        if directed.said != said:
            directed.said = said
            targets = Targets(expires=self.expires)
            for signed, file in said:
                path = signed.path if isinstance(signed, SignedPlan) else signed.full
                target = TargetFile(file.length, dict(file.hashes), path)
                target.unrecognized_fields["custom"] = signed.to_custom()
                targets.targets[path] = target
            self._sign(directed, "targets", targets)
            self._sign(directed, "snapshot", Snapshot(expires=self.expires))
            self.stamp(device)
        return directed

    def stamp(self, device: UUID, nonce: str | None = None, at: datetime | None = None) -> None:
        """Sign a device's next timestamp, with the time."""
        timestamp = Timestamp(expires=self.expires)
        timestamp.unrecognized_fields |= SignedTime(at=at or datetime.now(UTC), nonce=nonce).to_fields()
        self._sign(self.devices[device], "timestamp", timestamp)

    def _sign(self, directed: Directed, role: str, signed: Any) -> None:
        directed.versions[role] += 1
        signed.version = directed.versions[role]
        if role == "snapshot":
            signed.meta = {"targets.json": MetaFile(directed.versions["targets"])}
        if role == "timestamp":
            signed.snapshot_meta = MetaFile(directed.versions["snapshot"])
        data = sign(signed, self.signers[role])
        directed.files[file_name(role, signed.version)] = directed.signed[role, signed.version] = data

    def newest(self, device: UUID) -> list[tuple[str, int, str]]:
        """Return role, version and name of the newest file of each role, in the order in which a client reads them."""
        versions: Mapping[str, int] = {"root": self.root.version, **self.devices[device].versions}
        return [(role, version, file_name(role, version)) for role, version in versions.items()]

    def file(self, device: UUID, name: str) -> bytes | None:
        """Return a file as `/tuf/director/` serves it to a device."""
        return self.files.get(name) or self.devices[device].files.get(name)
