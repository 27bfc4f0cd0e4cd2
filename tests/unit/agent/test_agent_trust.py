"""Signed metadata: what the agent accepts, what it refuses, and what it never forgets."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import tiny_onnx
from crashing_disk import CrashingDisk, RecordingDisk
from device_server import DeviceServer
from signed_repository import SignedRepository

from sprat_client.agent.durable import PosixDisk
from sprat_client.agent.trust import TrustStore, VerifiedUpdate
from sprat_shared.errors import (
    BaseMismatch,
    DigestMismatch,
    NotFound,
    TryLater,
    UntrustedUpdate,
    WireVersionUnsupported,
)
from sprat_shared.protocol.poll import Desired
from sprat_shared.trust.targets import UpdateTarget

MODEL = "tiny"
PATH = "tiny/1/full"


class Source:
    """Gives metadata as the network does."""

    def __init__(self, repository: SignedRepository) -> None:
        self.repository = repository
        self.asked: list[str] = []

    def metadata(self, name: str) -> Iterator[bytes]:
        self.asked.append(name)
        if name not in self.repository.files:
            raise NotFound(f"no {name}")
        yield self.repository.files[name]


@pytest.fixture
def server() -> DeviceServer:
    server = DeviceServer()
    server.add_release(MODEL, tiny_onnx.weights(1))
    server.add_release(MODEL, tiny_onnx.nudged(tiny_onnx.weights(1), 2), base=1)
    return server


@pytest.fixture
def repository(server: DeviceServer) -> SignedRepository:
    return server.repository


@pytest.fixture
def trust(repository: SignedRepository, tmp_path: Path) -> TrustStore:
    store = TrustStore(tmp_path / "trust" / "image", PosixDisk())
    store.bootstrap(repository.signed["root", 1])
    return store


def parts_of(repository: SignedRepository) -> dict[str, bytes]:
    return {name: repository.files[name] for _, _, name in repository.newest()[1:]}


def versions(trust: TrustStore) -> dict[str, int]:
    return {name.role: name.version for name, _ in trust.held()}


def test_a_target_is_found_in_what_a_poll_brought_without_the_network(
    trust: TrustStore, repository: SignedRepository
) -> None:
    source = Source(repository)
    found = trust.find([PATH, "tiny/9/full"], parts=parts_of(repository), source=source)
    assert list(found) == [PATH]
    assert source.asked == []


def test_what_was_found_once_is_found_again_offline(trust: TrustStore, repository: SignedRepository) -> None:
    assert trust.find([PATH]) == {}
    trust.find([PATH], source=Source(repository))
    assert list(trust.find([PATH])) == [PATH]


def test_what_a_poll_did_not_bring_is_fetched(trust: TrustStore, repository: SignedRepository) -> None:
    source = Source(repository)
    parts = parts_of(repository)
    del parts["2.m.tiny.json"]
    assert list(trust.find([PATH], parts=parts, source=source)) == [PATH]
    assert source.asked == ["2.m.tiny.json"]


def test_a_rotated_root_is_followed_from_a_poll_and_from_the_network(
    trust: TrustStore, repository: SignedRepository
) -> None:
    trust.find([PATH], source=Source(repository))
    repository.rotate_root()
    parts = {**parts_of(repository), "2.root.json": repository.files["2.root.json"]}
    trust.find([PATH], parts=parts, source=Source(repository))
    assert versions(trust)["root"] == 2
    repository.rotate_root()
    trust.find([PATH], source=Source(repository))
    assert versions(trust)["root"] == 3


def test_metadata_signed_by_another_key_are_refused(trust: TrustStore, repository: SignedRepository) -> None:
    trust.find([PATH], source=Source(repository))
    kept = versions(trust)
    other = SignedRepository()
    for _ in range(5):
        other.publish()
    with pytest.raises(UntrustedUpdate):
        trust.find([PATH], source=Source(other))
    assert versions(trust) == kept


def test_an_older_timestamp_is_refused(trust: TrustStore, repository: SignedRepository) -> None:
    old = parts_of(repository)
    repository.publish()
    trust.find([PATH], source=Source(repository))
    kept = versions(trust)
    with pytest.raises(UntrustedUpdate):
        trust.find([PATH], parts=old, source=Source(repository))
    assert versions(trust) == kept


def test_a_changed_byte_in_any_file_is_refused_and_nothing_of_it_is_kept(
    trust: TrustStore, repository: SignedRepository
) -> None:
    for name, data in parts_of(repository).items():
        changed = data.replace(b'"expires":"', b'"expires":"1', 1)
        with pytest.raises((UntrustedUpdate, TryLater)):
            trust.find([PATH], parts={**parts_of(repository), name: changed}, source=Source(repository))
    trust.find([PATH], parts=parts_of(repository), source=Source(repository))


def test_expired_metadata_are_tried_later(trust: TrustStore, repository: SignedRepository) -> None:
    repository.timestamp.expires = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
    repository.publish()
    with pytest.raises(TryLater, match="clock") as bad:
        trust.find([PATH], source=Source(repository))
    assert bad.value.code == "trust.expired"


def test_a_root_that_does_not_sign_itself_is_no_root(tmp_path: Path, repository: SignedRepository) -> None:
    changed = json.loads(repository.signed["root", 1])
    changed["signed"]["version"] = 2
    with pytest.raises(UntrustedUpdate):
        TrustStore(tmp_path / "image", PosixDisk()).bootstrap(json.dumps(changed).encode())


def test_no_version_that_was_seen_is_forgotten_by_a_power_cut(
    repository: SignedRepository, server: DeviceServer, tmp_path: Path
) -> None:
    device = tmp_path / "device"
    device.mkdir()
    recording = RecordingDisk(device)
    trust = TrustStore(device / "trust" / "image", recording)
    trust.bootstrap(repository.signed["root", 1])
    trust.find([PATH], source=Source(repository))
    before, start = versions(trust), len(recording.calls)
    server.add_release(MODEL, tiny_onnx.nudged(tiny_onnx.weights(1), 3), base=2)
    trust.find([PATH], source=Source(repository))
    after = versions(trust)
    assert after["timestamp"] > before["timestamp"]
    for cut in range(start, len(recording.calls) + 1):
        disk = CrashingDisk(tmp_path / "disk")
        for call in recording.calls[:cut]:
            disk.replay(call)
        disk.power_cut()
        left = tmp_path / f"left-{cut}"
        disk.give(left)
        survivor = TrustStore(left / "trust" / "image", PosixDisk())
        found = versions(survivor)
        assert all(before[role] <= found[role] <= after[role] for role in before)
        survivor.find([PATH], source=Source(repository))
        assert versions(survivor) == after


# verify ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def payloads(server: DeviceServer, tmp_path: Path) -> Path:
    folder = tmp_path / "downloads"
    folder.mkdir()
    for name, data in server.blobs.items():
        (folder / name).write_bytes(data)
    return folder


def wish_for(server: DeviceServer, number: int, **changes: object) -> Desired:
    release = server.models[MODEL][number]
    graph = next(path for path in server.repository.models[MODEL].targets if "/graph/" in path)
    said = {
        "model": MODEL,
        "release": number,
        "weights": release.digest,
        "assignment": 1,
        "graph": graph,
        "path": (f"tiny/{number}/from-{number - 1}",),
        "full": f"tiny/{number}/full",
    }
    return Desired(**{**said, **changes})  # type: ignore[arg-type]


def test_only_verification_makes_what_the_rebuild_takes(
    trust: TrustStore, server: DeviceServer, payloads: Path
) -> None:
    trust.find([PATH], source=Source(server.repository))
    wish = wish_for(server, 2)
    (update,) = trust.verify(wish, wish.path, server.models[MODEL][1].digest, payloads)
    assert update.target.weights == server.models[MODEL][2].digest
    assert update.payload.read_bytes() == server.models[MODEL][2].update
    with pytest.raises(TypeError, match="only TrustStore"):
        VerifiedUpdate(update.target, update.payload, seal=object())


def test_an_update_for_other_weights_is_refused(trust: TrustStore, server: DeviceServer, payloads: Path) -> None:
    trust.find([PATH], source=Source(server.repository))
    wish = wish_for(server, 2)
    with pytest.raises(BaseMismatch):
        trust.verify(wish, wish.path, server.models[MODEL][2].digest, payloads)


@pytest.mark.parametrize("lie", [{"release": 7}, {"weights": f"sha256:{'00' * 32}"}])
def test_an_assignment_that_the_metadata_contradict_is_refused(
    trust: TrustStore, server: DeviceServer, payloads: Path, lie: dict[str, object]
) -> None:
    trust.find([PATH], source=Source(server.repository))
    wish = wish_for(server, 2, **lie)
    with pytest.raises(UntrustedUpdate, match="the signed target says"):
        trust.verify(wish, ["tiny/2/from-1"], server.models[MODEL][1].digest, payloads)


def test_a_target_that_nobody_signed_is_refused(trust: TrustStore, server: DeviceServer, payloads: Path) -> None:
    trust.find([PATH], source=Source(server.repository))
    with pytest.raises(UntrustedUpdate, match="not signed"):
        trust.verify(wish_for(server, 2), ["tiny/2/from-9"], server.models[MODEL][1].digest, payloads)


def test_a_payload_with_other_bytes_is_refused(trust: TrustStore, server: DeviceServer, payloads: Path) -> None:
    trust.find([PATH], source=Source(server.repository))
    for file in payloads.iterdir():
        file.write_bytes(file.read_bytes() + b"!")
    wish = wish_for(server, 2)
    with pytest.raises(DigestMismatch):
        trust.verify(wish, wish.path, server.models[MODEL][1].digest, payloads)


@pytest.mark.parametrize("needs", [{"wire": 2}, {"min_agent": "99.0.0"}])
def test_an_update_for_a_newer_agent_is_refused_by_name(
    trust: TrustStore, server: DeviceServer, payloads: Path, needs: dict[str, object]
) -> None:
    signed = server.repository.models[MODEL].targets["tiny/2/from-1"].unrecognized_fields
    target = UpdateTarget.from_custom("tiny/2/from-1", signed["custom"])
    fields = {name: getattr(target, name) for name in UpdateTarget.__dataclass_fields__}
    signed["custom"] = UpdateTarget(**{**fields, **needs}).to_custom()
    server.repository.publish(MODEL)
    trust.find([PATH], source=Source(server.repository))
    wish = wish_for(server, 2)
    with pytest.raises(WireVersionUnsupported, match="update the agent"):
        trust.verify(wish, wish.path, server.models[MODEL][1].digest, payloads)
