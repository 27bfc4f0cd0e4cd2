"""An image repository in memory that behaves like the real one: signed by python-tuf, consistent snapshots."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

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

from sprat_shared.trust.targets import paths_of_model, role_of_model

_COMPACT = JSONSerializer(compact=True)


@dataclass
class SignedRepository:
    """Files by the names under which `/tuf/image/` serves them."""

    files: dict[str, bytes] = field(default_factory=dict)
    signed: dict[tuple[str, int], bytes] = field(default_factory=dict)  # by role and version, all that ever were
    expires: datetime = field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0) + timedelta(days=30))

    def __post_init__(self) -> None:
        self.signers = {role: CryptoSigner.generate_ed25519() for role in ("root", "targets", "snapshot", "timestamp")}
        self.model_signer = CryptoSigner.generate_ed25519()
        self.root = Root(expires=self.expires, consistent_snapshot=True)
        for role, signer in self.signers.items():
            self.root.add_key(signer.public_key, role)
        self.targets = Targets(expires=self.expires)
        self.targets.delegations = Delegations({}, {})
        self.snapshot, self.timestamp = Snapshot(expires=self.expires), Timestamp(expires=self.expires)
        self.snapshot.meta = {}
        self.models: dict[str, Targets] = {}
        self._write("root", self.root, [self.signers["root"]])
        self.publish()

    def rotate_root(self) -> None:
        """Sign the next root, with a new timestamp key."""
        old = self.signers["timestamp"]
        self.signers["timestamp"] = CryptoSigner.generate_ed25519()
        self.root.revoke_key(old.public_key.keyid, "timestamp")
        self.root.add_key(self.signers["timestamp"].public_key, "timestamp")
        self.root.version += 1
        self._write("root", self.root, [self.signers["root"]])
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
        self._write("targets", self.targets, [self.signers["targets"]])
        self.snapshot.meta["targets.json"] = MetaFile(self.targets.version)
        if f"{self.snapshot.version}.snapshot.json" in self.files:
            self.snapshot.version += 1
            self.timestamp.version += 1
        self._write("snapshot", self.snapshot, [self.signers["snapshot"]])
        self.timestamp.snapshot_meta = MetaFile(self.snapshot.version)
        self._write("timestamp", self.timestamp, [self.signers["timestamp"]])

    def _write(self, role: str, signed: Any, signers: list[CryptoSigner]) -> None:
        metadata = Metadata(signed)
        for signer in signers:
            metadata.sign(signer, append=True)
        name = "timestamp.json" if role == "timestamp" else f"{signed.version}.{role}.json"
        self.files[name] = self.signed[role, signed.version] = metadata.to_bytes(_COMPACT)

    def newest(self) -> list[tuple[str, int, str]]:
        """Return role, version and name of the newest file of each role, in the order in which a client reads them."""
        signed: list[tuple[str, Any]] = [
            ("root", self.root),
            ("timestamp", self.timestamp),
            ("snapshot", self.snapshot),
            ("targets", self.targets),
            *((role_of_model(model), targets) for model, targets in sorted(self.models.items())),
        ]
        return [
            (role, one.version, "timestamp.json" if role == "timestamp" else f"{one.version}.{role}.json")
            for role, one in signed
        ]
