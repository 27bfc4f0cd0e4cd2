"""Bundles as a server makes them, of what the simulated one signs."""

from datetime import UTC, datetime
from hashlib import sha256
from uuid import UUID

from device_server import Device, DeviceServer
from signed_repository import Directed, SignedDirector, file_name
from tuf.api.metadata import Snapshot, Timestamp

from sprat_shared.protocol.bundle import Head, pack_metadata
from sprat_shared.protocol.poll import Part
from sprat_shared.trust.assignments import Assigned, bound_to
from sprat_shared.trust.signed_time import SignedTime
from sprat_shared.trust.site_targets import SignedPlan
from sprat_shared.trust.targets import role_of_model


def bundle_for(server: DeviceServer, *devices: Device, full: bool = False, bound: bool = True) -> bytes:
    """Return a bundle for devices: their paths, or full updates, and the graphs."""
    payloads: dict[bytes, bytes] = {}
    own: dict[UUID, list[Part]] = {}
    models: set[str] = set()
    with server.lock:
        for device in devices:
            directed = server.director.direct(device.id, server._assignments(device))
            if bound:
                _bind(server.director, directed, device.id)
            own[device.id] = _directors(server.director, directed)
            for assigned, _ in directed.said or []:
                if isinstance(assigned, SignedPlan):
                    data = next(data for signed, data in device.plans if signed == assigned)
                    payloads[sha256(data).digest()] = data
                    continue
                models.add(assigned.model)
                for data in _payloads(server, assigned, full=full):
                    payloads[sha256(data).digest()] = data
        image = server.repository
        roles = ["timestamp", "snapshot", "targets", *map(role_of_model, sorted(models))]
        versions = {role: version for role, version, _ in image.newest()}
        names = [file_name("root", number) for number in range(1, versions["root"] + 1)]
        names += [file_name(role, versions[role]) for role in roles]
        common = [Part(kind="metadata", name=f"image/{name}", data=image.files[name]) for name in names]
    first, sections = pack_metadata(common, own)
    ordered = dict(sorted(payloads.items()))
    lengths = {device: len(section) for device, section in sections.items()}
    head = Head(len(first), lengths, {digest: len(data) for digest, data in ordered.items()})
    return b"".join([head.to_bytes(), first, *sections.values(), *ordered.values()])


def _bind(director: SignedDirector, directed: Directed, device: UUID) -> None:
    snapshot, timestamp = Snapshot(expires=director.expires), Timestamp(expires=director.expires)
    for role, signed in (("snapshot", snapshot), ("timestamp", timestamp)):
        said = SignedTime(at=datetime.now(UTC)).to_fields() if role == "timestamp" else {}
        signed.unrecognized_fields |= bound_to(device, said)
        director._sign(directed, role, signed)


def _directors(director: SignedDirector, directed: Directed) -> list[Part]:
    names = [file_name("root", number) for number in range(1, director.root.version + 1)]
    parts = [Part(kind="metadata", name=f"director/{name}", data=director.files[name]) for name in names]
    for role in ("timestamp", "snapshot", "targets"):
        name = file_name(role, directed.versions[role])
        parts.append(Part(kind="metadata", name=f"director/{name}", data=directed.files[name]))
    return parts


def _payloads(server: DeviceServer, assigned: Assigned, *, full: bool) -> list[bytes]:
    release = server.models[assigned.model][assigned.release]
    paths = [assigned.full] if full or not assigned.path else assigned.path
    return [release.graph, *(server._target(assigned.model, path) for path in paths)]
