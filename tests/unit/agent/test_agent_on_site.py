"""The commands of whoever stands beside a device, on an agent that runs and on a folder where none does."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import tiny_onnx
from one_device import MODEL, OneDevice, in_a_thread, one_device

from sprat_client.agent import control
from sprat_client.agent.commands import main
from sprat_client.agent.control import SOCKET_FILE, give_order
from sprat_client.agent.durable import PosixDisk
from sprat_client.agent.events import EVENTS_FILE, EventLog, follow_events, read_events
from sprat_client.agent.journal import Journal
from sprat_client.agent.loop import Agent
from sprat_client.agent.on_site import as_owner
from sprat_shared.errors import InvalidInput, TryLater
from sprat_shared.protocol.report import Outcome


@pytest.fixture
def device(tmp_path: Path) -> Iterator[OneDevice]:
    """A device that runs release 2 and holds release 1."""
    with one_device(tmp_path) as device:
        first = device.server.models[MODEL][1]
        device.server.add_release(MODEL, tiny_onnx.nudged(first.weights, 2), base=1)
        assert device.take(2)[0] == 0
        yield device


def running(device: OneDevice, **changes: Any) -> AbstractContextManager[Agent]:
    return in_a_thread(device.agent(**changes))


def said(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> Any:
    capsys.readouterr()
    assert main([*map(str, arguments), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_a_rollback_goes_to_the_other_release_and_stays_until_a_newer_assignment(
    device: OneDevice, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(device, poll_interval_s=0.05):
        assert said(capsys, "rollback", MODEL, "--dir", device.folder) == {"model": MODEL, "release": 1}
        report = next(iter(device.server.devices.values())).reports
        end = time.monotonic() + 10
        while report[-1].outcome is not Outcome.ROLLED_BACK and time.monotonic() < end:
            time.sleep(0.01)
        assert (report[-1].outcome, report[-1].error_code) == (Outcome.ROLLED_BACK, "operator.rolled-back")
        assert (report[-1].release, report[-1].serving_release) == (2, 1)
        time.sleep(0.3)  # some polls, with the standing assignment
    assert device.serves() == 1
    assert device.take(2)[1].outcome is Outcome.COMMITTED
    assert device.serves() == 2


def test_a_rollback_works_where_no_agent_runs_and_is_reported_later(
    device: OneDevice, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(capsys, "rollback", MODEL, "--dir", device.folder)["release"] == 1
    assert said(capsys, "status", "--dir", device.folder)["reports_waiting"] == 1
    with device.agent() as agent:
        agent.run(once=True)
    assert next(iter(device.server.devices.values())).reports[-1].outcome is Outcome.ROLLED_BACK
    assert device.serves() == 1
    assert said(capsys, "rollback", MODEL, "--dir", device.folder, code=73)["error"]["code"] == "agent.nothing-held"
    assert said(capsys, "rollback", "other", "--dir", device.folder, code=66)["error"]["detail"].endswith(MODEL)


def test_a_pause_holds_back_updates_and_no_polls(device: OneDevice, capsys: pytest.CaptureFixture[str]) -> None:
    with running(device, poll_interval_s=0.05):
        assert said(capsys, "pause", "--for", "2h", "--dir", device.folder)["paused"].startswith("until 2")
        assignment = device.server.assign(MODEL, 1)
        polls = len(device.server.requests)
        end = time.monotonic() + 10
        while said(capsys, "status", "--dir", device.folder)["models"][MODEL]["assignment"] != assignment:
            assert time.monotonic() < end
        assert len(device.server.requests) > polls
        assert said(capsys, "status", "--dir", device.folder)["paused"].startswith("until 2")
        assert said(capsys, "resume", "--dir", device.folder) == {"paused": "no"}
    assert said(capsys, "pause", "--dir", device.folder) == {"paused": "until resumed"}
    assert Journal(device.folder / "journal.json", PosixDisk()).paused_until is not None
    assert said(capsys, "resume", "--dir", device.folder) == {"paused": "no"}
    assert Journal(device.folder / "journal.json", PosixDisk()).paused_until is None


def test_events_tell_what_happened_and_follow_what_happens(
    device: OneDevice, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["events", "--dir", str(device.folder), "--json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    states = [event["state"] for event in events if event["event"] == "state" and event["release"] == 2]
    assert states == ["fetching", "verifying", "rebuilding", "ready", "validating", "trial", "idle"]
    assert [event["release"] for event in events if event["event"] == "serves"] == [1, 1, 2]
    assert {"started", "assigned"} <= {event["event"] for event in events}
    following = follow_events(device.folder, every_s=0.01)
    for _ in events:
        next(following)
    EventLog(device.folder, PosixDisk(), max_bytes=100).note("torn")  # so small that the file becomes the older one
    assert next(following)["event"] == "torn"
    assert main(["events", "--dir", str(device.folder)]) == 0
    assert "torn" in capsys.readouterr().out


def test_the_log_of_events_is_bounded_and_survives_a_torn_line(tmp_path: Path) -> None:
    (tmp_path / EVENTS_FILE).write_bytes(b'{"event": "whole"}\n{"event": "to')
    log = EventLog(tmp_path, PosixDisk(), max_bytes=2000)
    log.note("after")
    assert [event["event"] for event in read_events(tmp_path)] == ["whole", "after"]
    for number in range(200):
        log.note("many", number=number)
    assert sum(file.stat().st_size for file in tmp_path.glob("events*")) <= 4000
    assert read_events(tmp_path)[-1]["number"] == 199
    (tmp_path / EVENTS_FILE).unlink()
    (tmp_path / EVENTS_FILE).mkdir()  # a disk that takes nothing stops nothing
    EventLog(tmp_path, PosixDisk()).note("lost")


def test_the_owner_says_what_the_device_is_like(device: OneDevice, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "facts", "--metered", "yes", "--idle", "no", "--dir", device.folder)["metered"] == "yes"
    assert said(capsys, "facts", "--dir", device.folder)["idle"] == "no"
    assert said(capsys, "facts", "--metered", "unknown", "--dir", device.folder)["metered"] == "unknown"
    assert json.loads((device.folder / "facts.json").read_text()) == {"idle": False}


def test_attributes_are_told_when_they_change_and_only_then(
    device: OneDevice, capsys: pytest.CaptureFixture[str]
) -> None:
    server = device.server
    told = next(iter(server.devices.values())).facts
    with device.agent() as agent:
        agent.run(once=True)
    assert told == []  # they were said at enrolment
    with running(device):
        said(capsys, "facts", "--attribute", "camera=imx219", "--attribute", "bay=4", "--dir", device.folder)
        with server.reported:
            server.reported.wait_for(lambda: told, 20)
    assert told[0].attributes.items() >= {("camera", "imx219"), ("bay", "4")}
    assert "machine" in told[0].attributes
    shown = said(capsys, "facts", "--attribute", "bay-", "--metered", "yes", "--dir", device.folder)
    assert (shown["attributes"], shown["metered"]) == ({"camera": "imx219"}, "yes")
    for _ in range(2):
        with device.agent() as agent:
            agent.run(once=True)
    assert [("bay" in one.attributes) for one in told] == [True, False]


def test_what_a_command_is_writing_beside_the_agent_is_not_tidied_away(device: OneDevice) -> None:
    written = device.folder / ".facts.json.new"
    written.write_text("{}")
    left_by_a_cut = device.folder / ".journal.json.new"
    left_by_a_cut.write_text("{}")
    with device.agent() as agent:
        agent.run(once=True)
    assert written.exists()
    assert not left_by_a_cut.exists()


@pytest.mark.parametrize("wrong", ["camera", "=imx219", "camera=", "-", "camera=" + "x" * 401])
def test_an_attribute_that_makes_no_sense_is_refused(
    device: OneDevice, wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["facts", f"--attribute={wrong}", "--dir", str(device.folder)])
    assert "--attribute" in capsys.readouterr().err


def test_a_doctor_finds_nothing_bad_on_a_healthy_device(device: OneDevice, capsys: pytest.CaptureFixture[str]) -> None:
    with running(device, port=0):
        checks = said(capsys, "doctor", "--dir", device.folder)["checks"]
    found = {check["check"]: check["level"] for check in checks}
    assert found == {
        "enrolled": "ok",
        "folder": "ok",
        "space": "ok",
        "server": "ok",
        "tls": "warn",
        "clock": "ok",
        "trust": "ok",
        "model": "ok",
        "holdout": "ok",
        "endpoint": "ok",
    }


def test_a_doctor_says_what_is_bad_and_what_to_do(
    device: OneDevice, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hooks").mkdir()
    for name in ("trial", "trail"):
        (tmp_path / "hooks" / name).write_text("#!/bin/sh\n")
    for file in filter(Path.is_file, (device.folder / "store").rglob("*")):
        file.chmod(0o600)
        file.write_bytes(bytes(file.stat().st_size))
    device.folder.chmod(0o755)
    arguments = ["doctor", "--dir", device.folder, "--holdout", f"{MODEL}=/nowhere.npz", "--hooks", tmp_path / "hooks"]
    main(["relocate", "--dir", str(device.folder), "--server", "http://127.0.0.1:9"])
    checks = said(capsys, *arguments, code=1)["checks"]
    bad = {check["check"] for check in checks if check["level"] == "bad"}
    assert bad >= {"folder", "server", "model", "holdout"}
    assert sum(check["check"] == "hooks" and check["level"] == "warn" for check in checks) == 2
    assert all(check["todo"] for check in checks if check["level"] == "bad")
    assert main(list(map(str, arguments))) == 1
    assert "bad  server" in capsys.readouterr().out
    assert main(["doctor", "--dir", str(tmp_path / "nothing")]) == 1
    assert "sprat-agent enrol" in capsys.readouterr().out


def test_a_hook_after_a_state_hears_what_ended_it(tmp_path: Path) -> None:
    (tmp_path / "hooks").mkdir()
    hook = tmp_path / "hooks" / "trial.after"
    hook.write_text(
        f'#!/bin/sh\necho "$SPRAT_STATE $SPRAT_EVENT $SPRAT_MODEL $SPRAT_RELEASE" >> {tmp_path}/heard\nfalse\n'
    )
    hook.chmod(0o700)
    with one_device(tmp_path) as device:
        assert device.take(1, hooks=tmp_path / "hooks")[0] == 0
        device.server.add_release(MODEL, tiny_onnx.nudged(device.server.models[MODEL][1].weights, 2), base=1)
        assert device.take(2, hooks=tmp_path / "hooks")[0] == 0  # it cannot veto
    assert (tmp_path / "heard").read_text() == f"trial healthy {MODEL} 2\n"


def test_an_agent_starts_cleanly_after_an_unclean_end(device: OneDevice, capsys: pytest.CaptureFixture[str]) -> None:
    (device.folder / "endpoint.json").write_text('{"url": "http://127.0.0.1:9", "pid": 1}')
    (device.folder / ".journal.json.new").write_bytes(b"torn")
    (device.folder / SOCKET_FILE).write_bytes(b"")
    assert said(capsys, "status", "--dir", device.folder)["endpoint"] is None
    with running(device, port=0) as agent:
        assert said(capsys, "status", "--dir", device.folder)["endpoint"] == agent.url
        assert give_order(device.folder, {"do": "look"}) == {}
    assert not (device.folder / "endpoint.json").exists()
    assert not (device.folder / SOCKET_FILE).exists()


def test_orders_that_make_no_sense_are_refused_by_name(device: OneDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(device):
        with pytest.raises(InvalidInput, match="no such order: 'dance'"):
            give_order(device.folder, {"do": "dance"})
        assert (device.folder / SOCKET_FILE).stat().st_mode & 0o777 == 0o600
    with device.agent():  # it runs and its thread does something else
        monkeypatch.setattr(control, "_PATIENCE_S", 0.05)
        with pytest.raises(TryLater, match="busy"):
            give_order(device.folder, {"do": "look"})
    assert give_order(device.folder, {"do": "look"}) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_root_writes_as_the_folder_s_owner(tmp_path: Path) -> None:
    folder = tmp_path / "private" / "agent"
    folder.mkdir(parents=True, mode=0o700)
    os.chown(folder, 10002, 10002)
    code = f"""
from pathlib import Path
from sprat_client.agent.on_site import as_owner
(as_owner(Path({str(folder)!r})) / "facts.json").write_text("")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (folder / "facts.json").stat().st_uid == 10002
    assert as_owner(tmp_path) == tmp_path
