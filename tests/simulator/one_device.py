"""One device with its server, in this process: a real agent on a real folder, polling over a real socket."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tiny_onnx
from device_server import ENROLMENT_TOKEN, DeviceServer

from sprat_client.agent.durable import Disk, PosixDisk
from sprat_client.agent.enrol import enrol
from sprat_client.agent.estimate import estimate_into
from sprat_client.agent.estimator import Estimator
from sprat_client.agent.loop import Agent
from sprat_client.agent.rebuild import rebuild
from sprat_client.agent.rebuilder import Rebuilder
from sprat_client.agent.settings import AgentSettings, LinkSettings, ValidationSettings
from sprat_client.agent.store import TensorStore
from sprat_client.agent.trust.clock import Clock
from sprat_client.runtime.ports import Runtime
from sprat_shared.errors import NotFound
from sprat_shared.protocol.report import Report

MODEL = "tiny"
INPUTS, LABELS = tiny_onnx.samples(tiny_onnx.weights(1), 64)


def rebuilder_on(disk: Disk) -> Rebuilder:
    """Return the rebuild in this process: faster, and its writes go through `disk`."""
    return lambda store, base, steps: rebuild(TensorStore(store, disk), base, steps)


def estimator_on(disk: Disk) -> Estimator:
    """Return the computing of local statistics in this process, likewise."""
    return lambda store, job: estimate_into(TensorStore(store, disk), job)


def agent_on(
    folder: Path,
    disk: Disk | None = None,
    clock: Clock | None = None,
    runtime: Runtime | None = None,
    *,
    offline: bool = False,
    **changes: Any,
) -> Agent:
    """Return an agent that polls at once, tries a release for a moment, and rebuilds in this process."""
    disk = disk or PosixDisk()
    settings = AgentSettings(
        folder=folder,
        port=None,
        poll_interval_s=0.01,
        trial_s=0.001,
        link=LinkSettings(backoff_s=0.01, backoff_max_s=0.05, idle_timeout_s=5.0),
        validation=ValidationSettings(latency_runs=1),
        space_margin_bytes=0,
    )
    return Agent(
        replace(settings, **changes),
        disk=disk,
        rebuilder=rebuilder_on(disk),
        estimator=estimator_on(disk),
        runtime=runtime,
        clock=clock,
        offline=offline,
    )


def release_of(agent: Agent, server: DeviceServer) -> int | None:
    """Return the release that answers, having checked that its answers and its files are that release's."""
    try:
        answer = agent.infer(MODEL, INPUTS)
    except NotFound:
        return None
    release = server.models[MODEL][answer.release]
    np.testing.assert_allclose(answer.outputs["logits"], tiny_onnx.logits(release.weights, INPUTS), rtol=1e-4)
    assert agent._shop.servings.of(MODEL).digest() == release.digest
    return answer.release


class OneDevice:
    """A server with releases of one model, and one enrolled device that runs the first.

    Attributes:
        server: it.
        folder: the agent's.
        holdout: samples that release 1 has right.
    """

    def __init__(self, folder: Path, server: DeviceServer, url: str, profile: str | None = None) -> None:
        self.server, self.folder = server, folder / "device"
        self.holdout = folder / "holdout.npz"
        np.savez(self.holdout, inputs=INPUTS, labels=LABELS)
        enrol(self.folder, PosixDisk(), server_url=url, token=ENROLMENT_TOKEN, name="gate-7", profile=profile)
        if not server.models:
            server.add_release(MODEL, tiny_onnx.weights(1))
        self.take(1)

    def agent(self, **changes: Any) -> Agent:
        """Return an agent with the holdout samples."""
        return agent_on(self.folder, **{"holdouts": {MODEL: self.holdout}, **changes})

    def take(self, release: int, **changes: Any) -> tuple[int, Report]:
        """Assign a release and run the agent until it is settled; return the exit code and the report."""
        assignment = self.server.assign(MODEL, release)
        with self.agent(**changes) as agent:
            code = agent.run(once=True)
        return code, self.server.wait_for_report(assignment, timeout_s=5.0)

    def serves(self) -> int | None:
        """Return the release that a fresh start serves."""
        with self.agent() as agent:
            return release_of(agent, self.server)


@contextmanager
def one_device(folder: Path, profile: str | None = None) -> Iterator[OneDevice]:
    """Run a server and enrol one device."""
    server = DeviceServer()
    with server.running() as url:
        yield OneDevice(folder, server, url, profile)


@contextmanager
def in_a_thread(agent: Agent) -> Iterator[Agent]:
    """Let an agent run in a thread, until the context ends."""
    with agent:
        thread = threading.Thread(target=agent.run)
        thread.start()
        try:
            yield agent
        finally:
            agent.stop()
            thread.join(20)
            assert not thread.is_alive()
