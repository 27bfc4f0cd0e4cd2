"""Signed metadata: what the agent accepts, what it refuses, and what it never forgets."""

import copy
import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import tiny_onnx
from crashing_disk import CrashingDisk, RecordingDisk
from device_server import DeviceServer
from one_trust import OneTrust, assigned_trust, tiny_server
from signed_repository import SignedDirector, SignedRepository, in_days
from tuf.ngclient import Updater

from sprat_client.agent.trust.clock import Clock
from sprat_client.agent.trust.repository import check_root
from sprat_client.agent.trust.workflow import Workflow
from sprat_shared.errors import (
    TryLater,
    UntrustedUpdate,
)

MODEL = "tiny"
PATH = "tiny/1/full"


@pytest.fixture
def server() -> DeviceServer:
    return tiny_server()


@pytest.fixture
def trust(server: DeviceServer, tmp_path: Path) -> OneTrust:
    return assigned_trust(tmp_path / "device", server)


# refreshing --------------------------------------------------------------------------------------------------------


def test_what_both_repositories_say_is_what_should_run(trust: OneTrust, server: DeviceServer) -> None:
    agreed = trust.take()
    (wish,) = agreed.desired
    assert (wish.model, wish.release, wish.assignment, wish.path) == (MODEL, 2, 1, ("tiny/2/from-1",))
    assert wish.weights == server.models[MODEL][2].digest
    assert (agreed.refused, agreed.foreign, trust.asked) == ((), (), [])


def test_what_was_taken_once_is_agreed_on_again_offline(trust: OneTrust) -> None:
    assert trust.store.take().desired == ()
    taken = trust.take()
    assert trust.store.take() == taken
    assert list(trust.store.find([PATH, "tiny/9/full"])) == [PATH]


def test_what_a_poll_did_not_bring_is_fetched(trust: OneTrust) -> None:
    store, parts = trust.store, trust.poll()
    del parts["image/2.m.tiny.json"], parts["director/1.targets.json"]
    assert store.take(parts, trust).desired
    assert trust.asked == ["director/1.targets.json", "image/2.m.tiny.json"]


def test_rotated_roots_are_followed_from_a_poll_and_from_the_network(trust: OneTrust, server: DeviceServer) -> None:
    trust.take()
    for repository in (server.repository, server.director):
        repository.rotate("timestamp")
    server.repository.publish()
    server.director.stamp(trust.device.id)
    trust.take()
    assert (trust.versions()["image/root"], trust.versions()["director/root"]) == (2, 2)
    assert trust.asked == ["director/1.snapshot.json"], "void with the old keys, and verified as if it were new"
    server.repository.rotate_root()
    trust.store.find([PATH], trust)
    assert trust.versions()["image/root"] == 3


def test_a_device_lives_through_more_roots_than_one_refresh_takes(trust: OneTrust, server: DeviceServer) -> None:
    trust.take()
    for version in (200, 301):
        for repository in (server.repository, server.director):
            while repository.root.version < version:
                repository.rotate("timestamp")
        server.repository.publish()
        server.director.stamp(trust.device.id)
        trust.take()
        assert (trust.versions()["image/root"], trust.versions()["director/root"]) == (version, version)


def test_a_device_that_missed_more_roots_than_one_refresh_takes_goes_on_at_the_next(
    trust: OneTrust, server: DeviceServer
) -> None:
    trust.take()
    while server.director.root.version < 301:
        server.director.rotate("timestamp")
    server.director.stamp(trust.device.id)
    with pytest.raises(UntrustedUpdate):
        trust.take()
    assert trust.versions()["director/root"] == 257
    trust.take()
    assert trust.versions()["director/root"] == 301


@pytest.mark.parametrize("name", ["image", "director"])
def test_metadata_signed_by_other_keys_are_refused(trust: OneTrust, server: DeviceServer, name: str) -> None:
    trust.take()
    kept = trust.versions()
    if name == "image":
        thief = SignedRepository()
        thief.models, thief.files = server.repository.models, {**server.repository.files, **thief.files}
        for _ in range(5):
            thief.publish()
        server.repository = thief
    else:
        server.director = SignedDirector()
        server.director.devices[trust.device.id] = copy.deepcopy(SignedDirector().direct(trust.device.id, []))
        for _ in range(5):
            server.director.stamp(trust.device.id)
    with pytest.raises(UntrustedUpdate, match=f"{name} repository") as bad:
        trust.take()
    assert bad.value.code == "trust.signature"
    assert trust.versions() == kept


def test_fewer_signatures_than_the_threshold_are_refused(trust: OneTrust, server: DeviceServer) -> None:
    trust.take()
    server.repository.require_two("timestamp")
    del server.repository.signers["timestamp"][1]
    server.repository.publish()
    with pytest.raises(UntrustedUpdate) as bad:
        trust.take()
    assert bad.value.code == "trust.signature"


def test_a_changed_byte_in_any_file_is_refused_and_nothing_of_it_is_kept(trust: OneTrust, tmp_path: Path) -> None:
    parts = trust.poll()
    for number, (name, data) in enumerate(parts.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        store, changed = trust.on(folder), data.replace(b'"expires":"', b'"expires":"1', 1)
        with pytest.raises((UntrustedUpdate, TryLater)):
            store.take({**parts, name: changed}, trust)
        assert changed not in [kept for _, kept in store.held()]
        assert store.take(parts, trust).desired


def test_files_of_two_states_of_a_repository_are_refused(trust: OneTrust, server: DeviceServer) -> None:
    trust.take()
    old = server.repository.files["2.m.tiny.json"]
    server.add_release(MODEL, tiny_onnx.nudged(tiny_onnx.weights(1), 3), base=2)
    parts = trust.poll()
    with pytest.raises(UntrustedUpdate) as bad:
        trust.store.take({**parts, "image/3.m.tiny.json": old}, trust)
    assert bad.value.code == "trust.mixed"


@pytest.mark.parametrize("name", ["image", "director"])
def test_expired_metadata_are_tried_later(trust: OneTrust, server: DeviceServer, name: str) -> None:
    repository = server.repository if name == "image" else server.director
    repository.expires = in_days(-1)
    if isinstance(repository, SignedRepository):
        repository.timestamp.expires = in_days(-1)
        repository.publish()
    with pytest.raises(TryLater, match=f"{name} repository.*clock") as bad:
        trust.take()
    assert bad.value.code == "trust.expired"


def test_what_expires_while_nobody_offers_anything_newer_is_found_out(trust: OneTrust, server: DeviceServer) -> None:
    server.repository.timestamp.expires = in_days(1)
    server.repository.publish()
    trust.take()
    trust.clock = Clock(wall=Wrong(days=2))
    for take in (trust.store.take, lambda: trust.store.take({}, trust)):
        with pytest.raises(TryLater) as bad:
            take()
        assert bad.value.code == "trust.expired"
    assert trust.store.fresh_until() == server.repository.timestamp.expires
    assert trust.asked == []


def test_metadata_that_new_keys_sign_under_an_old_version_are_fetched(trust: OneTrust, server: DeviceServer) -> None:
    trust.take()
    before, repository = trust.versions(), server.repository
    repository.rotate("timestamp", "snapshot")
    repository._write("snapshot", repository.snapshot)
    repository._write("timestamp", repository.timestamp)
    assert trust.take().desired
    assert {**before, "image/root": 2} == trust.versions()
    assert trust.store.take().desired


def test_every_step_that_is_overridden_is_one_of_python_tufs() -> None:
    own = {"_see", "_read_time"}
    overridden = {name for name in vars(Workflow) if name.startswith("_") and not name.startswith("__")} - own
    assert overridden <= set(dir(Updater))
    assert len(overridden) == 8


def test_a_root_that_does_not_sign_itself_is_no_root(server: DeviceServer) -> None:
    changed = json.loads(server.repository.signed["root", 1])
    changed["signed"]["version"] = 2
    with pytest.raises(UntrustedUpdate):
        check_root("image", json.dumps(changed).encode())
    with pytest.raises(UntrustedUpdate):
        check_root("image", server.repository.files["timestamp.json"])


def test_a_role_that_two_others_delegate_to_inherits_trust_from_neither(trust: OneTrust, server: DeviceServer) -> None:
    """Two roles of the top targets both delegate to `shared`, each with its own key; only one of them signed it."""
    from securesystemslib.signer import CryptoSigner  # noqa: PLC0415  # only here
    from tuf.api.metadata import DelegatedRole, Delegations, MetaFile, TargetFile, Targets  # noqa: PLC0415  # likewise

    repository = server.repository
    top = repository.targets.delegations
    assert top is not None
    assert top.roles is not None
    shared = Targets(expires=repository.expires)
    for path in ("a/x", "b/x"):
        shared.targets[path] = TargetFile.from_data(path, b"x", ["sha256"])
    keys = {}
    for name in ("a", "b"):
        keys[name] = CryptoSigner.generate_ed25519()
        top.roles[name] = DelegatedRole(name, [], 1, terminating=False, paths=[f"{name}/*"])
        repository.targets.add_key(keys[name].public_key, name)
        branch = Targets(expires=repository.expires)
        branch.delegations = Delegations(
            {}, {"shared": DelegatedRole("shared", [], 1, terminating=False, paths=[f"{name}/*"])}
        )
        branch.add_key(CryptoSigner.generate_ed25519().public_key if name == "b" else keys["a"].public_key, "shared")
        repository._write(name, branch, [keys[name]])
        repository.snapshot.meta[f"{name}.json"] = MetaFile(1)
    repository._write("shared", shared, [keys["a"]])
    repository.snapshot.meta["shared.json"] = MetaFile(1)
    repository.targets.version += 1
    repository.publish()
    assert list(trust.store.find(["a/x"], trust)) == ["a/x"]
    for paths in (["b/x"], ["a/x", "b/x"]):
        with pytest.raises((UntrustedUpdate, TryLater)):
            trust.store.find(paths, trust)
    assert list(trust.store.find(["a/x"], trust)) == ["a/x"]


# what is never forgotten -------------------------------------------------------------------------------------------


def damage(folder: Path, how: str) -> None:
    """Lose or zero every metadata file of a device."""
    if how == "lost":
        shutil.rmtree(folder / "trust")
        return
    for path in (folder / "trust").rglob("*.json"):
        path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("how", ["lost", "zeroed"])
def test_lost_metadata_are_fetched_again_from_the_root_of_enrolment(
    trust: OneTrust, server: DeviceServer, how: str
) -> None:
    server.repository.rotate_root()
    taken = trust.take()
    kept = trust.versions()
    damage(trust.folder, how)
    assert trust.take() == taken
    assert trust.versions() == kept


def test_good_roots_before_a_bad_one_are_kept_and_marked(trust: OneTrust, server: DeviceServer) -> None:
    trust.take()
    server.repository.rotate("targets")
    server.repository.rotate("targets")
    bad = server.repository.files["3.root.json"].replace(b'"expires":"2', b'"expires":"3', 1)
    with pytest.raises(UntrustedUpdate) as refused:
        trust.store.take({**trust.poll(), "image/3.root.json": bad}, trust)
    assert refused.value.code == "trust.signature"
    assert (trust.versions()["image/root"], trust.keeper.marks("image").versions["root"]) == (2, 2)


@pytest.mark.parametrize("how", ["lost", "zeroed"])
@pytest.mark.parametrize("name", ["image", "director"])
def test_lost_metadata_do_not_let_anything_older_in(trust: OneTrust, server: DeviceServer, how: str, name: str) -> None:
    trust.take()
    image, director = copy.deepcopy(server.repository), copy.deepcopy(server.director)
    server.add_release(MODEL, tiny_onnx.nudged(tiny_onnx.weights(1), 3), base=2)
    server.assign(MODEL, 3, trust.device)
    trust.take()
    damage(trust.folder, how)
    if name == "image":
        server.repository, server.says = image, lambda said: replace(said, release=2, path=())
    else:
        server.director = director
        server.director.direct = lambda device, _: server.director.devices[device]  # type: ignore[method-assign]
    for _ in range(2):
        with pytest.raises(UntrustedUpdate) as bad:
            trust.take()
        assert bad.value.code == "trust.rollback"


def test_an_older_root_is_refused_where_the_newer_ones_were_lost(trust: OneTrust, server: DeviceServer) -> None:
    before = copy.deepcopy(server.repository)
    server.repository.rotate("targets")
    server.repository.publish()
    trust.take()
    damage(trust.folder, "lost")
    server.repository = before
    for _ in range(3):
        server.repository.publish()
    with pytest.raises(UntrustedUpdate, match="root 1 is offered, and 2") as bad:
        trust.take()
    assert bad.value.code == "trust.rollback"


@pytest.mark.parametrize("keys", [("timestamp", "snapshot"), ("snapshot",), ("timestamp",)])
def test_versions_driven_up_by_a_thief_are_recovered_from_by_new_keys(
    trust: OneTrust, server: DeviceServer, keys: tuple[str, ...]
) -> None:
    good, repository = copy.deepcopy(server.repository), server.repository
    repository.timestamp.version = repository.snapshot.version = 10_000
    repository.publish()
    trust.take()
    assert trust.versions()["image/timestamp"] == 10_000
    server.repository = good
    good.publish()
    with pytest.raises(UntrustedUpdate) as bad:
        trust.take()
    assert bad.value.code == "trust.rollback"
    good.rotate(*keys)
    good.publish()
    assert trust.take().desired
    assert trust.versions()["image/timestamp"] == good.timestamp.version < 100


def test_a_key_that_joins_the_others_clears_nothing(trust: OneTrust, server: DeviceServer) -> None:
    from securesystemslib.signer import CryptoSigner  # noqa: PLC0415  # only here

    old = copy.deepcopy(server.repository)
    for _ in range(3):
        server.repository.publish()
    trust.take()
    damage(trust.folder, "lost")
    old.root.add_key(CryptoSigner.generate_ed25519().public_key, "timestamp")
    old.root.version += 1
    old._write("root", old.root)
    server.repository = old
    with pytest.raises(UntrustedUpdate) as bad:
        trust.take()
    assert bad.value.code == "trust.rollback"


def test_no_version_that_was_seen_is_forgotten_by_a_power_cut(server: DeviceServer, tmp_path: Path) -> None:
    """Cut after every call of a refresh that follows new roots and new versions of all roles of both repositories."""
    device = tmp_path / "device"
    device.mkdir()
    recording = RecordingDisk(device)
    trust = OneTrust(device, server, recording)
    server.assign(MODEL, 1, trust.device)
    trust.take()
    before, start = trust.versions(), len(recording.calls)
    server.repository.rotate("targets")
    server.director.rotate("targets")
    server.repository.targets.version += 1
    server.add_release(MODEL, tiny_onnx.nudged(tiny_onnx.weights(1), 3), base=2)
    server.assign(MODEL, 3, trust.device)
    trust.take()
    after = trust.versions()
    assert all(after[role] > before[role] for role in before)
    for cut in range(start, len(recording.calls) + 1):
        for names in ("lost", "kept"):
            disk = CrashingDisk(tmp_path / "disk", names)  # type: ignore[arg-type]
            for call in recording.calls[:cut]:
                disk.replay(call)
            disk.power_cut()
            left = tmp_path / f"left-{cut}-{names}"
            disk.give(left)
            found = trust.versions(left)
            assert all(before[role] <= found[role] <= after[role] for role in before), f"cut before call {cut}"
            store = trust.on(left)
            store.take(trust.poll(store), trust)
            assert trust.versions(left) == after


# the clock ---------------------------------------------------------------------------------------------------------


class Wrong:
    """A device's clock that is wrong by some days."""

    def __init__(self, days: float) -> None:
        self.days = days

    def __call__(self) -> datetime:
        return datetime.now(UTC) + timedelta(days=self.days)


def test_a_clock_at_1970_accepts_nothing_that_expired(trust: OneTrust, server: DeviceServer) -> None:
    trust.take()
    trust.clock = Clock(wall=lambda: datetime(1970, 1, 1, tzinfo=UTC))
    server.proves_time = False
    server.repository.timestamp.expires = in_days(-1)
    server.repository.publish()
    with pytest.raises(TryLater) as bad:
        trust.take()
    assert bad.value.code == "trust.expired"
    assert trust.clock.ahead_s is not None
    assert trust.clock.ahead_s < -365 * 86400


def test_a_clock_days_ahead_is_put_right_by_the_signed_time(trust: OneTrust, server: DeviceServer) -> None:
    trust.take()
    trust.clock = Clock(wall=Wrong(days=400))
    with pytest.raises(TryLater) as bad:
        trust.store.take()
    assert bad.value.code == "trust.expired"
    trust.clock.ask()
    assert trust.take().desired
    assert trust.clock.proven
    assert trust.clock.ahead_s == pytest.approx(400 * 86400, abs=60)
    server.repository.publish()
    assert trust.take().desired, "the proven time carries on"


def test_a_replayed_time_proves_nothing(trust: OneTrust, server: DeviceServer) -> None:
    trust.take()
    trust.clock = Clock(wall=Wrong(days=400))
    trust.clock.ask()
    replayed = trust.poll()
    assert trust.clock.new_nonce() is not None
    with pytest.raises(TryLater):
        trust.store.take(replayed, trust)
    assert not trust.clock.proven
    server.proves_time = False
    with pytest.raises(TryLater):
        trust.take()


def test_a_proven_time_does_not_let_in_what_truly_expired(trust: OneTrust, server: DeviceServer) -> None:
    trust.take()
    trust.clock.ask()
    server.repository.timestamp.expires = in_days(-1)
    server.repository.publish()
    with pytest.raises(TryLater) as bad:
        trust.take()
    assert bad.value.code == "trust.expired"
    assert trust.clock.proven
    assert trust.clock.ahead_s is None


def test_a_time_that_a_thief_signed_is_forgotten_with_his_key(trust: OneTrust, server: DeviceServer) -> None:
    trust.take()
    server.director.stamp(trust.device.id, at=in_days(4000))
    with pytest.raises(TryLater):
        trust.take()
    server.director.rotate("timestamp")
    server.director.stamp(trust.device.id)
    assert trust.take().desired
    assert trust.clock.ahead_s is None
