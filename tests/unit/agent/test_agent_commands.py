"""The command line: every command says what it does with an example, and how it ends in its exit code."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_onnx
from device_server import ENROLMENT_TOKEN, DeviceServer
from one_device import INPUTS, LABELS, MODEL

from sprat_client.agent import commands
from sprat_client.agent.commands import main
from sprat_client.agent.settings import AgentSettings, GuardSettings
from sprat_shared.errors import InvalidInput

COMMANDS = ["enrol", "run", "status", "infer", "tuf"]


def sprat_agent(*arguments: object) -> subprocess.CompletedProcess[str]:
    code = "import sys; from sprat_client.agent import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def server() -> DeviceServer:
    server = DeviceServer()
    server.add_release(MODEL, tiny_onnx.weights(1))
    return server


@pytest.fixture
def url(server: DeviceServer) -> Iterator[str]:
    with server.running() as url:
        yield url


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example_and_its_exit_codes(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert any(f"sprat-agent {command} --{first}" in said for first in ("dir", "server", "metadata-dir"))
    assert "exit codes:" in said


def test_the_help_names_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert all(f"    {command} " in said for command in COMMANDS)


def test_a_device_goes_from_enrolment_to_an_answer(server: DeviceServer, url: str, tmp_path: Path) -> None:
    folder, samples = tmp_path / "device", tmp_path / "samples.npz"
    np.savez(samples, inputs=INPUTS, labels=LABELS)
    enrolled = sprat_agent("enrol", "--server", url, "--token", ENROLMENT_TOKEN, "--dir", folder, "--json")
    assert enrolled.returncode == 0
    assert json.loads(enrolled.stdout)["dir"] == str(folder)
    server.assign(MODEL, 1)
    ran = sprat_agent("run", "--dir", folder, "--once", "--holdout", f"{MODEL}={samples}", "--trial-s", "0.01")
    assert ran.returncode == 0, ran.stderr
    lines = [json.loads(line) for line in ran.stderr.splitlines()]
    states = [line["state"] for line in lines if line["message"] == "state"]
    assert states == ["fetching", "verifying", "rebuilding", "ready", "validating", "trial", "idle"]
    status = sprat_agent("status", "--dir", folder, "--json")
    said = json.loads(status.stdout)
    assert said["models"][MODEL]["active"]["release"] == 1
    assert said["running"] is False
    asked = sprat_agent("infer", "--dir", folder, "--model", MODEL, "--inputs", samples)
    assert asked.returncode == 66
    assert "no agent runs" in asked.stderr


def test_a_folder_that_is_not_enrolled_is_said_so_in_words_and_in_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path.mkdir(exist_ok=True)
    assert main(["status", "--dir", str(tmp_path), "--json"]) == 66
    said = capsys.readouterr()
    assert json.loads(said.out)["error"]["code"] == "agent.not-enrolled"
    assert "sprat-agent enrol" in said.err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["enrol", "--server", "http://example.org", "--token", "t"], 65, "plain HTTP"),
        (["enrol", "--server", "http://127.0.0.1:9", "--token", "t"], 75, "no answer"),
        (["run", "--holdout", "tiny=/nowhere"], 65, "no such file"),
        (["run", "--hooks", "/nowhere"], 65, "no such folder"),
        (["infer", "--model", "tiny", "--inputs", "/nowhere.npz"], 65, "/nowhere.npz"),
    ],
)
def test_bad_arguments_are_said_with_what_to_do(
    arguments: list[str], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--dir", str(tmp_path / "device")]) == code
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["run", "--holdout", "tiny"], ["run", "--holdout", "Tiny=/tmp"], ["run", "--trial-s", "-1"], []]
)
def test_a_wrong_command_line_ends_with_two(arguments: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--dir", str(tmp_path)])
    assert ended.value.code == 2


def test_a_wrong_token_ends_with_77(url: str, tmp_path: Path) -> None:
    assert main(["enrol", "--server", url, "--token", "guess", "--dir", str(tmp_path / "device")]) == 77


def test_importing_the_agent_loads_nothing_heavy() -> None:
    code = "import sys, sprat_client.agent.commands; print(*sorted(sys.modules))"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "httpx", "tuf", "onnxruntime", "torch", "typer", "uvicorn", "cryptography"} & set(modules)


def test_an_agent_loads_numpy_with_its_first_model_and_not_before() -> None:
    code = "import sys, sprat_client.agent.loop; print(*sorted(sys.modules))"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"jwt", "numpy", "onnxruntime", "uvicorn"} & set(modules)
    assert not {"sprat_client.agent.site.running", "sprat_shared.tasks.graph"} & set(modules), "with its first plan"


def test_a_running_agent_loads_neither_torch_nor_typer() -> None:
    code = "import sys, sprat_client.agent.loop, sprat_client.agent.rebuild; print(*sorted(sys.modules))"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "typer", "pydantic", "sqlalchemy", "onnx", "safetensors"} & set(modules)


def test_a_rebuild_with_denormals_flushed_is_refused_by_name(tmp_path: Path) -> None:
    code = f"""
import torch
torch.set_flush_denormal(True)
from pathlib import Path
from sprat_client.agent.durable import PosixDisk
from sprat_client.agent.rebuild import rebuild
from sprat_client.agent.store import TensorStore
from sprat_shared.errors import UnsafeArithmetic
try:
    rebuild(TensorStore(Path({str(tmp_path)!r}), PosixDisk()), None, [])
except UnsafeArithmetic as bad:
    print(bad.code)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "arithmetic.unsafe"


def test_the_status_for_people_has_one_line_for_each_model(capsys: pytest.CaptureFixture[str]) -> None:
    slot = {"release": 2, "release_id": "sha256:b54a", "weights": "sha256:80636cacd0c2f435"}
    models = {
        name: {"state": "idle", "active": {**slot, "local": local}, "previous": None, "refused": []}
        for name, local in (("gate", []), ("lid", ["norm.running_mean", "norm.running_var"]))
    }
    commands._emit({"device": "x", "models": models}, as_json=False)
    assert capsys.readouterr().out.splitlines() == [
        "device           x",
        "models gate      state idle  active release 2 (80636cacd0c2)",
        "models lid       state idle  active release 2 (80636cacd0c2, 2 local tensors)",
    ]


def test_how_a_release_that_shares_is_guarded_is_said_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []

    def no_agent(settings: AgentSettings, **_: object) -> None:
        seen.append(settings.guard)
        raise InvalidInput("it is not run")

    monkeypatch.setattr("sprat_client.agent.loop.Agent", no_agent)
    assert main(["run", "--dir", str(tmp_path)]) == 65
    assert main(["run", "--dir", str(tmp_path), "--guard-every", "0", "--guard-idle-s", "0.5"]) == 65
    assert seen == [GuardSettings(), replace(GuardSettings(), every=0, idle_s=0.5)]
    for option, wrong in (("--guard-every", "-1"), ("--guard-every", "x"), ("--guard-idle-s", "0")):
        with pytest.raises(SystemExit):
            main(["run", "--dir", str(tmp_path), option, wrong])
        assert option in capsys.readouterr().err
