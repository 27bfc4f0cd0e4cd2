"""A release that is assigned ahead is fetched, verified and rebuilt, and serves when a later assignment says so."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_onnx
from one_device import MODEL, OneDevice, one_device, release_of

from sprat_client.agent.states import State
from sprat_shared.protocol.report import Outcome


@pytest.fixture
def device(tmp_path: Path) -> Iterator[OneDevice]:
    with one_device(tmp_path) as device:
        device.server.add_release(MODEL, tiny_onnx.nudged(device.server.models[MODEL][1].weights, 2), base=1)
        yield device


def ahead(device: OneDevice, release: int = 2) -> int:
    """Assign a release ahead; those assigned later are meant to serve."""
    counter = device.server.assign(MODEL, release)
    device.server.says = lambda assigned: replace(assigned, prefetch=assigned.assignment == counter)
    return counter


def outcomes(device: OneDevice) -> list[tuple[int, Outcome]]:
    (one,) = device.server.devices.values()
    return [(report.assignment, report.outcome) for report in one.reports]


def run(device: OneDevice) -> int:
    with device.agent() as agent:
        return agent.run(once=True)


def test_it_waits_rebuilt_while_the_old_release_serves_and_says_once_that_it_is_ready(device: OneDevice) -> None:
    counter = ahead(device)
    for _ in range(3):
        assert run(device) == 0
        with device.agent() as agent:
            assert release_of(agent, device.server) == 1
            assert agent._shop.journal.record(MODEL).state is State.READY
    report = device.server.wait_for_report(counter)
    assert (report.outcome, report.release, report.serving_release) == (Outcome.READY, 2, 1)
    assert report.received_bytes == len(device.server.models[MODEL][2].update or b"")
    assert outcomes(device) == [(1, Outcome.COMMITTED), (counter, Outcome.READY)]


def test_the_assignment_that_starts_it_brings_it_to_serve_without_a_byte_more(device: OneDevice) -> None:
    ahead(device)
    run(device)
    device.server.inline = False
    before = device.server.blob_bytes_sent
    code, report = device.take(2)
    assert (code, report.outcome, report.serving_release) == (0, Outcome.COMMITTED, 2)
    assert (report.received_bytes, device.server.blob_bytes_sent) == (0, before)
    assert device.serves() == 2


def test_another_assignment_releases_it(device: OneDevice) -> None:
    ahead(device)
    run(device)
    code, report = device.take(1)
    assert (code, report.outcome, report.serving_release) == (0, Outcome.COMMITTED, 1)
    with device.agent() as agent:
        assert agent._shop.journal.record(MODEL).state is State.IDLE


def test_a_release_whose_assignment_is_taken_back_for_nothing_is_given_up(device: OneDevice) -> None:
    ahead(device)
    run(device)
    (one,) = device.server.devices.values()
    del one.wishes[MODEL]
    assert run(device) == 0
    with device.agent() as agent:
        assert agent._shop.journal.record(MODEL).state is State.IDLE
        assert release_of(agent, device.server) == 1


def test_a_release_that_the_other_slot_holds_is_ready_and_nothing_changes(device: OneDevice) -> None:
    device.take(2)
    counter = ahead(device, 1)
    assert run(device) == 0
    assert run(device) == 0
    assert outcomes(device)[-1] == (counter, Outcome.READY)
    assert [outcome for _, outcome in outcomes(device)].count(Outcome.READY) == 1
    assert device.serves() == 2


def test_a_release_that_serves_already_is_ready(device: OneDevice) -> None:
    counter = ahead(device, 1)
    assert run(device) == 0
    assert outcomes(device)[-1] == (counter, Outcome.READY)
    assert device.serves() == 1


def test_a_release_on_trial_that_is_only_to_be_at_hand_goes_back_and_waits(device: OneDevice) -> None:
    device.server.assign(MODEL, 2)
    with device.agent(trial_s=3600.0) as agent:
        agent.turn()
        assert agent._shop.journal.record(MODEL).state is State.TRIAL
        counter = ahead(device)
        assert agent.run(once=True) == 0
        assert release_of(agent, device.server) == 1
        assert agent._shop.journal.record(MODEL).state is State.READY
    assert outcomes(device)[-1] == (counter, Outcome.READY)


def test_restarts_while_it_waits_are_no_failures(device: OneDevice) -> None:
    ahead(device)
    run(device)
    for _ in range(12):
        with device.agent() as agent:
            assert agent._shop.journal.record(MODEL).state is State.READY


def test_a_release_that_cannot_be_had_ahead_is_refused(device: OneDevice) -> None:
    weights = tiny_onnx.nudged(device.server.models[MODEL][1].weights, 3)
    device.server.add_release(MODEL, weights, base=1, corrupt=True)
    counter = ahead(device, 3)
    assert run(device) == 76
    assert outcomes(device)[-1] == (counter, Outcome.REFUSED)
    assert device.serves() == 1
