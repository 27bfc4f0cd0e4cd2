"""Attacks over real HTTP: each is refused by name, shown in status, reported, and the old release keeps serving."""

import copy
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import tiny_onnx
from device_server import Device
from one_device import MODEL, OneDevice, one_device, release_of
from signed_repository import SignedDirector, SignedRepository, in_days
from simulated_release import Release
from tuf.api.metadata import TargetFile

from sprat_client.agent.settings import LinkSettings
from sprat_client.agent.status import read_status
from sprat_client.agent.trust.clock import Clock
from sprat_shared.ids import new_id
from sprat_shared.protocol.poll import Part
from sprat_shared.protocol.report import Outcome
from sprat_shared.trust.assignments import Assigned

NEW = 2


@pytest.fixture
def device(tmp_path: Path) -> Iterator[OneDevice]:
    """A device that serves release 1, and a release 2 that it could take."""
    with one_device(tmp_path) as device:
        add(device)
        yield device


def add(device: OneDevice, base: int = 1) -> Release:
    weights = tiny_onnx.nudged(device.server.models[MODEL][base].weights, base + 1)
    return device.server.add_release(MODEL, weights, base=base)


def known(device: OneDevice) -> Device:
    return next(iter(device.server.devices.values()))


def run(device: OneDevice, serving: int = 1, **changes: Any) -> int:
    """Run the agent until nothing is left to do; the release that serves must be `serving`."""
    with device.agent(**changes) as agent:
        code = agent.run(once=True)
        assert release_of(agent, device.server) == serving
    return code


def assert_refused(device: OneDevice, code: str, serving: int = 1) -> None:
    """Hold that status shows the refusal, that the server was told, and that a restart serves the same release."""
    status = read_status(device.folder)
    assert status["refused"] is not None
    assert status["refused"]["code"] == code
    assert code in [refusal.error_code for refusal in known(device).refusals]
    assert status["reports_waiting"] == 0
    assert device.serves() == serving


def assert_goes_on(device: OneDevice, release: int = NEW) -> None:
    """Hold that the device takes a release once nobody attacks it, and then has nothing to refuse."""
    code, report = device.take(release)
    assert (code, report.outcome) == (0, Outcome.COMMITTED)
    assert read_status(device.folder)["refused"] is None


# metadata ----------------------------------------------------------------------------------------------------------


def test_rollback_to_an_older_state_of_the_image_repository(device: OneDevice) -> None:
    old = copy.deepcopy(device.server.repository)
    device.server.repository.publish()
    run(device)
    good, device.server.repository = device.server.repository, old
    device.server.assign(MODEL, NEW)
    assert run(device) == 76
    assert_refused(device, "trust.rollback")
    device.server.repository = good
    assert_goes_on(device)


def test_a_refusal_is_still_shown_after_a_restart_without_a_link(device: OneDevice) -> None:
    device.server.repository.require_two("timestamp")
    device.server.repository.signers["timestamp"].pop()
    device.server.repository.publish()
    run(device)
    device.server.unavailable = 10**6
    run(device)
    device.server.unavailable = 0
    assert_refused(device, "trust.signature")
    assert [refusal.error_code for refusal in known(device).refusals] == ["trust.signature"], "said once"


def test_freeze_at_metadata_that_expire(device: OneDevice) -> None:
    """Somebody answers every poll with `304`, or serves the last state for ever."""
    device.server.repository.timestamp.expires = in_days(-1)
    device.server.repository.publish()
    device.server.assign(MODEL, NEW)
    assert run(device) == 75
    assert_refused(device, "trust.expired")
    device.server.repository.timestamp.expires = in_days(30)
    device.server.repository.publish()
    assert_goes_on(device)


def test_fast_forward_and_the_recovery_from_it_by_new_keys(device: OneDevice) -> None:
    good = copy.deepcopy(device.server.repository)
    device.server.repository.timestamp.version = device.server.repository.snapshot.version = 100_000
    device.server.repository.publish()
    run(device)
    device.server.repository = good
    good.publish()
    assert run(device) == 76
    assert_refused(device, "trust.rollback")
    good.rotate("timestamp", "snapshot")
    good.publish()
    assert_goes_on(device)


def test_mix_and_match_of_two_states(device: OneDevice) -> None:
    old = device.server.repository.files["2.m.tiny.json"]
    add(device, base=2)

    def mixed(parts: list[Part]) -> list[Part]:
        return [replace(part, data=old) if part.name == "image/3.m.tiny.json" else part for part in parts]

    device.server.tamper = mixed
    device.server.assign(MODEL, NEW)
    assert run(device) == 76
    assert_refused(device, "trust.mixed")
    device.server.tamper = lambda parts: parts
    assert_goes_on(device)


def test_metadata_signed_with_a_wrong_key(device: OneDevice) -> None:
    good, thief = device.server.repository, SignedRepository()
    thief.models, thief.files = good.models, {**good.files, **thief.files}
    for _ in range(9):
        thief.publish()
    device.server.repository = thief
    assert run(device) == 76
    assert_refused(device, "trust.signature")
    device.server.repository = good
    assert_goes_on(device)


def test_metadata_with_fewer_signatures_than_the_threshold(device: OneDevice) -> None:
    repository = device.server.repository
    repository.require_two("timestamp")
    second = repository.signers["timestamp"].pop()
    repository.publish()
    device.server.assign(MODEL, NEW)
    assert run(device) == 76
    assert_refused(device, "trust.signature")
    repository.signers["timestamp"].append(second)
    repository.publish()
    assert_goes_on(device)


@pytest.mark.parametrize("name", ["image", "director"])
def test_files_that_rotted_on_the_disk_are_no_attack_and_are_fetched_again(device: OneDevice, name: str) -> None:
    run(device)
    files = sorted((device.folder / "trust" / name).glob("*.json"))
    kept = [path.read_bytes() for path in files]
    for path, data in zip(files, kept, strict=True):
        path.write_bytes(data.replace(b'"expires":"2', b'"expires":"x', 1))
        assert run(device) == 0
        assert read_status(device.folder)["refused"] is None
    assert [path.read_bytes() for path in files] == kept
    assert known(device).refusals == []


# the link ----------------------------------------------------------------------------------------------------------


def test_endless_data(device: OneDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sprat_client.agent.transfer.MAX_BODY_BYTES", 1 << 20)
    device.server.endless = True
    device.server.assign(MODEL, NEW)
    assert run(device) == 75
    assert_refused(device, "link.too-long")
    device.server.endless = False
    assert_goes_on(device)


def test_a_drip_feed(device: OneDevice) -> None:
    device.server.drip_s = 0.02
    device.server.assign(MODEL, NEW)
    slow = LinkSettings(backoff_s=0.01, backoff_max_s=0.02, least_bytes_per_s=1000.0, rate_window_s=0.2)
    assert run(device, link=slow) == 75
    assert_refused(device, "link.too-slow")
    device.server.drip_s = 0.0
    assert_goes_on(device)


def test_a_swapped_target(device: OneDevice) -> None:
    release = device.server.models[MODEL][NEW]
    assert release.update is not None
    for name, data in list(device.server.blobs.items()):
        if data == release.update:
            device.server.blobs[name] = data[:-1] + bytes([data[-1] ^ 1])
    code, report = device.take(NEW)
    assert (code, report.outcome, report.error_code) == (76, Outcome.REFUSED, "update.digest-mismatch")
    refused = read_status(device.folder)["models"][MODEL]["refused"]
    assert [one["code"] for one in refused] == ["update.digest-mismatch"]
    assert device.serves() == 1


# the clock ---------------------------------------------------------------------------------------------------------


def days_off(days: float) -> Clock:
    return Clock(wall=lambda: datetime.now(UTC) + timedelta(days=days))


def test_somebody_who_answers_that_nothing_changed_for_ever_is_found_out(
    device: OneDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(device)
    monkeypatch.setattr(device.server, "poll", lambda *_: None)
    assert run(device, clock=days_off(31)) == 75
    assert_refused(device, "trust.expired")


@pytest.mark.parametrize("days", [400, -20_000])
def test_a_clock_that_is_wrong_is_suspected_and_the_signed_time_counts(device: OneDevice, days: float) -> None:
    code, _ = device.take(NEW, clock=days_off(days))
    assert code == 0
    status = read_status(device.folder)
    assert status["clock"].startswith("clock suspect: ")
    assert ("ahead of" if days > 0 else "behind") in status["clock"]
    assert (status["refused"], known(device).refusals) == (None, [])
    run(device, serving=NEW)
    assert read_status(device.folder)["clock"] == "good"


def test_a_clock_at_1970_and_lost_metadata_let_nothing_older_in(device: OneDevice) -> None:
    old = copy.deepcopy(device.server.repository)
    device.server.repository.publish()
    run(device)
    shutil.rmtree(device.folder / "trust")
    device.server.repository = old
    assert run(device, clock=days_off(-20_000)) == 76
    assert_refused(device, "trust.rollback")


# the director ------------------------------------------------------------------------------------------------------


def test_the_assignment_of_another_device(device: OneDevice) -> None:
    device.server.says = lambda said: replace(said, device=new_id())
    device.server.assign(MODEL, NEW)
    assert run(device) == 76
    assert_refused(device, "trust.other-device")
    device.server.says = lambda said: said
    assert_goes_on(device)


def test_an_assignment_for_another_profile(device: OneDevice) -> None:
    device.server.says = lambda said: replace(said, profile="camera-s")
    code, report = device.take(NEW)
    assert (code, report.outcome, report.error_code) == (76, Outcome.REFUSED, "trust.other-profile")
    assert_refused(device, "trust.other-profile")
    device.server.says = lambda said: said
    assert_goes_on(device)


def test_an_assignment_for_the_profile_of_the_device_is_taken(tmp_path: Path) -> None:
    with one_device(tmp_path, profile="camera-s") as device:
        add(device)
        assert_goes_on(device)


def test_an_older_assignment_replayed_under_newer_metadata(device: OneDevice) -> None:
    device.take(NEW)
    known(device).wishes[MODEL] = (1, 1)
    assert run(device, serving=NEW) == 76
    assert_refused(device, "trust.replayed", serving=NEW)
    assert device.take(1)[1].outcome is Outcome.RETURNED


def test_a_stale_director(device: OneDevice) -> None:
    """Somebody replays what the director signed before the last assignment."""
    old = copy.deepcopy(device.server.director)
    device.take(NEW)
    good, device.server.director = device.server.director, old
    old.direct = lambda id_, _: old.devices[id_]  # type: ignore[method-assign]
    assert run(device, serving=NEW) == 76
    assert_refused(device, "trust.rollback", serving=NEW)
    device.server.director = good
    assert device.take(1)[1].outcome is Outcome.RETURNED


def test_the_online_keys_of_the_image_repository_alone_assign_nothing(device: OneDevice) -> None:
    """A thief of timestamp and snapshot may hide what is new, until it expires, and nothing else."""
    repository = device.server.repository
    device.server.assign(MODEL, NEW)
    bad = copy.deepcopy(repository)
    bad.models[MODEL].targets[f"{MODEL}/{NEW}/full"].length += 1
    thief = bad.signers["timestamp"]
    bad.model_signer = thief[0]
    bad.publish(MODEL)
    device.server.repository = bad
    assert run(device) == 76
    assert_refused(device, "trust.signature")


def test_the_key_of_a_model_alone_assigns_nothing(device: OneDevice) -> None:
    """A thief of a model's key signs another file for a release: the director does not vouch for it."""
    device.server.assign(MODEL, NEW)
    (said, file), *_ = device.server._assignments(known(device))
    file = copy.deepcopy(file)
    device.server._assignments = lambda _: [(said, file)]  # type: ignore[method-assign]
    swapped = TargetFile.from_data(said.full, b"evil", ["sha256"])
    swapped.unrecognized_fields = device.server.repository.models[MODEL].targets[said.full].unrecognized_fields
    device.server.repository.models[MODEL].targets[said.full] = swapped
    device.server.repository.publish(MODEL)
    assert run(device) == 76
    assert_refused(device, "trust.disagreement")


def test_the_key_of_the_director_alone_signs_no_release(device: OneDevice) -> None:
    """A thief of the director's key may assign what the image repository signed, and nothing that he made."""
    evil = TargetFile.from_data(f"{MODEL}/9/full", b"evil", ["sha256"])

    def assignments(device: Device) -> list[tuple[Assigned, TargetFile]]:
        return [(Assigned(device=device.id, model=MODEL, release=9, assignment=99, path=()), evil)]

    device.server._assignments = assignments  # type: ignore[method-assign]
    assert run(device) == 76
    assert_refused(device, "trust.disagreement")
    assert known(device).reports[-1].error_code == "trust.disagreement"


def test_a_director_with_other_keys(device: OneDevice) -> None:
    good, thief = device.server.director, SignedDirector()
    one: UUID = known(device).id
    thief.direct(one, [])
    for _ in range(9):
        thief.stamp(one)
    device.server.director = thief
    assert run(device) == 76
    assert_refused(device, "trust.signature")
    device.server.director = good
    assert_goes_on(device)
