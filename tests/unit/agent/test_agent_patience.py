"""Deadlines, restarts and the loop breaker: nothing lasts for ever, nothing is tried for ever, and each end is said."""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_onnx
from one_device import MODEL, OneDevice, one_device, release_of

from sprat_client.agent.commands import main
from sprat_client.agent.durable import PosixDisk
from sprat_client.agent.journal import REFUSALS_KEPT, Journal, ModelRecord, Work
from sprat_client.agent.loop import Agent
from sprat_client.agent.progress import Progress
from sprat_client.agent.rebuilder import RebuildFailed
from sprat_client.agent.retry import retry
from sprat_client.agent.states import RULES, State
from sprat_client.agent.status import read_status
from sprat_shared.errors import NotFound
from sprat_shared.protocol.report import Outcome, Report
from sprat_shared.trust.policy import DevicePolicy


@pytest.fixture
def device(tmp_path: Path) -> Iterator[OneDevice]:
    with one_device(tmp_path) as device:
        add(device, 2)
        yield device


def add(device: OneDevice, seed: int) -> None:
    base = device.server.models[MODEL][1].weights
    device.server.add_release(MODEL, tiny_onnx.nudged(base, seed), base=1)


def reports(device: OneDevice) -> list[Report]:
    return next(iter(device.server.devices.values())).reports


def dies(*_: object) -> None:
    raise RebuildFailed("the rebuild's process ended with status -9")


def fail(device: OneDevice) -> tuple[int, Report]:
    """Assign release 2, and let its rebuild die."""
    assignment = device.server.assign(MODEL, 2)
    with device.agent() as agent:
        agent._shop.rebuilder = dies  # type: ignore[assignment]
        code = agent.run(once=True)
        assert release_of(agent, device.server) == 1
    return code, device.server.wait_for_report(assignment)


def late(agent: Agent, state: State) -> None:
    """Let the present state have lasted longer than it may."""
    progress = agent._machines[MODEL].progress
    deadline_s = RULES[state].deadline_s
    assert deadline_s is not None
    before = progress._now
    progress._now = lambda: before() + deadline_s + 1


def test_fetching_that_takes_too_long_is_given_up_and_the_next_assignment_is_taken(device: OneDevice) -> None:
    device.server.inline = False
    assignment = device.server.assign(MODEL, 2)
    with device.agent() as agent:
        agent._poll()
        device.server.unavailable = 10**6
        agent._machines[MODEL].advance()
        assert agent._machines[MODEL].record.state is State.FETCHING
        late(agent, State.FETCHING)
        agent._machines[MODEL].look_again()
        agent._machines[MODEL].advance()
        assert agent._machines[MODEL].idle
        device.server.unavailable = 0
        agent.run(once=True)
        report = device.server.wait_for_report(assignment)
        assert (report.outcome, report.error_code) == (Outcome.FAILED, "agent.deadline")
        assert agent._machines[MODEL].record.failures == {}, "the link says nothing against the release"
    assert device.take(2)[1].outcome is Outcome.COMMITTED


def test_waiting_for_leave_to_fetch_is_no_time_and_waiting_for_leave_to_serve_is() -> None:
    clock = 0.0
    journal = type("Kept", (), {"record": lambda _, __: record})()
    progress = Progress(MODEL, type("Shop", (), {"journal": journal})(), lambda: clock)
    work = Work(wish=None, started_at=0.0, spent_s=5.0, waiting="the link is metered")  # type: ignore[arg-type]
    spent = {}
    for state in (State.FETCHING, State.READY):
        record = ModelRecord(state=state, work=work)
        clock = 100.0
        spent[state] = progress.spent_s
    assert spent == {State.FETCHING: 5.0, State.READY: 105.0}


@pytest.mark.parametrize("jump_s", [-2e9, 2e9])
def test_a_clock_that_jumps_makes_no_deadline_fire_and_stops_none(
    device: OneDevice, monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    device.server.inline, real = False, time.time
    device.server.assign(MODEL, 2)
    with device.agent() as agent:
        agent._poll()
        device.server.unavailable = 10**6
        agent._machines[MODEL].advance()
        assert agent._machines[MODEL].record.state is State.FETCHING
        monkeypatch.setattr(time, "time", lambda: max(1.0, real() + jump_s))
        assert 0 <= agent._machines[MODEL].progress.spent_s < 60
        agent._machines[MODEL].look_again()
        agent._machines[MODEL].advance()
        assert agent._machines[MODEL].record.state is State.FETCHING
        late(agent, State.FETCHING)
        agent._machines[MODEL].look_again()
        agent._machines[MODEL].advance()
        assert agent._machines[MODEL].idle


def test_time_in_a_state_is_kept_over_restarts_and_counts_only_while_the_agent_runs(device: OneDevice) -> None:
    device.server.inline, device.server.unavailable = False, 0
    device.server.assign(MODEL, 2)
    with device.agent() as agent:
        agent._poll()
        device.server.unavailable = 10**6
        agent._machines[MODEL].advance()
        progress = agent._machines[MODEL].progress
        before = progress._now
        progress._now = lambda: before() + 1000.0
        agent._machines[MODEL].look_again()
        agent._machines[MODEL].advance()  # keeps the time: it is more than a cut may cost
    work = Journal(device.folder / "journal.json", PosixDisk()).record(MODEL).work
    assert work is not None
    assert 1000.0 <= work.spent_s < 1100.0
    with device.agent() as agent:
        assert 1000.0 <= agent._machines[MODEL].progress.spent_s < 1100.0
        device.server.unavailable = 0
        assert agent.run(once=True) == 0


def test_going_back_is_never_given_up_and_says_that_it_is_late(
    device: OneDevice, caplog: pytest.LogCaptureFixture
) -> None:
    device.take(2)
    device.server.assign(MODEL, 1)
    with device.agent() as agent:
        agent._poll()
        machine, shelf = agent._machines[MODEL], agent._machines[MODEL].shelf
        point = shelf.point

        def fails(*_: object) -> None:
            raise OSError(5, "Input/output error")

        shelf.point = fails  # type: ignore[method-assign]
        machine.advance()
        assert machine.record.state is State.ROLLING_BACK
        late(agent, State.ROLLING_BACK)
        for _ in range(3):
            machine.look_again()
            machine.advance()
        assert machine.record.state is State.ROLLING_BACK
        assert [record.message for record in caplog.records].count("late") == 1
        shelf.point = point  # type: ignore[method-assign]
        assert agent.run(once=True) == 0
        assert release_of(agent, device.server) == 1


def test_what_failed_here_is_tried_again_after_a_restart_and_not_before(device: OneDevice) -> None:
    device.server.assign(MODEL, 2)
    with device.agent() as agent:
        rebuild, agent._shop.rebuilder = agent._shop.rebuilder, dies  # type: ignore[assignment]
        assert agent.run(once=True) == 1
        agent._shop.rebuilder = rebuild
        agent._poller.look_again()
        assert agent.run(once=True) == 1, "the same process does not try it again"
        assert release_of(agent, device.server) == 1
    with device.agent() as agent:
        assert agent.run(once=True) == 0
        assert release_of(agent, device.server) == 2


def test_a_release_that_fails_three_times_is_not_tried_again_even_by_newer_assignments(device: OneDevice) -> None:
    for _ in range(3):
        code, report = fail(device)
        assert (code, report.error_code) == (1, "rebuild.failed")
    code, report = device.take(2)
    assert (code, report.outcome, report.error_code) == (76, Outcome.REFUSED, "agent.loop-broken")
    assert "sprat-agent retry tiny" in (report.error_detail or "")
    failures = read_status(device.folder)["models"][MODEL]["failures"]
    assert list(failures.values()) == [3]
    said = len(reports(device))
    with device.agent() as agent:
        agent.run(once=True)
    assert len(reports(device)) == said, "it is said once for an assignment"
    add(device, 3)
    assert device.take(3)[1].outcome is Outcome.COMMITTED, "other releases are taken"


def test_more_attempts_in_the_policy_let_it_go_again(device: OneDevice) -> None:
    for _ in range(3):
        fail(device)
    assert device.take(2)[1].error_code == "agent.loop-broken"
    device.server.says = lambda assigned: replace(assigned, policy=DevicePolicy(attempts=4))
    assert device.take(2)[1].outcome is Outcome.COMMITTED
    assert read_status(device.folder)["models"][MODEL]["failures"] == {}, "a success forgives"


def test_a_policy_of_one_attempt_breaks_the_loop_at_once(device: OneDevice) -> None:
    device.server.says = lambda assigned: replace(assigned, policy=DevicePolicy(attempts=1))
    fail(device)
    assert device.take(2)[1].error_code == "agent.loop-broken"


def test_retry_lets_the_standing_assignment_go_again(device: OneDevice, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(3):
        fail(device)
    assert device.take(2)[1].error_code == "agent.loop-broken"
    with pytest.raises(NotFound, match="it has: tiny"):
        retry(device.folder, "other")
    assert main(["retry", "--dir", str(device.folder), MODEL, "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["failures_forgotten"].values()) == [3]
    with device.agent() as agent:
        assert agent.run(once=True) == 0
        assert release_of(agent, device.server) == 2


def test_a_running_agent_takes_it_again_at_once(device: OneDevice) -> None:
    for _ in range(3):
        fail(device)
    assert device.take(2)[1].error_code == "agent.loop-broken"
    with device.agent() as agent:
        thread = threading.Thread(target=agent.run)
        thread.start()
        try:
            assert list(retry(device.folder, MODEL)["failures_forgotten"].values()) == [3]
            ends = time.monotonic() + 30
            while read_status(device.folder)["models"][MODEL]["active"]["release"] != 2 and time.monotonic() < ends:
                time.sleep(0.05)
        finally:
            agent.stop()
            thread.join(30)
        assert release_of(agent, device.server) == 2


def test_a_superseded_release_has_not_failed(device: OneDevice) -> None:
    add(device, 3)
    with device.agent(trial_s=60.0) as agent:
        device.server.assign(MODEL, 2)
        while agent._shop.servings.of(MODEL).slot.release == 1:
            agent.turn()
        device.server.assign(MODEL, 1)
        assert agent.run(once=True) == 0
    assert read_status(device.folder)["models"][MODEL]["failures"] == {}


def test_a_bad_release_counts_and_the_record_stays_bounded(device: OneDevice) -> None:
    bad = {**tiny_onnx.weights(99), "steps": ("I64", np.array(1, np.int64))}
    device.server.add_release(MODEL, bad, base=1)
    assert device.take(3)[1].error_code == "validation.worse"
    assert list(read_status(device.folder)["models"][MODEL]["failures"].values()) == [1]
    record = ModelRecord().failed("worst").failed("worst")
    for number in range(3 * REFUSALS_KEPT):
        record = record.failed(str(number))
    assert len(record.failures) == REFUSALS_KEPT
    assert (record.failures["worst"], record.failures[str(3 * REFUSALS_KEPT - 1)]) == (2, 1)


def test_restarts_that_get_no_further_end_the_update(device: OneDevice) -> None:
    device.server.inline = False
    assignment = device.server.assign(MODEL, 2)
    with device.agent() as agent:
        agent._poll()
        device.server.unavailable = 10**6
        agent._machines[MODEL].advance()
    allowed = RULES[State.FETCHING].restarts
    assert allowed is not None
    journal = Journal(device.folder / "journal.json", PosixDisk())
    journal.store(MODEL, replace(journal.record(MODEL), resumes=allowed))
    (device.folder / "stopped.json").unlink()  # as after a crash
    device.server.unavailable = 0
    with device.agent() as agent:
        agent.run(once=True)
    assert device.server.wait_for_report(assignment).error_code == "agent.gave-up"
