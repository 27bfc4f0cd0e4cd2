"""The page for applications does what it says: each of its examples is run against a real agent."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from one_device import INPUTS, LABELS, MODEL, one_device

from sprat_client.agent import Agent, Endpoint
from sprat_client.agent.http_endpoint import _MAX_BODY_BYTES, _MAX_ERROR_BYTES, _MAX_SAMPLES_BYTES
from sprat_client.agent.settings import HoldoutSettings

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "applications.md").read_text(encoding="utf-8")


def examples(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    with one_device(tmp_path) as device, device.agent(port=0, holdouts={}) as agent:
        yield agent


def test_the_python_examples_run(agent: Agent, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {"folder": tmp_path / "device", "batch": INPUTS, "labels": LABELS}
    for example in examples("python"):
        exec(example, names)
    assert capsys.readouterr().out == "answered by release 1\n"
    assert names["kept"] == len(LABELS)
    assert agent._shop.servings.of(MODEL).reported == 1
    endpoint = names["endpoint"]
    assert isinstance(endpoint, Endpoint)
    endpoint.close()


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_the_http_examples_run(agent: Agent) -> None:
    (script,) = examples("sh")
    given = {"URL": agent.url, "BATCH": json.dumps(INPUTS[:2].tolist()), "LABELS": json.dumps(LABELS[:2].tolist())}
    done = subprocess.run(
        ["bash", "-eu", "-c", script], env={**os.environ, **given}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert '"kept": 2' in done.stdout
    assert "sprat_agent_requests_total" in done.stdout


def test_the_bounds_on_the_page_are_those_of_the_code() -> None:
    for bound in (
        f"inference {_MAX_BODY_BYTES >> 20} MiB",
        f"samples {_MAX_SAMPLES_BYTES >> 20} MiB",
        f"errors {_MAX_ERROR_BYTES >> 10} KiB",
        f"{HoldoutSettings().most_samples:,} samples and {HoldoutSettings().most_bytes >> 20} MiB",
    ):
        assert bound in PAGE, bound
