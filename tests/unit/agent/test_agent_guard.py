"""A release that shares layers, in service: its answers are compared with those of the release it was made from."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_onnx
from one_device import MODEL, OneDevice, in_a_thread
from sharing_device import add_near_copy, drifted, known, sharing_device

from sprat_client.agent import guarded as guarded_module
from sprat_client.agent.commands import main
from sprat_client.agent.durable import PosixDisk
from sprat_client.agent.events import read_events
from sprat_client.agent.guard import Guard
from sprat_client.agent.guarded import GUARD_FILE, Guarded, GuardRecord
from sprat_client.agent.loop import Agent
from sprat_client.agent.releases import Manifest
from sprat_client.agent.room import MemoryShort
from sprat_client.agent.settings import GuardSettings
from sprat_client.runtime.onnxruntime_host import OnnxRuntime
from sprat_client.runtime.ports import Array, InferenceFailed, ModelHost
from sprat_shared.errors import InvalidInput
from sprat_shared.evidence.change import ChangeGame
from sprat_shared.protocol.report import Outcome

AT_ONCE = GuardSettings(every=1, idle_s=0.02, rest_s=0.01, patience_s=None, most_requests=1000)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[OneDevice]:
    """A device that runs a near copy of the release in its other slot."""
    with sharing_device(tmp_path) as device:
        yield device


def running(device: OneDevice, guard: GuardSettings = AT_ONCE, **changes: Any) -> AbstractContextManager[Agent]:
    return in_a_thread(device.agent(guard=guard, **changes))


def wait_until(said: Callable[[], object], timeout_s: float = 20.0) -> None:
    end = time.monotonic() + timeout_s
    while not said():
        assert time.monotonic() < end
        time.sleep(0.005)


def guarded_by(agent: Agent) -> Guarded:
    wait_until(lambda: agent._shop.servings.of(MODEL).guard)
    guarded = agent._shop.servings.of(MODEL).guard
    assert guarded is not None
    return guarded


def record_of(device: OneDevice) -> GuardRecord:
    return GuardRecord.of(json.loads((device.folder / "models" / MODEL / GUARD_FILE).read_bytes()))


def ask(agent: Agent, inputs: Array, batch: int = 4) -> int:
    """Ask the model; return how many requests that were."""
    for start in range(0, len(inputs), batch):
        agent.infer(MODEL, inputs[start : start + batch])
    return -(-len(inputs) // batch)


def compare(agent: Agent, inputs: Array, batch: int = 4) -> None:
    """Ask the model, and wait until all of that was compared and is on the disk."""
    guarded = guarded_by(agent)
    before = guarded.record.requests + guarded.record.skipped
    asked = ask(agent, inputs, batch)
    wait_until(lambda: guarded.record.requests + guarded.record.skipped == before + asked or guarded.verdict)
    wait_until(lambda: guarded_module.read_record(guarded.shelf, PosixDisk()) == guarded.record or guarded.verdict)


def status(device: OneDevice, capsys: pytest.CaptureFixture[str]) -> Any:
    capsys.readouterr()
    assert main(["status", "--dir", str(device.folder), "--json"]) == 0
    return json.loads(capsys.readouterr().out)["models"][MODEL]


def manifest_of(folder: Path, release: int) -> dict[str, Any]:
    found = [json.loads(file.read_bytes()) for file in (folder / "models" / MODEL / "releases").glob("*/manifest.json")]
    (manifest,) = [one for one in found if one["release"] == release]
    return dict(manifest)


def rot(device: OneDevice, release: int) -> None:
    """Damage a release that the device holds."""
    files = (device.folder / "models" / MODEL / "releases").glob("*/manifest.json")
    graph = next(file.parent for file in files if json.loads(file.read_bytes())["release"] == release) / "graph.onnx"
    graph.unlink()
    graph.write_bytes(b"rotten")


def test_what_a_release_shares_is_in_its_folder(device: OneDevice) -> None:
    base, copy = manifest_of(device.folder, 1), manifest_of(device.folder, 2)
    assert Manifest.of(base).shares is None
    assert copy["shares"] == {"base": 1, "weights": base["weights"], "donor": "face", "budget_ppm": 50_000}
    assert Manifest.of(copy).as_json() == copy
    assert Manifest.of({name: copy[name] for name in copy if name != "shares"}).shares is None, "of an older agent"
    with pytest.raises(InvalidInput, match="'shares' cannot be read"):
        Manifest.of({**copy, "shares": {**copy["shares"], "budget_ppm": 0}})


def test_drift_in_the_requests_leads_back_and_no_request_fails(
    device: OneDevice, capsys: pytest.CaptureFixture[str]
) -> None:
    server, inputs, new = device.server, known(200), drifted(device, 200)
    failed: list[Exception] = []
    asked = threading.Event()

    def application() -> None:
        try:
            for at in range(100_000):
                agent.infer(MODEL, new[at % 200][None])
                if asked.wait(0.01 if at % 20 else 0.1):  # idle now and then
                    return
        except Exception as bad:  # noqa: BLE001  # whatever it is, the application saw it
            failed.append(bad)

    with running(device, poll_interval_s=0.05) as agent:
        compare(agent, inputs)
        assert guarded_by(agent).record.disagreed == 0
        assert guarded_by(agent).e_value < 1
        assert agent._shop.servings.of(MODEL).slot.release == 2
        thread = threading.Thread(target=application, daemon=True)
        thread.start()
        wait_until(lambda: agent._shop.servings.of(MODEL).slot.release == 1)
        reports = next(iter(server.devices.values())).reports
        wait_until(lambda: reports[-1].outcome is Outcome.ROLLED_BACK)
        time.sleep(0.3)  # some polls, with the standing assignment
        assert agent.infer(MODEL, new[:1]).release == 1
        asked.set()
        thread.join()
    assert failed == []
    report = reports[-1]
    assert (report.release, report.serving_release, report.error_code) == (2, 1, "sharing.drifted")
    assert report.serving_weights == server.models[MODEL][1].digest
    assert report.error_detail is not None
    assert "answers, in" in report.error_detail
    assert "5.000% may" in report.error_detail
    events = [event for event in read_events(device.folder) if event["event"] == "sharing.drifted"]
    assert [(event["model"], event["release"]) for event in events] == [(MODEL, 2)]
    said = status(device, capsys)
    assert (said["active"]["release"], said["guard"]) == (1, None)
    assert said["refused"][-1]["code"] == "sharing.drifted"
    assert device.serves() == 1


def test_a_release_that_drifted_begins_anew_when_it_is_assigned_again(device: OneDevice) -> None:
    with running(device) as agent:
        ask(agent, drifted(device, 40))
        wait_until(lambda: agent._shop.servings.of(MODEL).slot.release == 1)
    assert device.take(2)[1].outcome is Outcome.COMMITTED
    with running(device) as agent:
        compare(agent, known(40))
        assert guarded_by(agent).record.disagreed == 0
        assert guarded_by(agent).record.requests == 10


def test_as_many_other_answers_as_may_be_are_no_drift(device: OneDevice, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = known(400)
    inputs[::25] = drifted(device, 16)  # 4 % of 5 %
    with running(device) as agent:
        compare(agent, inputs)
        record, metrics = guarded_by(agent).record, agent._applications.metrics()
    assert (record.requests, record.compared, record.disagreed, record.skipped) == (100, 400, 16, 0)
    assert not record.drifted
    e_value = ChangeGame(0.05).e_value(record.standing)
    assert status(device, capsys)["guard"] == {
        "donor": "face",
        "budget": 0.05,
        "requests": 100,
        "compared": 400,
        "disagreed": 16,
        "skipped": 0,
        "e_value": round(e_value, 6),
        "drifted": False,
        "blind": None,
    }
    assert main(["status", "--dir", str(device.folder)]) == 0
    assert "guard shares with face, 16 of 400 answers differ, 5.00% may, e-value" in capsys.readouterr().out
    assert 'sprat_agent_guard{model="tiny",what="disagreed"} 16' in metrics
    assert f'sprat_agent_guard_e_value{{model="tiny"}} {e_value}' in metrics
    assert 'sprat_agent_guard_blind{model="tiny"} 0' in metrics


def test_a_restart_neither_loses_nor_repeats_what_was_shown(device: OneDevice) -> None:
    inputs = known(80)
    inputs[:4] = drifted(device, 4)
    with running(device) as agent:
        compare(agent, inputs)
        before = guarded_by(agent).record
    assert before.disagreed == 4
    assert record_of(device) == before
    with running(device) as agent:
        assert guarded_by(agent).record == before
        compare(agent, known(4))
        after = guarded_by(agent).record
    assert (after.requests, after.disagreed) == (before.requests + 1, 4)
    assert after.standing == ChangeGame(0.05).play(before.standing, 0.0)


def test_a_kill_between_comparing_and_writing_counts_nothing_twice(
    device: OneDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(device) as agent:
        compare(agent, known(40))
        before = record_of(device)
        guarded = guarded_by(agent)
        killed = threading.Event()

        def power_cut(*_: object) -> None:
            killed.set()
            raise OSError("the power is gone")

        with monkeypatch.context() as patched:
            patched.setattr(guarded_module, "write_json", power_cut)
            ask(agent, drifted(device, 4))
            assert killed.wait(20)
            assert guarded.record.requests > before.requests
            assert record_of(device) == before
            agent.stop()
            agent._guard.close()
    with running(device) as agent:
        assert guarded_by(agent).record == before, "as if those requests had never been drawn"


def test_a_kill_between_the_evidence_and_going_back_is_made_up_for(device: OneDevice) -> None:
    with device.agent(guard=AT_ONCE) as agent:  # its thread takes no turn: it never gets to going back
        agent._guard.look()
        ask(agent, drifted(device, 40))
        guarded = guarded_by(agent)
        wait_until((device.folder / "models" / MODEL / GUARD_FILE).exists)
        assert guarded.verdict is not None
        assert agent._shop.servings.of(MODEL).slot.release == 2
        assert agent._meanwhile(), "a download of another model ends for it"
    assert record_of(device).drifted
    with running(device) as agent:
        wait_until(lambda: agent._shop.servings.of(MODEL).slot.release == 1)
    assert not (device.folder / "models" / MODEL / GUARD_FILE).exists()


def test_without_the_release_it_was_made_from_nothing_is_compared_and_that_is_said(
    device: OneDevice, capsys: pytest.CaptureFixture[str]
) -> None:
    base = device.server.models[MODEL][1]
    device.server.add_release(MODEL, tiny_onnx.nudged(base.weights, 3), base=1)
    assert device.take(3)[1].outcome is Outcome.COMMITTED
    add_near_copy(device)  # release 4, of release 1, where release 3 lies in the other slot
    assert device.take(4)[1].outcome is Outcome.COMMITTED
    with running(device) as agent:
        ask(agent, drifted(device, 100))
        time.sleep(0.3)
        serving = agent._shop.servings.of(MODEL)
        assert (serving.slot.release, serving.guard) == (4, None)
        assert 'sprat_agent_guard_blind{model="tiny"} 1' in agent._applications.metrics()
    said = status(device, capsys)
    assert (said["active"]["release"], said["previous"]["release"]) == (4, 3)
    assert said["guard"]["blind"].startswith("release 1, which shares nothing, is not in the other slot")
    assert said["guard"]["requests"] == 0


def test_a_damaged_base_is_not_asked_and_that_is_said(device: OneDevice, capsys: pytest.CaptureFixture[str]) -> None:
    with device.agent(guard=AT_ONCE) as agent:  # it takes no turn, in which it would look at that release itself
        guarded_by(agent)
        rot(device, 1)
        ask(agent, drifted(device, 40))
        wait_until(lambda: guarded_by(agent).record.blind)
        assert agent._shop.servings.of(MODEL).slot.release == 2
    assert "store.corrupted" in status(device, capsys)["guard"]["blind"]
    assert record_of(device).requests == 0


def test_where_there_is_nothing_to_go_back_to_any_more_the_release_serves_on(device: OneDevice) -> None:
    with device.agent(guard=AT_ONCE) as agent:
        ask(agent, drifted(device, 40))
        wait_until(lambda: guarded_by(agent).verdict)
        rot(device, 1)
        assert agent._guard.is_due
        for _ in range(2):
            agent._guard.look()
            assert not agent._guard.is_due
        assert agent.infer(MODEL, known(1)).release == 2
        assert "still serves" in agent._applications.health()[1]["wrong"][0]["detail"]
    assert next(iter(device.server.devices.values())).reports[-1].outcome is Outcome.COMMITTED


def test_where_memory_is_short_nothing_is_loaded_and_it_is_tried_again(
    device: OneDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = threading.Event()

    def too_little(needed: int, doing: str) -> None:
        assert needed > 0
        short.set()
        raise MemoryShort(f"{doing} needs too much")

    with monkeypatch.context() as patched:
        patched.setattr("sprat_client.agent.guard.require_memory", too_little)
        with running(device) as agent:
            ask(agent, known(8))
            assert short.wait(20)
            wait_until(lambda: guarded_by(agent).record.blind)
            assert "memory.short" in (record_of(device).blind or "")
            patched.undo()
            wait_until(lambda: guarded_by(agent).record.requests == 2)
    assert record_of(device).blind is None


class Counted(OnnxRuntime):
    """Loads releases, and knows which of them are still loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.alive = 0

    def load(self, folder: Path) -> Any:
        host, runtime = super().load(folder), self
        self.loaded.append(folder.name)
        self.alive += 1

        class Host:
            inputs, outputs = host.inputs, host.outputs

            def run(self, values: Any) -> list[Array]:
                return host.run(values)

            def __del__(self) -> None:
                runtime.alive -= 1

        return Host()


def test_the_other_release_is_in_memory_only_while_it_is_compared(device: OneDevice) -> None:
    runtime = Counted()
    with device.agent(guard=AT_ONCE, runtime=runtime) as agent:
        agent._guard.look()
        for rounds in (1, 2):
            compare(agent, known(8))
            wait_until(lambda: runtime.alive == 1)
            assert len(runtime.loaded) == 1 + rounds
        assert runtime.loaded[1] == runtime.loaded[2] != runtime.loaded[0]


def test_nothing_is_compared_while_applications_ask_until_patience_ends(device: OneDevice) -> None:
    inputs = known(1)
    runtime = Counted()
    guard = GuardSettings(every=1, idle_s=0.5, rest_s=0.01, patience_s=1.5)
    with device.agent(guard=guard, runtime=runtime) as agent:
        agent._guard.look()
        guarded, begun = guarded_by(agent), time.monotonic()
        while time.monotonic() - begun < 1.0:
            agent.infer(MODEL, inputs)
            time.sleep(0.01)
        assert guarded.record.requests == 0
        assert len(runtime.loaded) == 1
        while not guarded.record.requests:
            agent.infer(MODEL, inputs)
            time.sleep(0.01)
            assert time.monotonic() - begun < 20
        assert time.monotonic() - begun >= 1.5
        assert guarded.samples.dropped > 0


class Failing:
    """A release that answers nothing, or nonsense."""

    def __init__(self, host: ModelHost, answer: Callable[[Array], list[Array]]) -> None:
        self.inputs, self.outputs, self._answer = host.inputs, host.outputs, answer

    def run(self, values: dict[str, Array]) -> list[Array]:
        return self._answer(values["inputs"])


def no_answer(_: Array) -> list[Array]:
    raise InferenceFailed("no such kernel")


@pytest.mark.parametrize(
    "answer",
    [
        no_answer,
        lambda x: [np.full((len(x), 4), np.nan, np.float32)],
        lambda x: [np.zeros((len(x) + 1, 4), np.float32)],
        lambda x: [np.zeros(len(x), np.float32)],
    ],
)
def test_requests_of_which_nothing_can_be_said_are_counted_and_prove_nothing(
    device: OneDevice, monkeypatch: pytest.MonkeyPatch, answer: Callable[[Array], list[Array]]
) -> None:
    load = Guard._load_base
    monkeypatch.setattr(Guard, "_load_base", lambda self, guarded: Failing(load(self, guarded), answer))
    with running(device) as agent:
        compare(agent, drifted(device, 40))
        record = guarded_by(agent).record
    assert (record.requests, record.compared, record.skipped) == (0, 0, 10)
    assert record.standing == ChangeGame(0.05).start()


def test_what_the_guard_is_writing_is_not_tidied_away(device: OneDevice) -> None:
    folder = device.folder / "models" / MODEL
    for name in (f".{GUARD_FILE}.new", ".slots.json.new"):
        (folder / name).write_text("{}")
    with device.agent() as agent:
        agent.run(once=True)
    assert (folder / f".{GUARD_FILE}.new").exists()
    assert not (folder / ".slots.json.new").exists()


def test_a_guard_that_has_a_bug_stops_nothing(device: OneDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object) -> None:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patched:
        patched.setattr("sprat_client.agent.guard._differing", bug)
        with running(device) as agent:
            ask(agent, known(4))
            wait_until(lambda: guarded_by(agent).record.blind)
            patched.undo()
            compare(agent, known(4))
            assert record_of(device).blind is None


def test_one_who_wishes_no_guard_has_none(device: OneDevice) -> None:
    with running(device, guard=GuardSettings(every=0)) as agent:
        ask(agent, drifted(device, 40))
        time.sleep(0.2)
        serving = agent._shop.servings.of(MODEL)
        assert (serving.slot.release, serving.guard) == (2, None)
        assert not any(thread.name == "guard" for thread in threading.enumerate())


def test_a_release_on_trial_is_not_guarded_and_one_that_shares_nothing_never_is(device: OneDevice) -> None:
    assert device.take(1)[1].outcome is Outcome.RETURNED
    add_near_copy(device)
    with running(device, trial_s=600.0, trial_requests=5) as agent:
        assert agent._shop.servings.of(MODEL).guard is None
        device.server.assign(MODEL, 3)
        wait_until(lambda: agent._shop.servings.of(MODEL).slot.release == 3)
        time.sleep(0.1)
        assert agent._shop.servings.of(MODEL).guard is None
        ask(agent, known(5), batch=1)
        wait_until(lambda: agent._shop.servings.of(MODEL).guard)


def test_an_update_under_way_goes_first(device: OneDevice) -> None:
    base = device.server.models[MODEL][1]
    device.server.add_release(MODEL, tiny_onnx.nudged(base.weights, 3), base=1)
    with running(device, trial_s=600.0, trial_requests=5, shadow_s=600.0, shadow_requests=100) as agent:
        guarded = guarded_by(agent)
        assignment = device.server.assign(MODEL, 3)
        machine = agent._machines[MODEL]
        wait_until(lambda: machine.record.state.value == "shadow")
        ask(agent, drifted(device, 40))
        wait_until(lambda: guarded.verdict)
        time.sleep(0.2)
        assert not agent._guard.is_due
        well, said = agent._applications.health()
        assert well
        assert [(one["code"], one["model"]) for one in said["wrong"]] == [("sharing.drifted", MODEL)]
        assert machine.record.state.value == "shadow", "it is not given up for the release that went before it"
        wait_until(lambda: ask(agent, known(40)) and machine.idle)
    assert device.server.wait_for_report(assignment).outcome is Outcome.COMMITTED
    assert device.serves() == 3


def test_a_record_that_cannot_be_read_is_begun_anew(device: OneDevice) -> None:
    path = device.folder / "models" / MODEL / GUARD_FILE
    for content in ("{", "[]", json.dumps({"format": 1, "weights": "sha256:" + "0" * 64})):
        path.write_text(content)
        with running(device) as agent:
            assert guarded_by(agent).record.requests == 0
            compare(agent, known(4))
        assert record_of(device).requests == 1
    path.write_text(json.dumps({**record_of(device).as_json(), "format": 9}))
    before = path.read_bytes()
    with running(device) as agent:
        ask(agent, known(4))
        time.sleep(0.2)
        assert agent._shop.servings.of(MODEL).guard is None
    assert path.read_bytes() == before, "a newer agent's is left as it is"
