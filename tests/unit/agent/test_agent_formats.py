"""Each file of the agent says its format: an older one is read, a newer one is refused by name and left as it is."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_onnx
from one_device import MODEL, OneDevice, one_device, release_of

from sprat_client.agent.commands import main
from sprat_client.agent.formats import NewerFormat
from sprat_client.agent.states import State
from sprat_shared.protocol.report import Outcome

Change = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.fixture
def device(tmp_path: Path) -> Iterator[OneDevice]:
    with one_device(tmp_path) as device:
        device.server.add_release(MODEL, tiny_onnx.nudged(device.server.models[MODEL][1].weights, 2), base=1)
        yield device


def files(device: OneDevice) -> dict[str, Path]:
    return {
        "agent.json": device.folder / "agent.json",
        "journal.json": device.folder / "journal.json",
        "slots.json": device.folder / "models" / MODEL / "slots.json",
        "manifest.json": next((device.folder / "models" / MODEL / "releases").glob("*/manifest.json")),
    }


def contents(folder: Path) -> dict[Path, bytes]:
    """Return all files but locks."""
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file() and file.suffix != ".lock"}


def rewrite(path: Path, change: Change) -> None:
    path.chmod(0o600)
    path.write_text(json.dumps(change(json.loads(path.read_bytes()))))


@pytest.mark.parametrize("name", ["agent.json", "journal.json", "slots.json", "manifest.json"])
def test_a_file_of_a_newer_agent_is_refused_by_name_and_nothing_is_changed(
    device: OneDevice, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    path = files(device)[name]
    rewrite(path, lambda value: {**value, "format": 9})
    before = contents(device.folder)
    with pytest.raises(NewerFormat, match=rf"{name}: format 9; this agent reads up to \d: install a newer agent"):
        device.agent().__enter__()
    assert main(["run", "--dir", str(device.folder), "--once"]) == 78
    assert name in capsys.readouterr().err
    assert contents(device.folder) == before


def test_a_report_of_a_newer_agent_waits(device: OneDevice) -> None:
    device.server.assign(MODEL, 2)
    with device.agent() as agent:
        deliver, agent._deliver = agent._deliver, lambda: None  # type: ignore[method-assign]
        while not (agent._machines[MODEL].settled and agent._machines[MODEL].idle):
            agent.turn()
        report = next((device.folder / "outbox").iterdir())
        rewrite(report, lambda value: {**value, "format": 9})
        deliver()
        assert report.exists()
        rewrite(report, lambda value: {**value, "format": 1})
        deliver()
        assert not report.exists()


# What the release before this one wrote, made from what is written today.


def journal_of_0_1(value: dict[str, Any]) -> dict[str, Any]:
    """Return the journal of format 1."""

    def wish(now: dict[str, Any] | None) -> dict[str, Any] | None:
        return now and {name: now[name] for name in now if name not in {"prefetch", "policy"}}

    def model(now: dict[str, Any]) -> dict[str, Any]:
        work = now["work"]
        known = ("started_at", "steps", "release_id", "graph", "back_to", "reason", "validated", "received_bytes")
        then = work and {**{name: work[name] for name in known}, "wish": wish(work["wish"]), "evidence": None}
        kept = ("state", "highest_assignment", "resumes", "trial_cuts")
        refused = [{name: one[name] for name in ("assignment", "release", "code")} for one in now["refused"]]
        return {
            **{name: now[name] for name in kept},
            "pending": wish(now["pending"]),
            "work": then,
            "refused": refused,
        }

    models = {name: model(now) for name, now in value["models"].items()}
    return {name: value[name] for name in ("sequence", "trust", "unsent")} | {"models": models, "format": 1}


def as_0_1(device: OneDevice) -> None:
    """Make the folder what an agent of the release before would have left."""
    for name, path in files(device).items():
        rewrite(path, journal_of_0_1 if name == "journal.json" else lambda value: value)
    for path in [files(device)["slots.json"], *(device.folder / "models").rglob("manifest.json")]:
        rewrite(path, lambda value: {name: value[name] for name in value if name not in {"format", "shares"}})
    (device.folder / "stopped.json").unlink(missing_ok=True)


@pytest.mark.parametrize("state", [State.FETCHING, State.REBUILDING, State.TRIAL, State.ROLLING_BACK])
def test_an_update_that_the_agent_before_this_one_began_is_finished(device: OneDevice, state: State) -> None:
    device.server.inline = False
    if state is State.ROLLING_BACK:
        assert device.take(2)[0] == 0
    assignment = device.server.assign(MODEL, 1 if state is State.ROLLING_BACK else 2)
    with device.agent(trial_s=60.0) as agent:
        enter = agent._machines[MODEL].progress.enter

        class Ends(Exception):
            """The agent before this one ended here."""

        def until(*event: Any, **how: Any) -> None:
            enter(*event, **how)
            if agent._machines[MODEL].record.state is state:
                raise Ends

        agent._machines[MODEL].progress.enter = until  # type: ignore[method-assign]
        with pytest.raises(Ends):
            agent.run()
    as_0_1(device)
    with device.agent() as agent:
        assert agent.run(once=True) == 0
        assert release_of(agent, device.server) == (1 if state is State.ROLLING_BACK else 2)
    outcome = Outcome.RETURNED if state is State.ROLLING_BACK else Outcome.COMMITTED
    assert device.server.wait_for_report(assignment).outcome is outcome
