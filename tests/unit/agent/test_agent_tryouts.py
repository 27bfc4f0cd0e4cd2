"""Shadow and trial on a real agent: what they show, what ends them, and what a restart does to them."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_onnx
from one_device import INPUTS, MODEL, OneDevice, one_device, release_of
from spoiled_runtime import Spoil, SpoiledRuntime

from sprat_client.agent.loop import Agent
from sprat_client.agent.states import State
from sprat_client.agent.status import read_status
from sprat_client.runtime.ports import Array, InferenceFailed
from sprat_shared.protocol.report import Outcome, Report
from sprat_shared.protocol.watched import Watched
from sprat_shared.trust.assignments import Assigned
from sprat_shared.trust.policy import DevicePolicy


@pytest.fixture
def device(tmp_path: Path) -> Iterator[OneDevice]:
    with one_device(tmp_path) as device:
        base = device.server.models[MODEL][1].weights
        device.server.add_release(MODEL, tiny_onnx.nudged(base, 2, size=1e-4), base=1)
        yield device


def under(device: OneDevice, policy: DevicePolicy) -> None:
    """Let the director sign this policy with each assignment."""

    def says(assigned: Assigned) -> Assigned:
        return replace(assigned, policy=policy)

    device.server.says = says


@contextmanager
def asked(agent: Agent, *, on_error: Callable[[int], None] = lambda _: None) -> Iterator[list[int]]:
    """Ask the agent all the time, two samples at once; yield the releases that answered. No request may fail."""
    stop, releases, failures = threading.Event(), list[int](), list[BaseException]()

    def ask() -> None:
        while not stop.is_set():
            try:
                releases.append(agent.infer(MODEL, INPUTS[:2]).release)
                on_error(releases[-1])
            except Exception as bad:  # noqa: BLE001  # any is a failure of the test
                failures.append(bad)
                return
            time.sleep(0.001)

    asker = threading.Thread(target=ask)
    asker.start()
    try:
        yield releases
    finally:
        stop.set()
        asker.join()
    assert failures == []


def taken(
    device: OneDevice,
    *,
    spoil: Spoil | None = None,
    on_error: Callable[[Agent, int], None] | None = None,
    **changes: Any,
) -> tuple[Report, list[int]]:
    """Assign release 2 and run the agent, asked all the time; return the report and which releases answered."""
    assignment = device.server.assign(MODEL, 2)
    runtime = None if spoil is None else SpoiledRuntime(2, spoil)
    with device.agent(runtime=runtime, holdouts={}, **changes) as agent:
        tell = (lambda release: on_error(agent, release)) if on_error else (lambda _: None)
        with asked(agent, on_error=tell) as releases:
            agent.run(once=True)
    return device.server.wait_for_report(assignment), releases


def seen_of(report: Report, phase: str) -> Watched:
    assert report.evidence is not None
    watched = getattr(report.evidence, phase)
    assert isinstance(watched, Watched)
    return watched


def reversed_classes(outputs: list[Array]) -> list[Array]:
    return [outputs[0][:, ::-1].copy()]


def fails(_outputs: list[Array]) -> list[Array]:
    raise InferenceFailed("no such kernel")


def is_late(outputs: list[Array]) -> list[Array]:
    time.sleep(0.003)
    return outputs


def is_unsure(outputs: list[Array]) -> list[Array]:
    return [outputs[0] / 100]


# shadow -----------------------------------------------------------------------------------------------------------


def test_a_release_answers_in_the_shadow_before_its_trial_and_the_report_says_how_it_agreed(device: OneDevice) -> None:
    under(device, DevicePolicy(shadow_requests=20, shadow_s=30.0, min_agreement=0.9, trial_requests=5, trial_s=30.0))
    report, releases = taken(device)
    assert report.outcome is Outcome.COMMITTED
    seen = seen_of(report, "shadow")
    assert seen.requests >= 20
    assert seen.compared == seen.agreed == 2 * seen.requests
    assert seen.old_confidence == pytest.approx(seen.new_confidence, abs=0.01)
    assert releases.index(2) >= 20, "what the shadow answers is not served"
    assert seen_of(report, "trial").requests >= 5


@pytest.mark.parametrize(
    ("spoil", "policy", "code"),
    [
        (reversed_classes, DevicePolicy(shadow_s=30.0, shadow_requests=5000, min_agreement=0.9), "shadow.disagrees"),
        (fails, DevicePolicy(shadow_s=30.0), "shadow.errors"),
        (is_late, DevicePolicy(shadow_s=30.0, max_latency_ratio=2.0), "shadow.slow"),
        (is_unsure, DevicePolicy(shadow_s=30.0, max_confidence_drop=0.2), "shadow.unsure"),
    ],
)
def test_a_release_that_shows_harm_in_the_shadow_never_serves(
    device: OneDevice, spoil: Spoil, policy: DevicePolicy, code: str
) -> None:
    under(device, policy)
    report, releases = taken(device, spoil=spoil)
    assert (report.outcome, report.error_code, report.serving_release) == (Outcome.REFUSED, code, 1)
    assert set(releases) == {1}
    assert seen_of(report, "shadow").requests > 0
    assert device.serves() == 1


def test_a_shadow_that_nobody_asks_ends_by_time_and_says_so(device: OneDevice) -> None:
    under(device, DevicePolicy(shadow_s=0.2, min_agreement=0.9))
    code, report = device.take(2)
    assert (code, report.outcome) == (0, Outcome.COMMITTED)
    seen = seen_of(report, "shadow")
    assert (seen.requests, seen.compared) == (0, 0)
    assert seen.seconds >= 0.2


def test_the_first_release_of_a_model_has_no_shadow(device: OneDevice) -> None:
    under(device, DevicePolicy(shadow_s=30.0))
    device.server.add_release("other", tiny_onnx.weights(3))
    assignment = device.server.assign("other", 1)
    with device.agent() as agent:
        agent.run(once=True)
    report = device.server.wait_for_report(assignment)
    assert report.outcome is Outcome.COMMITTED
    assert report.evidence is not None
    assert report.evidence.shadow is None


def run_until(agent: Agent, state: State, more: Callable[[], bool] = lambda: True) -> None:
    end = time.monotonic() + 15
    while not (agent._machines[MODEL].record.state is state and more()):
        assert time.monotonic() < end, agent._machines[MODEL].record.state
        agent.turn()
        time.sleep(0.002)


def shadowed(agent: Agent) -> int:
    serving = agent._shop.servings.of(MODEL)
    return 0 if serving.mirror is None else serving.mirror.seen().requests


def test_a_shadow_goes_on_after_a_stop_from_what_it_saw(device: OneDevice) -> None:
    under(device, DevicePolicy(shadow_requests=200, shadow_s=60.0))
    assignment = device.server.assign(MODEL, 2)
    with device.agent() as agent, asked(agent):
        run_until(agent, State.SHADOW, lambda: shadowed(agent) >= 170)
    with device.agent() as agent:
        record = agent._machines[MODEL].record
        assert (record.state, record.resumes) == (State.SHADOW, 0)
        assert record.work is not None
        before = record.work.evidence and record.work.evidence.shadow
        assert before is not None
        assert before.requests >= 170
        with asked(agent) as releases:
            agent.run(once=True)
    seen = seen_of(device.server.wait_for_report(assignment), "shadow")
    assert 200 <= seen.requests <= before.requests + len(releases)
    assert releases.index(2) < 150, "it does not begin anew"
    assert seen.seconds > before.seconds


def test_a_newer_assignment_ends_a_shadow_at_once(device: OneDevice) -> None:
    under(device, DevicePolicy(shadow_s=3600.0))
    base = device.server.models[MODEL][1].weights
    device.server.add_release(MODEL, tiny_onnx.nudged(base, 3, size=1e-4), base=1)
    device.server.assign(MODEL, 2)
    with device.agent() as agent:
        run_until(agent, State.SHADOW)
        under(device, DevicePolicy())
        device.server.assign(MODEL, 3)
        assert agent.run(once=True) == 0
        assert release_of(agent, device.server) == 3
        assert agent._shop.servings.of(MODEL).mirror is None
    assert not [thread for thread in threading.enumerate() if thread.name == "mirror"]


# trial ------------------------------------------------------------------------------------------------------------


def test_errors_that_applications_report_of_a_release_on_trial_take_it_back(device: OneDevice) -> None:
    def complain(agent: Agent, release: int) -> None:
        if release == 2:
            assert agent.report_error(MODEL, "all boards are good", release=2) == 2

    under(device, DevicePolicy(trial_s=60.0, trial_requests=10_000, trial_errors=3))
    report, releases = taken(device, on_error=complain)
    assert (report.outcome, report.error_code) == (Outcome.ROLLED_BACK, "trial.reported")
    assert "all boards are good" in (report.error_detail or "")
    assert seen_of(report, "trial").reported >= 3
    assert 2 in releases
    assert device.serves() == 1


def test_errors_reported_of_another_release_do_not_count_against_the_one_on_trial(device: OneDevice) -> None:
    def complain(agent: Agent, _release: int) -> None:
        agent.report_error(MODEL, "all boards are good", release=1)

    under(device, DevicePolicy(trial_s=0.3, trial_requests=10_000))
    report, _ = taken(device, on_error=complain)
    assert report.outcome is Outcome.COMMITTED
    assert seen_of(report, "trial").reported == 0


@pytest.mark.parametrize(
    ("spoil", "policy", "code"),
    [
        (fails, DevicePolicy(), "trial.errors"),
        (is_late, DevicePolicy(max_latency_ratio=2.0), "trial.slow"),
        (is_unsure, DevicePolicy(max_confidence_drop=0.2), "trial.unsure"),
    ],
)
def test_a_release_that_shows_harm_on_trial_goes_back_without_a_poll(
    device: OneDevice, spoil: Spoil, policy: DevicePolicy, code: str
) -> None:
    under(device, replace(policy, trial_s=60.0, trial_requests=10_000))
    assignment = device.server.assign(MODEL, 2)

    def polls() -> int:
        return sum(path.endswith("/poll") for _, path, _ in device.server.requests)

    before: list[int] = []
    with device.agent(runtime=SpoiledRuntime(2, spoil), holdouts={}) as agent, asked(agent) as releases:
        entered = agent._shop.hooks.entered

        def noted(state: State, model: str, release: int | None) -> None:
            if state is State.TRIAL:  # it may end in the same turn
                before.append(polls())
                agent._next_poll = time.monotonic() + 3600
            entered(state, model, release)

        agent._shop.hooks.entered = noted  # type: ignore[method-assign]
        while not agent.settled:
            time.sleep(min(agent.turn(), 0.01))
        assert before == [polls()]
        assert release_of(agent, device.server) == 1
    report = device.server.wait_for_report(assignment)
    assert (report.outcome, report.error_code) == (Outcome.ROLLED_BACK, code)
    assert releases[-1] == 1


def test_what_a_trial_saw_is_reported_and_what_it_found_out_before(device: OneDevice) -> None:
    under(device, DevicePolicy(trial_s=60.0, trial_requests=40))
    report, _ = taken(device)
    assert report.outcome is Outcome.COMMITTED
    seen = seen_of(report, "trial")
    assert seen.requests >= 40
    assert 0 < seen.compared <= 2 * seen.requests
    assert seen.agreed == seen.compared
    assert seen.new_p95_s is not None
    assert report.evidence is not None
    assert report.evidence.mode == "unvalidated"
    assert report.evidence.unproven
    assert report.evidence.new_memory_bytes is not None
    assert read_status(device.folder)["models"][MODEL]["validated"] == "unvalidated, unproven"


def test_inputs_without_labels_validate_a_release_and_the_policy_may_refuse_that(
    device: OneDevice, tmp_path: Path
) -> None:
    np.savez(tmp_path / "inputs.npz", inputs=INPUTS)
    given = {"holdouts": {}, "unlabelled": {MODEL: tmp_path / "inputs.npz"}}
    under(device, DevicePolicy(too_few="refuse"))
    report = device.take(2, **given)[1]
    assert (report.outcome, report.error_code) == (Outcome.REFUSED, "validation.too-few")
    under(device, DevicePolicy(too_few="refuse", min_agreement=0.9))
    report = device.take(2, **given)[1]
    assert report.outcome is Outcome.COMMITTED
    assert report.evidence is not None
    assert (report.evidence.mode, report.evidence.compared, report.evidence.unproven) == ("unlabelled", 64, False)


# how the process ends ---------------------------------------------------------------------------------------------

_CRASHING = """
import os, signal, sys
from one_device import agent_on, MODEL, INPUTS
from spoiled_runtime import SpoiledRuntime
from sprat_client.agent.states import State
from pathlib import Path
import logging, time

def crash(outputs):
    os.kill(os.getpid(), signal.SIGSEGV)

agent = agent_on(Path(sys.argv[1]), runtime=SpoiledRuntime(2, crash), trial_s=3600.0)
with agent:
    while True:
        agent.turn()
        machine = agent._machines[MODEL]
        print(machine.record.state, machine.record.trial_cuts, machine.record.resumes, flush=True)
        if machine.record.state is not State.FETCHING:
            agent.infer(MODEL, INPUTS[:2])
        if machine.idle and machine.settled:
            break
        time.sleep(0.002)
"""


@pytest.mark.parametrize(
    ("policy", "code"),
    [(DevicePolicy(), "trial.cut-too-often"), (DevicePolicy(shadow_s=600.0), "shadow.cut-too-often")],
)
def test_a_release_that_ends_the_process_is_given_up_at_the_third_time(
    device: OneDevice, policy: DevicePolicy, code: str
) -> None:
    under(device, replace(policy, trial_s=3600.0))
    assignment = device.server.assign(MODEL, 2)
    ends = []
    for _ in range(4):
        done = subprocess.run(
            [sys.executable, "-c", _CRASHING, str(device.folder)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            timeout=30,
            check=False,
        )
        ends.append(done.returncode)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGSEGV, done.stderr.decode()
    assert ends == [-signal.SIGSEGV] * 3 + [0]
    report = device.server.wait_for_report(assignment)
    assert report.error_code == code
    assert report.serving_release == 1


def test_stops_that_were_asked_for_count_against_no_trial_and_it_ends_from_where_it_was(device: OneDevice) -> None:
    under(device, DevicePolicy(trial_s=2.5, trial_requests=10_000))
    assignment = device.server.assign(MODEL, 2)
    with device.agent() as agent:
        run_until(agent, State.TRIAL)
        time.sleep(0.4)
    for _ in range(4):
        assert (device.folder / "stopped.json").exists()
        with device.agent() as agent:
            assert not (device.folder / "stopped.json").exists()
            assert agent._machines[MODEL].record.trial_cuts == 0
            assert agent._machines[MODEL].record.state is State.TRIAL
            agent.turn()
            time.sleep(0.4)
    begun = time.monotonic()
    with device.agent() as agent:
        agent.run(once=True)
    assert time.monotonic() - begun < 2.0
    report = device.server.wait_for_report(assignment)
    assert report.outcome is Outcome.COMMITTED
    assert seen_of(report, "trial").seconds >= 2.5
    assert not (device.folder / "stopped.json").exists(), "nothing was under way at the last stop"


def test_a_stop_excuses_one_start_and_no_crash_after_it(device: OneDevice) -> None:
    under(device, DevicePolicy(trial_s=3600.0))
    device.server.assign(MODEL, 2)
    with device.agent() as agent:
        run_until(agent, State.TRIAL)
    device.agent().__enter__()._lock.__exit__(None, None, None)  # an agent that vanishes
    with device.agent() as agent:
        assert agent._machines[MODEL].record.trial_cuts == 1
        journal = json.loads((device.folder / "journal.json").read_bytes())
        assert journal["models"][MODEL]["state"] == "trial"
