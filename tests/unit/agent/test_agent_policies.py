"""A policy that changes while an update waits, or is worked on, holds at once."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import tiny_onnx
from one_device import MODEL, OneDevice, one_device

from sprat_client.agent.states import State
from sprat_client.agent.status import read_status
from sprat_shared.protocol.report import Outcome
from sprat_shared.trust.policy import DevicePolicy, Wanted, Window


@pytest.fixture
def device(tmp_path: Path) -> Iterator[OneDevice]:
    with one_device(tmp_path) as device:
        device.server.add_release(MODEL, tiny_onnx.nudged(device.server.models[MODEL][1].weights, 2), base=1)
        yield device


def later() -> Wanted:
    """A window that opens in two hours."""
    at = datetime.now(UTC) + timedelta(hours=2)
    minute = at.hour * 60 + at.minute
    return Wanted(windows=(Window(start=minute, end=(minute + 30) % (24 * 60)),))


@pytest.mark.parametrize("waits_in", [State.FETCHING, State.READY])
def test_work_that_waits_goes_on_when_its_policy_lets_it(device: OneDevice, waits_in: State) -> None:
    strict = DevicePolicy(fetch=later()) if waits_in is State.FETCHING else DevicePolicy(activate=later())
    device.server.says = lambda assigned: replace(assigned, policy=strict)
    assignment = device.server.assign(MODEL, 2)
    with device.agent() as agent:
        agent.turn()
        record = agent._shop.journal.record(MODEL)
        assert (record.state, record.highest_assignment) == (waits_in, assignment)
        assert record.work is not None
        assert "window" in (record.work.waiting or "")
        assert read_status(device.folder)["models"][MODEL]["state"] == waits_in
        device.server.says = lambda assigned: assigned
        assert agent.run(once=True) == 0
    report = device.server.wait_for_report(assignment)
    assert (report.outcome, report.assignment) == (Outcome.COMMITTED, assignment)


def test_a_stricter_policy_holds_work_back_that_is_under_way(device: OneDevice) -> None:
    device.server.says = lambda assigned: replace(assigned, policy=DevicePolicy(fetch=later()))
    device.server.assign(MODEL, 2)
    with device.agent() as agent:
        agent.turn()
        device.server.says = lambda assigned: replace(assigned, policy=DevicePolicy(activate=later()))
        agent._next_poll = 0.0
        agent.turn()
        record = agent._shop.journal.record(MODEL)
        assert record.work is not None
        assert (record.state, record.work.wish.policy) == (
            State.READY,
            DevicePolicy(activate=record.work.wish.policy.activate),
        )


def test_a_release_that_is_committed_is_not_tried_again_for_a_newer_policy(device: OneDevice) -> None:
    device.take(2)
    before = len(next(iter(device.server.devices.values())).reports)
    device.server.says = lambda assigned: replace(assigned, policy=DevicePolicy(trial_s=60.0))
    with device.agent() as agent:
        assert agent.run(once=True) == 0
        assert agent._shop.journal.record(MODEL).state is State.IDLE
    assert len(next(iter(device.server.devices.values())).reports) == before
