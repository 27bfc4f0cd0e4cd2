"""Updates that succeed, and updates that must not: the old release serves on, and the server is told why."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny_onnx
from one_device import INPUTS, MODEL, OneDevice, one_device, release_of
from simulated_release import Release

from sprat_client.agent import room, store
from sprat_client.agent.loop import Agent
from sprat_client.agent.rebuilder import RebuildFailed, SubprocessRebuilder
from sprat_client.agent.settings import AgentSettings
from sprat_client.agent.status import read_status
from sprat_client.runtime.onnxruntime_host import OnnxRuntime
from sprat_client.runtime.onnxruntime_model import OnnxModel
from sprat_client.runtime.ports import InferenceFailed
from sprat_shared.errors import Conflict, UpdateRejected
from sprat_shared.protocol.report import Outcome


@pytest.fixture
def device(tmp_path: Path) -> Iterator[OneDevice]:
    with one_device(tmp_path) as device:
        yield device


def add(device: OneDevice, *, seed: int = 2, base: int | None = 1, **how: object) -> Release:
    weights = tiny_onnx.nudged(device.server.models[MODEL][1].weights, seed)
    return device.server.add_release(MODEL, weights, base=base, **how)  # type: ignore[arg-type]


def bad_weights() -> dict[str, tuple[str, np.ndarray]]:
    return {**tiny_onnx.weights(99), "steps": tiny_onnx.weights(1)["steps"]}


def test_a_good_update_is_committed_and_reported_with_its_evidence(device: OneDevice) -> None:
    release = add(device)
    code, report = device.take(2)
    assert (code, report.outcome, report.serving_release) == (0, Outcome.COMMITTED, 2)
    assert report.serving_weights == release.digest
    assert report.evidence is not None
    assert (report.evidence.samples, report.evidence.only_old) == (64, 0)
    assert release.update is not None
    assert report.received_bytes == len(release.update)
    assert device.serves() == 2


def test_an_update_is_rebuilt_in_a_process_of_its_own(device: OneDevice) -> None:
    add(device)
    device.server.assign(MODEL, 2)
    settings = AgentSettings(folder=device.folder, port=None, poll_interval_s=0.01, trial_s=0.001)
    with Agent(settings) as agent:
        assert agent.run(once=True) == 0
        assert release_of(agent, device.server) == 2


def test_updates_chain(device: OneDevice) -> None:
    for number in range(2, 6):
        add(device, seed=number, base=number - 1)
        assert device.take(number)[0] == 0
    assert device.serves() == 5


def test_what_the_old_release_takes_is_measured_once(device: OneDevice) -> None:
    for number in range(2, 5):
        add(device, seed=number, base=number - 1)
    loaded = []

    class Counted(OnnxRuntime):
        def load(self, folder: Path) -> OnnxModel:
            loaded.append(json.loads((folder / "manifest.json").read_bytes())["release"])
            return super().load(folder)

    with device.agent(runtime=Counted()) as agent:
        for number in range(2, 5):
            assignment = device.server.assign(MODEL, number)
            assert agent.run(once=True) == 0
            report = device.server.wait_for_report(assignment, timeout_s=5.0)
            assert report.evidence is not None
            assert None not in {report.evidence.old_memory_bytes, report.evidence.new_memory_bytes}
    assert loaded == [1, 1, 2, 3, 4]  # to serve, to be measured; then each once


def test_several_releases_are_skipped_over_a_chain_of_updates(device: OneDevice) -> None:
    files = [add(device, seed=number, base=number - 1).update or b"" for number in range(2, 5)]
    device.server.offered[4] = ("tiny/2/from-1", "tiny/3/from-2", "tiny/4/from-3")
    code, report = device.take(4)
    assert (code, report.received_bytes) == (0, sum(map(len, files)))
    assert device.serves() == 4


def test_an_update_may_start_from_the_release_that_the_device_could_go_back_to(device: OneDevice) -> None:
    add(device)
    device.take(2)
    release = add(device, seed=3, base=1)
    device.server.offered[3] = ("tiny/3/from-1",)
    code, report = device.take(3)
    assert release.update is not None
    assert (code, report.received_bytes) == (0, len(release.update))
    assert device.serves() == 3


def test_a_path_from_a_release_that_no_slot_holds_any_more_is_not_gone(device: OneDevice) -> None:
    for number in (2, 3):
        add(device, seed=number, base=number - 1)
        device.take(number)
    release = add(device, seed=4, base=1)
    device.server.offered[4] = ("tiny/4/from-1",)
    code, report = device.take(4)
    assert (code, report.received_bytes) == (0, len(release.full))


def test_where_the_release_to_start_from_is_damaged_the_full_update_is_taken(device: OneDevice) -> None:
    add(device)
    device.take(2)
    release = add(device, seed=3, base=1)
    device.server.offered[3] = ("tiny/3/from-1",)
    with device.agent() as agent:
        shelf = agent._machines[MODEL].shelf
        slot = shelf.slots().previous
        assert slot is not None
        path = shelf.folder_of(slot.release_id) / "t" / "1"
    path.chmod(0o600)
    path.write_bytes(bytes(path.stat().st_size))
    code, report = device.take(3)
    assert (code, report.received_bytes) == (0, len(release.full))


def test_a_head_with_more_classes_brings_its_graph_and_the_way_back_takes_no_byte(
    device: OneDevice, tmp_path: Path
) -> None:
    more = tiny_onnx.grown(device.server.models[MODEL][1].weights, 9)
    inputs, labels = tiny_onnx.samples(more, 80)
    np.savez(tmp_path / "six.npz", inputs=inputs, labels=labels)
    holdouts = {MODEL: tmp_path / "six.npz"}
    graph = tiny_onnx.graph(classes=tiny_onnx.CLASSES + 2)
    release = device.server.add_release(MODEL, more, base=1, graph=graph, lossless=True)
    code, report = device.take(2, holdouts=holdouts)
    assert (code, report.outcome, report.serving_weights) == (0, Outcome.COMMITTED, release.digest)
    assert report.evidence is not None
    assert report.evidence.only_new >= int((labels >= tiny_onnx.CLASSES).sum()) > 10
    assert release.update is not None
    assert report.received_bytes == len(release.update) + len(graph)
    assert device.serves() == 2
    code, report = device.take(1, holdouts=holdouts)
    assert (code, report.outcome, report.received_bytes) == (0, Outcome.RETURNED, 0)
    assert device.serves() == 1


def test_a_payload_that_does_not_fit_the_poll_is_fetched_apart(device: OneDevice) -> None:
    device.server.inline = False
    device.server.cut_after = [20, 50]
    release = add(device)
    code, report = device.take(2)
    assert release.update is not None
    assert (code, report.received_bytes) == (0, len(release.update))


def test_a_device_finds_the_chain_from_what_it_holds_though_the_server_does_not_know_that(device: OneDevice) -> None:
    chain = [add(device), add(device, base=2)]
    next(iter(device.server.devices.values())).reports.clear()
    code, report = device.take(3)
    assert (code, report.received_bytes) == (0, sum(len(release.update or b"") for release in chain))


def test_a_bad_model_is_refused_by_the_holdout_and_never_tried_again(device: OneDevice) -> None:
    device.server.add_release(MODEL, bad_weights(), base=1)
    code, report = device.take(2)
    assert (code, report.outcome, report.error_code) == (76, Outcome.REFUSED, "validation.worse")
    assert (report.serving_release, report.evidence is not None) == (1, True)
    asked = len(device.server.requests)
    with device.agent() as agent:
        assert agent.run(once=True) == 0
        assert release_of(agent, device.server) == 1
    assert not any("/blobs/" in path for _, path, _ in device.server.requests[asked:])
    assert read_status(device.folder)["models"][MODEL]["refused"] == [
        {"release": 2, "assignment": 2, "code": "validation.worse"}
    ]


def test_a_newer_assignment_may_ask_for_a_refused_release_again(device: OneDevice) -> None:
    device.server.add_release(MODEL, bad_weights(), base=1)
    assert device.take(2)[0] == 76
    assert device.take(2, holdouts={})[1].outcome is Outcome.COMMITTED  # without samples nothing speaks against it


def test_weights_that_are_not_the_signed_ones_are_refused(device: OneDevice) -> None:
    add(device, corrupt=True)
    code, report = device.take(2)
    assert (code, report.outcome, report.error_code) == (76, Outcome.REFUSED, "update.digest-mismatch")
    assert device.serves() == 1


def test_a_payload_that_was_changed_on_the_way_is_refused(device: OneDevice) -> None:
    release = add(device)
    assert release.update is not None
    name = store.hashlib.sha256(release.update).hexdigest()
    device.server.blobs[name] = release.update[:-1] + bytes([release.update[-1] ^ 1])
    code, report = device.take(2)
    assert (code, report.error_code) == (76, "update.digest-mismatch")
    assert device.serves() == 1


def test_a_graph_that_does_not_load_is_refused(device: OneDevice) -> None:
    add(device, graph=b"not ONNX")
    code, report = device.take(2)
    assert (code, report.outcome, report.error_code) == (76, Outcome.REFUSED, "runtime.not-loadable")
    assert device.serves() == 1


def test_a_release_with_another_graph_is_taken(device: OneDevice) -> None:
    add(device, graph=tiny_onnx.graph(doubled=True))
    assert device.take(2)[1].outcome is Outcome.COMMITTED
    with device.agent() as agent:
        doubled = agent.infer(MODEL, INPUTS).outputs["logits"]
    single = tiny_onnx.logits(device.server.models[MODEL][2].weights, INPUTS)
    np.testing.assert_allclose(doubled, 2 * single, rtol=1e-4)


def test_weights_that_give_nan_are_refused_even_without_samples(device: OneDevice) -> None:
    weights = dict(tiny_onnx.weights(1))
    weights["first.bias"] = ("F32", np.full(tiny_onnx.HIDDEN, 3e38, np.float32))
    weights["second.weight"] = ("F32", np.full((tiny_onnx.HIDDEN, tiny_onnx.CLASSES), 3e38, np.float32))
    device.server.add_release(MODEL, weights, base=1, lossless=True)
    code, report = device.take(2, holdouts={})
    assert (code, report.error_code) == (76, "validation.not-finite")


def test_samples_that_cannot_be_used_fail_the_update_by_name(device: OneDevice) -> None:
    add(device)
    np.savez(device.holdout, inputs=INPUTS)
    code, report = device.take(2)
    assert (code, report.outcome, report.error_code) == (1, Outcome.FAILED, "holdout.invalid")
    assert device.serves() == 1


def test_too_little_room_is_found_before_the_first_byte(device: OneDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    device.server.inline = False
    add(device)
    monkeypatch.setattr(room.require_space, "__kwdefaults__", {"free": lambda _: 10})
    code, report = device.take(2)
    assert (code, report.outcome, report.error_code) == (1, Outcome.FAILED, "disk.no-space")
    assert report.received_bytes == 0
    assert device.serves() == 1


def test_a_rebuild_that_dies_fails_the_update(device: OneDevice) -> None:
    add(device)
    device.server.assign(MODEL, 2)
    with device.agent() as agent:

        def dies(*_: object) -> None:
            raise RebuildFailed("the rebuild's process ended with status -9")

        agent._shop.rebuilder = dies  # type: ignore[assignment]
        assert agent.run(once=True) == 1
        assert release_of(agent, device.server) == 1
    assert device.server.wait_for_report(2).error_code == "rebuild.failed"


def test_the_rebuild_process_says_by_name_why_it_refuses(device: OneDevice, tmp_path: Path) -> None:
    from sprat_client.agent.rebuilder import RebuildStep  # noqa: PLC0415  # only here

    (tmp_path / "junk").write_bytes(b"junk" * 10)
    (tmp_path / "store").mkdir()
    rebuilder = SubprocessRebuilder(60.0)
    step = RebuildStep(payload=tmp_path / "junk", weights=device.server.models[MODEL][1].digest)
    with pytest.raises(UpdateRejected) as refused:
        rebuilder(tmp_path / "store", None, [step])
    assert refused.value.code == "update.malformed"


def test_errors_in_the_trial_send_the_release_back_and_no_request_is_dropped(device: OneDevice) -> None:
    add(device)
    device.server.assign(MODEL, 2)
    with device.agent(trial_s=60.0) as agent:
        while (serving := agent._shop.servings.of(MODEL)).slot.release == 1:
            agent.turn()

        class Fails:
            inputs, outputs = serving.host.inputs, serving.host.outputs

            def run(self, _: object) -> list[np.ndarray]:
                raise InferenceFailed("illegal instruction")

        serving.host = Fails()  # type: ignore[assignment]
        assert agent.infer(MODEL, INPUTS).release == 1  # the old release answers in its place
        assert agent.run(once=True) == 76
        assert release_of(agent, device.server) == 1
    report = device.server.wait_for_report(2)
    assert (report.outcome, report.error_code) == (Outcome.ROLLED_BACK, "trial.errors")
    assert "illegal instruction" in (report.error_detail or "")


def test_a_trial_ends_well_after_enough_requests(device: OneDevice) -> None:
    add(device)
    device.server.assign(MODEL, 2)
    with device.agent(trial_s=60.0, trial_requests=3) as agent:
        while agent._shop.servings.of(MODEL).slot.release == 1:
            agent.turn()
        for _ in range(3):
            agent.infer(MODEL, INPUTS)
        assert agent.run(once=True) == 0
    assert device.server.wait_for_report(2).outcome is Outcome.COMMITTED


def test_an_assigned_return_takes_no_bytes(device: OneDevice) -> None:
    add(device)
    device.take(2)
    asked = len(device.server.requests)
    code, report = device.take(1)
    assert (code, report.outcome, report.serving_release) == (0, Outcome.RETURNED, 1)
    assert report.received_bytes == 0
    assert not any("/blobs/" in path for _, path, _ in device.server.requests[asked:])
    assert device.serves() == 1


def test_an_assignment_of_what_serves_already_is_answered_at_once(device: OneDevice) -> None:
    code, report = device.take(1)
    assert (code, report.outcome, report.assignment) == (0, Outcome.COMMITTED, 2)


def test_a_newer_assignment_ends_a_trial(device: OneDevice) -> None:
    add(device)
    add(device, seed=3, base=1)
    device.server.assign(MODEL, 2)
    with device.agent(trial_s=60.0) as agent:
        while agent._shop.servings.of(MODEL).slot.release == 1:
            agent.turn()
        newest = device.server.assign(MODEL, 1)
        assert agent.run(once=True) == 0
        assert release_of(agent, device.server) == 1
    assert device.server.wait_for_report(newest).outcome is Outcome.COMMITTED
    assert [report.assignment for report in next(iter(device.server.devices.values())).reports] == [1, 3]


def test_a_damaged_release_is_repaired_by_the_full_update(device: OneDevice) -> None:
    add(device)
    device.take(2)
    for path in (device.folder / "models" / MODEL / "releases").rglob("t/1"):
        path.chmod(0o600)
        data = bytearray(path.read_bytes())
        data[17] ^= 4
        path.write_bytes(data)
    with device.agent() as agent:
        assert release_of(agent, device.server) is None  # nothing damaged is served
        agent.run(once=True)
        assert release_of(agent, device.server) == 2


def test_nothing_is_left_of_what_no_slot_needs(device: OneDevice) -> None:
    for number in range(2, 5):
        add(device, seed=number, base=number - 1)
        device.take(number)
    folders = sorted((device.folder / "models" / MODEL / "releases").iterdir())
    assert len(folders) == 2
    needed = {path.stat().st_ino for folder in folders for path in folder.rglob("*") if path.name != "manifest.json"}
    assert {path.stat().st_ino for path in (device.folder / "store" / "sha256").rglob("*") if path.is_file()} <= needed
    assert list((device.folder / "downloads").iterdir()) == []


def test_two_agents_on_one_folder_are_refused(device: OneDevice) -> None:
    with device.agent(), pytest.raises(Conflict, match="another sprat-agent runs") as bad:
        device.agent()
    assert bad.value.exit_code == 73


def test_a_server_that_is_away_does_not_stop_serving_and_once_gives_up(device: OneDevice) -> None:
    device.server.unavailable = 10**6
    with device.agent() as agent:
        assert agent.run(once=True) == 75
        assert release_of(agent, device.server) == 1


def test_a_report_waits_in_the_outbox_until_the_server_takes_it(device: OneDevice) -> None:
    add(device)
    device.server.assign(MODEL, 2)
    with device.agent() as agent:
        while agent._shop.servings.of(MODEL).slot.release == 1:
            agent.turn()
        device.server.unavailable = 3
        assert agent.run(once=True) == 0
    assert device.server.wait_for_report(2).outcome is Outcome.COMMITTED
    assert read_status(device.folder)["reports_waiting"] == 0


def test_bfloat16_weights_serve_as_float32_and_keep_their_digest(tmp_path: Path) -> None:
    from device_server import DeviceServer  # noqa: PLC0415  # this one has a model of its own

    server = DeviceServer()
    halves = {
        name: ("BF16", (array.view(np.uint32) >> 16).astype(np.uint16)) if code == "F32" else (code, array)
        for name, (code, array) in tiny_onnx.weights(1).items()
    }
    release = server.add_release(MODEL, halves)
    with server.running() as url:
        device = OneDevice(tmp_path, server, url)
        with device.agent() as agent:
            answer = agent.infer(MODEL, INPUTS)
            assert agent._shop.servings.of(MODEL).digest() == release.digest
        widened = {
            name: ("F32", (array.astype(np.uint32) << 16).view(np.float32)) if code == "BF16" else (code, array)
            for name, (code, array) in halves.items()
        }
        np.testing.assert_allclose(answer.outputs["logits"], tiny_onnx.logits(widened, INPUTS), rtol=1e-4)


def test_two_models_are_kept_apart_and_share_the_store(device: OneDevice) -> None:
    device.server.add_release("other", tiny_onnx.weights(1), graph=tiny_onnx.graph(doubled=True))
    device.server.assign("other", 1)
    add(device)
    device.take(2)
    with device.agent() as agent:
        assert agent.infer("other", INPUTS).release == 1
        assert agent.infer(MODEL, INPUTS).release == 2
    other = next((device.folder / "models" / "other" / "releases").iterdir())
    twins = [path.stat().st_ino for path in (device.folder / "models" / MODEL / "releases").rglob("t/1")]
    assert (other / "t" / "1").stat().st_ino in twins


def test_a_stop_in_the_middle_of_a_download_leaves_it_for_the_next_start(device: OneDevice) -> None:
    device.server.inline = False
    release = add(device)
    device.server.assign(MODEL, 2)
    with device.agent() as agent:
        agent._poll()
        agent.stop()
        agent._machines[MODEL].advance()
        assert agent._machines[MODEL].record.state == "fetching"
    with device.agent() as agent:
        assert agent.run(once=True) == 0
        assert release_of(agent, device.server) == 2
    assert release.update is not None
    assert device.server.wait_for_report(2).received_bytes == len(release.update)


def test_a_trial_whose_old_release_is_destroyed_ends_with_nothing_damaged_served(device: OneDevice) -> None:
    add(device)
    device.server.assign(MODEL, 2)
    with device.agent(trial_s=60.0) as agent:
        while agent._shop.servings.of(MODEL).slot.release == 1:
            agent.turn()
    for path in (device.folder / "models" / MODEL / "releases").rglob("t/1"):
        path.chmod(0o600)
        path.write_bytes(bytes(path.stat().st_size))
    with device.agent(trial_s=60.0) as agent:
        assert agent.run(once=True) == 76
        assert release_of(agent, device.server) is None
    report = device.server.wait_for_report(2)
    assert (report.outcome, report.error_code, report.serving_release) == (
        Outcome.ROLLED_BACK,
        "store.corrupted",
        None,
    )
    device.take(1)
    assert device.serves() == 1


@pytest.mark.parametrize("garble", [lambda data: data[1:] + data[:1], lambda data: data[7:]])
def test_a_server_that_was_restored_and_holds_other_metadata_is_asked_in_plain(
    device: OneDevice, caplog: pytest.LogCaptureFixture, garble: Callable[[bytes], bytes]
) -> None:
    add(device)
    signed = device.server.repository.signed
    for role in ("timestamp", "snapshot", "targets"):
        newest = max(version for name, version in signed if name == role)
        for version in range(1, newest + 1):
            signed[role, version] = garble(signed[role, version])  # what a device's dictionary is not
    assert device.take(2)[1].outcome is Outcome.COMMITTED
    assert "poll failed" in caplog.text
