"""The agent from the wheel, in an environment without torch or any extra: it enrols, rebuilds, validates and serves."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tiny_onnx
from bare_environment import bare_environment_variables, run
from device_server import ENROLMENT_TOKEN, DeviceServer

MODEL = "tiny"


@pytest.fixture
def server() -> DeviceServer:
    """A server with a release and an update of it."""
    made = DeviceServer()
    base = made.add_release(MODEL, tiny_onnx.weights(1))
    made.add_release(MODEL, tiny_onnx.nudged(base.weights, 2), base=1)
    return made


@pytest.fixture
def agent(bare: Path, server: DeviceServer, tmp_path: Path) -> Iterator[Path]:
    """The folder of a running agent, enrolled, with a holdout."""
    folder, holdout = tmp_path / "agent", tmp_path / "holdout.npz"
    inputs, labels = tiny_onnx.samples(server.models[MODEL][1].weights, 60)
    np.savez(holdout, inputs=inputs, labels=labels)
    command = (bare / "sprat-agent",)
    with server.running() as url:
        run(*command, "enrol", "--server", url, "--token", ENROLMENT_TOKEN, "--dir", folder, cwd=tmp_path)
        options = ("--holdout", f"{MODEL}={holdout}", "--trial-s", "0.2")
        with (tmp_path / "agent.log").open("wb") as log:
            process = subprocess.Popen(
                [*command, "run", "--dir", folder, *options], env=bare_environment_variables(), stderr=log
            )
        try:
            yield folder
        finally:
            process.terminate()
            assert process.wait(30) == 0, (tmp_path / "agent.log").read_text()


def served(agent: Path) -> dict[str, Any]:
    """What the agent says it serves, its digest recomputed from the files that it has mapped."""
    url = json.loads((agent / "endpoint.json").read_text())["url"]
    answer = httpx.get(f"{url}/v1/models/{MODEL}", params={"verify": "1"})
    said: dict[str, Any] = answer.raise_for_status().json()
    return said


@pytest.mark.e2e
def test_an_agent_without_torch_rebuilds_an_update_bit_for_bit_and_serves_it(
    bare: Path, server: DeviceServer, agent: Path
) -> None:
    for release in (1, 2):
        report = server.wait_for_report(server.assign(MODEL, release), timeout_s=60)
        assert report.serving_release == release
        said = served(agent)
        assert said["digest"] == server.models[MODEL][release].digest
        assert said["digest_matches"] is True
    maps = Path(f"/proc/{json.loads((agent / 'endpoint.json').read_text())['pid']}/maps").read_text()
    assert "onnxruntime" in maps
    assert "/torch/" not in maps
    assert str(bare.parent) in maps
    assert f"{agent}/models/{MODEL}/releases/" in maps
