"""Downloads that are cut, moved, paused, bounded and given up: no byte twice, and no poll missed for one."""

import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import tiny_onnx
from demo.fault_proxy import FaultProxy
from device_server import ENROLMENT_TOKEN, DeviceServer
from one_device import MODEL, agent_on, in_a_thread

from sprat_client.agent.budget import BUDGET_FILE, ByteBudget, read_spent
from sprat_client.agent.control import give_order
from sprat_client.agent.durable import PosixDisk
from sprat_client.agent.enrol import enrol
from sprat_client.agent.loop import Agent
from sprat_client.agent.relocate import relocate
from sprat_client.agent.settings import LinkSettings
from sprat_shared.protocol.report import Outcome
from sprat_shared.trust.policy import DevicePolicy, Wanted

HIDDEN = 12_000  # of a model whose full update is some 700 kB: too large for a poll's answer
LINK = LinkSettings(backoff_s=0.01, backoff_max_s=0.05, idle_timeout_s=5.0)


class Killed(BaseException):
    """The process is gone."""


class Fleet:
    """A server with releases of a large model, and a device enrolled over a bad link."""

    def __init__(self, folder: Path, server: DeviceServer, proxy: FaultProxy) -> None:
        self.server, self.proxy, self.folder = server, proxy, folder / "device"
        enrol(self.folder, PosixDisk(), server_url=proxy.url, token=ENROLMENT_TOKEN, name="gate-7")
        self.payload = server.models[MODEL][1].full

    def agent(self, **changes: Any) -> Agent:
        return agent_on(self.folder, link=LINK, **changes)

    def let_director_say(self, policy: DevicePolicy) -> None:
        self.server.says = lambda assigned: replace(assigned, policy=policy)
        for device in self.server.devices.values():
            device.assigned.clear()

    def blob_requests(self) -> list[str]:
        """Return the ranges asked of blobs, empty for a whole one, without what was asked of the graph."""
        name = next(path for _, path, _ in self.server.requests if path.startswith("/blobs/"))
        return [headers.get("Range", "") for _, path, headers in self.server.requests if path == name]


@pytest.fixture(scope="module")
def releases() -> DeviceServer:
    """A server of which only the releases are used: making them takes seconds."""
    server = DeviceServer()
    graph = tiny_onnx.graph(hidden=HIDDEN)
    for seed in (1, 2):
        server.add_release(MODEL, tiny_onnx.weights(seed, hidden=HIDDEN), graph=graph)
    return server


@pytest.fixture
def fleet(releases: DeviceServer, tmp_path: Path) -> Iterator[Fleet]:
    server = DeviceServer()
    server.repository, server.blobs, server.models = releases.repository, releases.blobs, releases.models
    with server.running() as url, FaultProxy(("127.0.0.1", int(url.rpartition(":")[2]))) as proxy:
        yield Fleet(tmp_path, server, proxy)


def wait_until(holds: Callable[[], object], timeout_s: float = 20.0) -> None:
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def waits_for(agent: Agent) -> str | None:
    work = agent._machines[MODEL].record.work
    return None if work is None else work.waiting


def test_twenty_cuts_and_three_kills_cost_less_than_a_twentieth_of_the_file(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    count = ByteBudget.count

    def counting(budget: ByteBudget, size: int) -> None:
        counted.append(size)
        count(budget, size)

    monkeypatch.setattr(ByteBudget, "count", counting)  # every body byte that HTTP gave, whatever became of it
    draw, length = random.Random(7), len(fleet.payload)
    fleet.proxy.cut_after(*draw.sample(range(5000, length), 17))
    kills = sorted(draw.sample(range(length // 20, length), 3))
    fleet.server.assign(MODEL, 1)

    def kill() -> bool:
        if kills and sum(counted) >= kills[0]:
            kills.pop(0)
            raise Killed
        return False

    code = None
    while code is None:
        with fleet.agent() as agent:
            agent._shop.meanwhile = kill
            try:
                code = agent.run(once=True)
            except Killed:
                continue
    assert code == 0
    assert (fleet.proxy.log.cuts, kills) == (17, [])
    assert length > 500_000
    assert length <= sum(counted) <= 1.05 * length


def test_a_device_is_moved_to_another_address_and_keeps_its_half_download(fleet: Fleet) -> None:
    assignment = fleet.server.assign(MODEL, 1)
    fleet.proxy.cut_after(len(fleet.payload) // 2)
    with fleet.server.running() as elsewhere, in_a_thread(fleet.agent()):
        wait_until(lambda: fleet.proxy.log.cuts)
        fleet.proxy.set_down(down=True)  # the old address is gone for good
        relocate(fleet.folder, PosixDisk(), server_url=elsewhere)
        assert fleet.server.wait_for_report(assignment).outcome is Outcome.COMMITTED
    assert fleet.blob_requests()[-1].startswith("bytes=")
    assert not fleet.blob_requests()[-1].startswith("bytes=0-")


def test_a_rollout_that_is_aborted_ends_the_download_at_the_next_poll(fleet: Fleet) -> None:
    fleet.server.assign(MODEL, 1)
    with fleet.agent() as agent:
        assert agent.run(once=True) == 0
    fleet.proxy.bytes_per_s = 100_000
    fleet.server.assign(MODEL, 2)
    with in_a_thread(fleet.agent(poll_interval_s=0.5)):
        wait_until(lambda: len(list((fleet.folder / "downloads").glob("*"))))
        back = fleet.server.assign(MODEL, 1)
        part = next((fleet.folder / "downloads").iterdir())
        report = fleet.server.wait_for_report(back, timeout_s=5.0)
        assert report.outcome is Outcome.COMMITTED
        assert not part.exists() or part.stat().st_size < len(fleet.payload) // 2
    assert fleet.proxy.log.bytes_down < 1.7 * len(fleet.payload)


def test_a_newer_assignment_of_the_same_release_goes_on_with_the_same_download(fleet: Fleet) -> None:
    fleet.proxy.bytes_per_s = 300_000
    fleet.server.assign(MODEL, 1)
    with in_a_thread(fleet.agent(poll_interval_s=0.2)):
        wait_until(lambda: len(list((fleet.folder / "downloads").glob("*"))))
        again = fleet.server.assign(MODEL, 1)
        report = fleet.server.wait_for_report(again)
    assert report.outcome is Outcome.COMMITTED
    assert report.received_bytes < 1.05 * len(fleet.payload) + 2000


def test_a_pause_is_obeyed_within_a_download_and_a_resume_at_once(fleet: Fleet) -> None:
    fleet.proxy.bytes_per_s = 300_000
    assignment = fleet.server.assign(MODEL, 1)
    with in_a_thread(fleet.agent()) as agent:
        wait_until(lambda: len(list((fleet.folder / "downloads").glob("*"))))
        give_order(fleet.folder, {"do": "pause", "until": time.time() + 3600})
        wait_until(lambda: waits_for(agent))
        part = next((fleet.folder / "downloads").iterdir())
        size = part.stat().st_size
        assert 0 < size < len(fleet.payload)
        time.sleep(0.3)
        assert part.stat().st_size == size
        fleet.proxy.bytes_per_s = None
        give_order(fleet.folder, {"do": "resume"})
        assert fleet.server.wait_for_report(assignment, timeout_s=10.0).outcome is Outcome.COMMITTED


def test_a_condition_that_ends_within_a_download_ends_it(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sprat_client.agent.giving_way._LOOK_EVERY_S", 0.1)
    fleet.let_director_say(DevicePolicy(fetch=Wanted(unmetered=True)))
    fleet.proxy.bytes_per_s = 300_000
    assignment = fleet.server.assign(MODEL, 1)
    with in_a_thread(fleet.agent()) as agent:
        wait_until(lambda: len(list((fleet.folder / "downloads").glob("*"))))
        (fleet.folder / "facts.json").write_text(json.dumps({"metered": True}))
        wait_until(lambda: waits_for(agent) == "the link is metered")
        assert next((fleet.folder / "downloads").iterdir()).stat().st_size < len(fleet.payload)
        (fleet.folder / "facts.json").write_text(json.dumps({"metered": False}))
        give_order(fleet.folder, {"do": "look"})
        assert fleet.server.wait_for_report(assignment).outcome is Outcome.COMMITTED


@pytest.mark.parametrize("facts", [{"metered": True}, {"charging": False}, {"idle": False}])
def test_run_once_says_what_it_waits_for_and_ends_with_75(
    fleet: Fleet, facts: dict[str, bool], capsys: pytest.CaptureFixture[str]
) -> None:
    fleet.let_director_say(DevicePolicy(fetch=Wanted(unmetered=True, charging=True, idle=True)))
    (fleet.folder / "facts.json").write_text(json.dumps({"metered": False, "charging": True, "idle": True, **facts}))
    fleet.server.assign(MODEL, 1)
    with fleet.agent() as agent:
        assert agent.run(once=True) == 75
    assert f"sprat-agent: {MODEL} waits: the " in capsys.readouterr().err
    assert not list((fleet.folder / "downloads").glob("*"))


def test_a_release_that_may_not_be_activated_is_fetched_and_waits(
    fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet.let_director_say(DevicePolicy(activate=Wanted(charging=True)))
    (fleet.folder / "facts.json").write_text(json.dumps({"charging": False}))
    assignment = fleet.server.assign(MODEL, 1)
    with fleet.agent() as agent:
        assert agent.run(once=True) == 75
    assert "runs on its battery" in capsys.readouterr().err
    asked = len(fleet.server.requests)
    (fleet.folder / "facts.json").write_text(json.dumps({"charging": True}))
    with fleet.agent() as agent:
        assert agent.run(once=True) == 0
    assert fleet.server.wait_for_report(assignment).outcome is Outcome.COMMITTED
    assert not [path for _, path, _ in fleet.server.requests[asked:] if path.startswith("/blobs/")]


def test_no_more_bytes_are_read_in_a_day_than_the_policy_allows(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    daily = len(fleet.payload) // 2
    fleet.let_director_say(DevicePolicy(daily_bytes=daily))
    now = datetime.now(UTC).replace(hour=9)
    monkeypatch.setattr("sprat_client.agent.trust.clock.Clock.now", lambda _: now)
    fleet.server.assign(MODEL, 1)
    for _ in range(2):  # the count outlives the process
        with fleet.agent() as agent:
            assert agent.run(once=True) == 75
        spent = read_spent(fleet.folder / BUDGET_FILE, PosixDisk(), now)
        assert 0.97 * daily < spent < daily + 4096  # polls are counted and never blocked
        assert fleet.server.blob_bytes_sent <= daily  # not a byte is sent for nothing
        assert "the bytes that may be read" in capsys.readouterr().err.replace(f"{daily} ", "")
    code, days = 75, 0
    while code == 75 and days < 3:
        now, days = now + timedelta(days=1), days + 1
        with fleet.agent() as agent:
            code = agent.run(once=True)
    assert code == 0
    assert fleet.server.blob_bytes_sent < 1.01 * len(fleet.payload) + 2000


def test_a_day_s_count_survives_a_kill_and_may_only_be_too_high(tmp_path: Path) -> None:
    day = datetime(2026, 11, 29, 12, tzinfo=UTC)
    budget = ByteBudget(tmp_path / BUDGET_FILE, PosixDisk(), lambda: day)
    assert budget.left(100_000) == 100_000
    for _ in range(7):
        budget.count(1000)
    assert budget.left(100_000) == 93_000
    killed = ByteBudget(tmp_path / BUDGET_FILE, PosixDisk(), lambda: day)
    assert 7000 <= killed.spent() <= 7000 + 4096
    budget.close()
    assert ByteBudget(tmp_path / BUDGET_FILE, PosixDisk(), lambda: day).spent() == 7000
    later = ByteBudget(tmp_path / BUDGET_FILE, PosixDisk(), lambda: day + timedelta(hours=13))
    assert (later.spent(), later.day_ends_in_s()) == (0, 23 * 3600)
