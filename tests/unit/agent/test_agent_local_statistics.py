"""Releases whose norm statistics each device computes from its own inputs: other statistics, the same digest."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_norms
from device_server import ENROLMENT_TOKEN, DeviceServer
from one_device import agent_on
from simulated_release import Release

from sprat_client.agent.durable import PosixDisk
from sprat_client.agent.enrol import enrol
from sprat_client.agent.estimator import SubprocessEstimator
from sprat_client.agent.loop import Agent
from sprat_client.agent.settings import AgentSettings
from sprat_client.agent.status import read_status
from sprat_client.agent.stored import StoredTensors
from sprat_server.training.statistics_graph import statistics_graph
from sprat_shared.protocol.report import Outcome, Report

MODEL = "norms"
STATISTICS = statistics_graph(tiny_norms.graph())
assert STATISTICS is not None
FIRST, LOCAL, LATER, WITHOUT = 1, 2, 3, 4  # the releases, each made from the one before


def nudged(seed: int) -> tiny_norms.Weights:
    draw = np.random.default_rng(seed)
    base = tiny_norms.weights(1)
    return {
        name: (code, (array + 0.01 * draw.random(array.shape)).astype(np.float32))
        for name, (code, array) in base.items()
    }


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[DeviceServer, str]]:
    server = DeviceServer()
    graph, local = tiny_norms.graph(), {"local": STATISTICS.tensors, "statistics": STATISTICS.data}
    server.add_release(MODEL, tiny_norms.weights(1), graph=graph)
    server.add_release(MODEL, nudged(2), base=FIRST, graph=graph, **local)
    server.add_release(MODEL, nudged(3), base=LOCAL, graph=graph, **local)
    server.add_release(MODEL, nudged(4), base=LATER, graph=graph)
    with server.running() as url:
        yield server, url


@dataclass
class Camera:
    """A device with inputs of its own."""

    server: DeviceServer
    folder: Path
    inputs: np.ndarray[Any, Any]
    settings: dict[str, Any] = field(default_factory=dict)

    def take(self, release: int) -> tuple[int, Report]:
        device = self.server.devices[self.folder.name]
        assignment = self.server.assign(MODEL, release, device)
        with self.agent() as agent:
            code = agent.run(once=True)
        assert device.reports[-1].assignment == assignment
        return code, device.reports[-1]

    def agent(self) -> Agent:
        return agent_on(self.folder, **{"unlabelled": {MODEL: self.folder.with_suffix(".npz")}, **self.settings})

    def weights(self, release: int) -> tiny_norms.Weights:
        """Return what is served, having checked number, digest and answers."""
        with self.agent() as agent:
            serving = agent._shop.servings.of(MODEL)
            answer = agent.infer(MODEL, self.inputs[:8])
            digest, manifest = serving.digest(), serving.manifest
            tensors = StoredTensors(manifest.table, manifest.sha256s, agent._shop.store)
        served = {spec.name: (spec.dtype, np.array(tensors.read(i))) for i, spec in enumerate(tensors.table)}
        np.testing.assert_allclose(
            answer.outputs["logits"], tiny_norms.logits(served, self.inputs[:8]), rtol=1e-3, atol=1e-4
        )
        assert (answer.release, digest) == (release, self.server.models[MODEL][release].digest)
        return served


def camera(
    server: tuple[DeviceServer, str], folder: Path, *, shift: float, samples: int = 100, release: int | None = FIRST
) -> Camera:
    draw = np.random.default_rng(int(10 * abs(shift)))
    inputs = (draw.standard_normal((samples, tiny_norms.FEATURES)) * 2 + shift).astype(np.float32)
    np.savez(folder.with_suffix(".npz"), inputs=inputs)
    enrol(folder, PosixDisk(), server_url=server[1], token=ENROLMENT_TOKEN, name=folder.name)
    made = Camera(server[0], folder, inputs)
    if release is not None:
        assert made.take(release)[0] == 0
    return made


@pytest.fixture
def gate(server: tuple[DeviceServer, str], tmp_path: Path, request: pytest.FixtureRequest) -> Camera:
    return camera(server, tmp_path / f"gate-{request.node.name}", shift=1.5)


def expected(release: Release, inputs: np.ndarray[Any, Any]) -> tiny_norms.Weights:
    return tiny_norms.with_statistics(dict(release.weights), inputs)


def assert_has(served: tiny_norms.Weights, wanted: tiny_norms.Weights) -> None:
    for index, name in enumerate(tiny_norms.NAMES):
        if index in tiny_norms.LOCAL:
            np.testing.assert_allclose(served[name][1], wanted[name][1], rtol=1e-5, atol=1e-5)
        else:
            np.testing.assert_array_equal(served[name][1], wanted[name][1])


def test_two_devices_have_their_own_statistics_and_the_registrys_digest(
    server: tuple[DeviceServer, str], gate: Camera, tmp_path: Path
) -> None:
    door = camera(server, tmp_path / "door", shift=-4)
    release = server[0].models[MODEL][LOCAL]
    for device in (gate, door):
        code, report = device.take(LOCAL)
        assert (code, report.outcome, report.serving_weights) == (0, Outcome.COMMITTED, release.digest)
    ours, theirs = gate.weights(LOCAL), door.weights(LOCAL)
    assert_has(ours, expected(release, gate.inputs))
    assert_has(theirs, expected(release, door.inputs))
    for index in tiny_norms.LOCAL:
        name = tiny_norms.NAMES[index]
        assert len({array.tobytes() for array in (ours[name][1], theirs[name][1], tiny_norms.weights(1)[name][1])}) == 3


def test_the_same_inputs_give_the_same_bits_also_in_a_process_of_its_own(gate: Camera) -> None:
    gate.take(LOCAL)
    ours = gate.weights(LOCAL)
    device = gate.server.devices[gate.folder.name]
    gate.server.assign(MODEL, LATER, device)
    with gate.agent() as agent:
        assert agent.run(once=True) == 0
    gate.server.assign(MODEL, LOCAL, device)  # from the slot, so forget it and compute again
    path = {MODEL: gate.folder.with_suffix(".npz")}
    settings = AgentSettings(folder=gate.folder, port=None, poll_interval_s=0.01, trial_s=0.001, unlabelled=path)
    with gate.agent() as agent:
        shelf = agent._machines[MODEL].shelf
        previous = shelf.slots().previous
        assert previous is not None
        shelf.discard_damaged(shelf.manifest(previous.release_id))
    with Agent(settings) as agent:
        assert isinstance(agent._shop.estimator, SubprocessEstimator)
        assert agent.run(once=True) == 0
    again = gate.weights(LOCAL)
    assert {name: array.tobytes() for name, (_, array) in again.items()} == {
        name: array.tobytes() for name, (_, array) in ours.items()
    }


def test_going_back_returns_to_the_slots_own_statistics_without_computing(gate: Camera) -> None:
    gate.take(LOCAL)
    before = gate.weights(LOCAL)
    assert gate.take(LATER)[0] == 0
    assert_has(gate.weights(LATER), expected(gate.server.models[MODEL][LATER], gate.inputs))
    gate.folder.with_suffix(".npz").unlink()
    code, report = gate.take(LOCAL)
    assert (code, report.outcome) == (0, Outcome.RETURNED)
    after = gate.weights(LOCAL)
    assert all(after[name][1].tobytes() == before[name][1].tobytes() for name in before)


def test_a_release_with_all_tensors_sent_is_exact_after_one_with_local_statistics(gate: Camera) -> None:
    gate.take(LOCAL)
    gate.take(LATER)
    assert gate.take(WITHOUT)[0] == 0
    wanted = gate.server.models[MODEL][WITHOUT].weights
    served = gate.weights(WITHOUT)
    assert all(served[name][1].tobytes() == wanted[name][1].tobytes() for name in wanted)


def test_a_new_device_computes_statistics_after_the_full_update(
    server: tuple[DeviceServer, str], tmp_path: Path
) -> None:
    fresh = camera(server, tmp_path / "fresh", shift=2.0, release=LOCAL)
    assert_has(fresh.weights(LOCAL), expected(server[0].models[MODEL][LOCAL], fresh.inputs))


def test_a_device_without_enough_inputs_refuses_and_serves_on(server: tuple[DeviceServer, str], tmp_path: Path) -> None:
    poor = camera(server, tmp_path / "poor", shift=1.0, samples=63)
    code, report = poor.take(LOCAL)
    assert (code, report.outcome, report.error_code) == (76, Outcome.REFUSED, "local-statistics.no-inputs")
    assert "at least 64 inputs" in (report.error_detail or "")
    poor.weights(FIRST)
    more = poor.folder.with_name("labelled.npz")  # labels are not looked at: these are all wrong
    np.savez(more, inputs=poor.inputs[:1], labels=np.array([0]))
    poor.settings = {"holdouts": {MODEL: more}}
    assert poor.take(LOCAL)[0] == 0
    both = np.concatenate([poor.inputs, poor.inputs[:1]])
    assert_has(poor.weights(LOCAL), expected(server[0].models[MODEL][LOCAL], both))


def test_of_many_inputs_as_many_as_allowed_are_used_evenly_spread(
    server: tuple[DeviceServer, str], tmp_path: Path
) -> None:
    rich = camera(server, tmp_path / "rich", shift=1.0, samples=1024)
    rich.take(LOCAL)
    assert_has(rich.weights(LOCAL), expected(server[0].models[MODEL][LOCAL], rich.inputs[::4]))


def test_inputs_that_do_not_fit_the_model_are_refused_by_name(gate: Camera) -> None:
    np.savez(gate.folder.with_suffix(".npz"), inputs=np.zeros((100, 3), np.float32))
    code, report = gate.take(LOCAL)
    assert (code, report.outcome) == (1, Outcome.FAILED)
    assert "the model takes shape" in (report.error_detail or "")
    gate.weights(FIRST)


def test_a_graph_that_gives_other_tensors_than_the_signed_ones_is_refused(tmp_path: Path) -> None:
    server = DeviceServer()
    server.add_release(MODEL, tiny_norms.weights(1), graph=tiny_norms.graph())
    server.add_release(
        MODEL, nudged(2), base=1, graph=tiny_norms.graph(), local=STATISTICS.tensors[:2], statistics=STATISTICS.data
    )
    with server.running() as url:
        code, report = camera((server, url), tmp_path / "gate", shift=1.0).take(2)
    assert (code, report.error_code) == (76, "local-statistics.graph")


def test_status_names_the_local_tensors(gate: Camera) -> None:
    gate.take(LOCAL)
    said = read_status(gate.folder)["models"][MODEL]
    assert said["active"]["local"] == [tiny_norms.NAMES[index] for index in tiny_norms.LOCAL]
    assert said["previous"]["local"] == []
    assert STATISTICS.tensors == tiny_norms.LOCAL
