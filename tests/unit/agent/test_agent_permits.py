"""Whether an update may be worked on: pauses, windows, and what the device says of itself."""

import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sprat_client.agent.desired import Desired
from sprat_client.agent.durable import PosixDisk
from sprat_client.agent.facts import DeviceFacts
from sprat_client.agent.journal import Journal
from sprat_client.agent.permits import Permits
from sprat_shared.trust.policy import DevicePolicy, Wanted, Window
from sprat_shared.trust.windows import is_open

MONDAY = datetime(2026, 11, 30, tzinfo=UTC)
NIGHT = Window(start=22 * 60, end=4 * 60, days=(0,))


@dataclass
class Told:
    metered: bool | None = None
    charging: bool | None = None
    idle: bool | None = None


def wish(policy: DevicePolicy, *, prefetch: bool = False) -> Desired:
    digest = f"sha256:{'ab' * 32}"
    return Desired(
        model="m",
        release=2,
        weights=digest,
        assignment=1,
        graph="g",
        path=(),
        full="f",
        prefetch=prefetch,
        policy=policy,
    )


@pytest.mark.parametrize(
    ("hour", "day", "opened"),
    [(21, 0, False), (22, 0, True), (23, 1, False), (3, 1, True), (4, 1, False), (3, 0, False)],
)
def test_a_window_over_midnight_belongs_to_the_day_on_which_it_starts(hour: int, day: int, *, opened: bool) -> None:
    assert (
        is_open(NIGHT, MONDAY.replace(hour=hour, day=30) if day == 0 else datetime(2026, 12, 1, hour, tzinfo=UTC))
        == opened
    )


def test_a_window_may_be_of_the_devices_own_time_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")  # nine hours ahead
    time.tzset()
    try:
        window = Window(start=9 * 60, end=10 * 60, local=True)
        assert is_open(window, MONDAY.replace(minute=30))
        assert not is_open(window, MONDAY.replace(hour=9, minute=30))
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("wanted", "told", "reason"),
    [
        (Wanted(unmetered=True), Told(metered=True), "the link is metered"),
        (Wanted(unmetered=True), Told(metered=None), None),
        (Wanted(charging=True), Told(charging=False), "the device runs on its battery"),
        (Wanted(idle=True), Told(idle=False), "the device is busy"),
        (Wanted(windows=(NIGHT,)), Told(), "no maintenance window is open"),
        (Wanted(unmetered=True, charging=True, idle=True), Told(metered=False, charging=True, idle=True), None),
    ],
)
def test_what_is_waited_for_is_said(tmp_path: Path, wanted: Wanted, told: Told, reason: str | None) -> None:
    permits = Permits(told, Journal(tmp_path / "journal.json", PosixDisk()), lambda: MONDAY)
    for unmet in (
        permits.fetch(wish(DevicePolicy(fetch=wanted))),
        permits.activate(wish(DevicePolicy(activate=wanted))),
    ):
        assert (None if unmet is None else unmet.reason) == reason


def test_a_paused_agent_does_nothing_until_the_pause_ends(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.json", PosixDisk())
    permits = Permits(Told(), journal, lambda: MONDAY)
    journal.pause(time.time() + 3600)
    paused = permits.fetch(wish(DevicePolicy()))
    assert paused is not None
    assert "paused" in paused.reason
    journal.pause(time.time() - 1)
    assert permits.fetch(wish(DevicePolicy())) is None


def test_a_release_assigned_ahead_is_fetched_and_waits(tmp_path: Path) -> None:
    permits = Permits(Told(), Journal(tmp_path / "journal.json", PosixDisk()), lambda: MONDAY)
    ahead = wish(DevicePolicy(), prefetch=True)
    assert permits.fetch(ahead) is None
    assert permits.activate(ahead) is not None


def test_the_owners_word_counts_before_what_the_kernel_tells(tmp_path: Path) -> None:
    supplies = tmp_path / "supplies"
    for name, kind, file, says in (("BAT0", "Battery", "status", "Discharging"), ("AC", "Mains", "online", "0")):
        (supplies / name).mkdir(parents=True)
        (supplies / name / "type").write_text(kind)
        (supplies / name / file).write_text(says)
    facts = DeviceFacts(tmp_path, supplies)
    assert (facts.metered, facts.charging) == (None, False)
    (supplies / "AC" / "online").write_text("1")
    assert facts.charging is True
    (tmp_path / "facts.json").write_text(json.dumps({"metered": True, "charging": False, "idle": True}))
    assert (facts.metered, facts.charging, facts.idle) == (True, False, True)
    (tmp_path / "facts.json").write_text("{")
    assert facts.metered is None


def test_a_device_without_a_battery_runs_on_mains(tmp_path: Path) -> None:
    (tmp_path / "supplies").mkdir()
    assert DeviceFacts(tmp_path, tmp_path / "supplies").charging is True
