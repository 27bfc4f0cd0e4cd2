"""A stuck step ends a real process by a code of its own, all stacks in its log; systemd hears of one that goes on."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sprat_client.agent.watchdog import EXIT_STUCK, Notifier, Watchdog

STUCK = """
import threading, time
from sprat_client.agent.logs import log_json_to_stderr
from sprat_client.agent.watchdog import Watchdog

def waits_for_a_dead_disk():
    {hang}

log_json_to_stderr()
with Watchdog() as watchdog:
    watchdog.step("tiny: rebuilding", 0.5)
    waits_for_a_dead_disk()
"""


def run(hang: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", STUCK.format(hang=hang)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **environment},
    )


def test_a_stuck_step_ends_the_process_and_the_log_says_where() -> None:
    done = run("threading.Event().wait(50)")
    assert done.returncode == EXIT_STUCK
    (said,) = [json.loads(line) for line in done.stderr.splitlines()]
    assert (said["message"], said["code"], said["step"]) == ("stuck", "agent.stuck", "tiny: rebuilding")
    assert 0.5 < said["after_s"] < 10
    assert any("waits_for_a_dead_disk" in line for line in said["stacks"])


def test_a_process_that_holds_the_log_is_ended_as_well() -> None:
    done = run("import logging; logging.getLogger().handlers[0].acquire(); threading.Event().wait(50)")
    assert done.returncode == EXIT_STUCK


def test_a_step_that_goes_forward_is_not_stuck() -> None:
    ended: list[int] = []
    with Watchdog(Notifier({}), ended.append) as watchdog:
        watchdog.step("fetching", 1.5)
        for _ in range(12):
            time.sleep(0.25)
            watchdog.beat()
    assert ended == []


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_hears_when_it_serves_that_it_goes_on_and_when_it_stops(tmp_path: Path, *, abstract: bool) -> None:
    name = f"\0sprat-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(name)
        systemd.settimeout(10)
        environment = {"NOTIFY_SOCKET": name.replace("\0", "@"), "WATCHDOG_USEC": "200000"}
        with Watchdog(Notifier(environment)) as watchdog:
            watchdog.step("polling", 60.0)
            watchdog.ready()
            assert systemd.recv(100) == b"READY=1"
            assert [systemd.recv(100) for _ in range(3)] == [b"WATCHDOG=1"] * 3
        while (said := systemd.recv(100)) == b"WATCHDOG=1":
            pass
        assert said == b"STOPPING=1"


def all_of(systemd: socket.socket) -> Iterator[bytes]:
    """Yield what is heard until nothing more is."""
    with contextlib.suppress(TimeoutError):
        while True:
            yield systemd.recv(2000)


def test_systemd_hears_no_more_of_a_step_that_is_stuck(tmp_path: Path) -> None:
    ended: list[int] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "100000"}
        with Watchdog(Notifier(environment), ended.append) as watchdog:
            watchdog.step("rebuilding", 0.2)
            systemd.settimeout(3)
            heard = list(all_of(systemd))
    assert ended == [EXIT_STUCK]
    assert heard.count(b"WATCHDOG=1") < 10
    assert heard[-1].startswith(b"STATUS=")


def test_a_watchdog_of_another_process_is_not_fed() -> None:
    assert Notifier({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}).interval_s is None
    assert Notifier({"WATCHDOG_USEC": "1000"}).interval_s is None
    Notifier({"NOTIFY_SOCKET": "/nowhere/to/be/found"}).say("READY=1")
