"""Power cuts while a device computes local statistics: the old release serves, and it computes the same bits again."""

from pathlib import Path

import numpy as np
import pytest
import tiny_norms
from crashing_disk import CrashingDisk, RecordingDisk
from device_server import ENROLMENT_TOKEN, DeviceServer
from one_device import agent_on

from sprat_client.agent.durable import Disk, PosixDisk
from sprat_client.agent.enrol import enrol
from sprat_client.agent.loop import Agent
from sprat_client.agent.stored import StoredTensors
from sprat_server.training.statistics_graph import statistics_graph

pytestmark = pytest.mark.crash
MODEL, OLD, NEW = "norms", 1, 2
EVERY = 8  # a cut costs an install


def agent(folder: Path, samples: Path, disk: Disk | None = None) -> Agent:
    return agent_on(folder, disk, unlabelled={MODEL: samples})


def served(agent: Agent) -> tuple[int, str, dict[str, bytes]]:
    """Return release, recomputed digest and all tensors of what serves."""
    serving = agent._shop.servings.of(MODEL)
    tensors = StoredTensors(serving.manifest.table, serving.manifest.sha256s, agent._shop.store)
    return (
        serving.slot.release,
        serving.digest(),
        {spec.name: tensors.read(index).tobytes() for index, spec in enumerate(tensors.table)},
    )


def test_a_cut_while_statistics_are_computed_costs_time_and_nothing_else(tmp_path: Path) -> None:
    graph, statistics, server = tiny_norms.graph(), statistics_graph(tiny_norms.graph()), DeviceServer()
    assert statistics is not None
    samples, device = tmp_path / "inputs.npz", tmp_path / "device"
    inputs = np.random.default_rng(3).standard_normal((80, tiny_norms.FEATURES)).astype(np.float32) * 3 - 1
    np.savez(samples, inputs=inputs)
    server.add_release(MODEL, tiny_norms.weights(1), graph=graph)
    changed = {**tiny_norms.weights(1), "second.bias": ("F32", np.ones(tiny_norms.CLASSES, np.float32))}
    how = {"local": statistics.tensors, "statistics": statistics.data}
    server.add_release(MODEL, changed, base=OLD, graph=graph, **how)  # type: ignore[arg-type]
    with server.running() as url:
        enrol(device, PosixDisk(), server_url=url, token=ENROLMENT_TOKEN, name="gate-7")
        server.assign(MODEL, OLD)
        with agent(device, samples) as first:
            assert first.run(once=True) == 0
            old = served(first)
        before = CrashingDisk(tmp_path)
        before.take(device)
        before.give(tmp_path / "before")
        server.assign(MODEL, NEW)
        recording = RecordingDisk(device)
        with agent(device, samples, recording) as whole:
            assert whole.run(once=True) == 0
            new = served(whole)
        assert (old[0], new[0]) == (OLD, NEW)
        named = [" ".join(map(str, call[1])) for call in recording.calls]
        start = next(i for i, names in enumerate(named) if "/releases/" in names)
        end = next(i for i, names in enumerate(named) if i > start and "slots.json" in names)
        computed = [call for call in recording.calls[start:end] if call[0] == "write" and "sha256" in str(call[1][0])]
        assert len(computed) >= len(statistics.tensors), "the statistics are written within the range that is cut"
        for cut in range(start, end, EVERY):
            disk = CrashingDisk(tmp_path / "disk", "lost" if cut % 2 else "kept")
            disk.take(tmp_path / "before")
            for call in recording.calls[:cut]:
                disk.replay(call)
            disk.power_cut()
            folder = tmp_path / str(cut)
            disk.give(folder)
            next(iter(server.devices.values())).reports.clear()  # of other cuts
            with agent(folder, samples) as again:
                assert served(again) == old, f"bricked by a cut before call {cut}"
                assert again.run(once=True) == 0
                assert served(again) == new
