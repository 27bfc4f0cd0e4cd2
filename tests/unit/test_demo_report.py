"""The demo must not end well when a promise is broken."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from demo.report import BadRelease, DeviceResult, Report, broken_promises, versions


def good() -> Report:
    device = DeviceResult(
        name="gate-1", link="direct", digest="sha256:" + "0" * 64, digest_matches=True,
        accuracy_before=0.4, accuracy_after=0.9,
    )  # fmt: skip
    return Report(
        model_bytes=1_000_000, update_bytes=2_000, accuracy_base=0.4, accuracy_retrained=0.9, accuracy_released=0.86,
        recovered_gain=0.97, test_indices=[1, 2], devices=[device],
        bad_release=BadRelease(refused=True, devices_exposed=1, reason="it is worse"), seconds=1.0, versions=versions(),
    )  # fmt: skip


def test_a_report_that_holds_every_promise_names_none() -> None:
    assert list(broken_promises(good())) == []


def spoil_size(report: Report) -> None:
    report.update_bytes = 2_001


def spoil_gain(report: Report) -> None:
    report.recovered_gain = 0.94


def spoil_drift(report: Report) -> None:
    report.accuracy_base = 0.95


def spoil_digest(report: Report) -> None:
    report.devices[0].digest_matches = False


def spoil_device(report: Report) -> None:
    report.devices[0].accuracy_after = 0.4


def spoil_refusal(report: Report) -> None:
    report.bad_release.refused = False


def spoil_exposure(report: Report) -> None:
    report.bad_release.devices_exposed = 2


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (spoil_size, "0.20%"),
        (spoil_gain, "0.940"),
        (spoil_drift, "drift did not hurt"),
        (spoil_digest, "gate-1 serves"),
        (spoil_device, "gate-1 did not gain"),
        (spoil_refusal, "not refused"),
        (spoil_exposure, "2 devices"),
    ],
)
def test_each_broken_promise_is_named_with_its_figure(spoil: Callable[[Report], None], told: str) -> None:
    report = good()
    spoil(report)
    (promise,) = broken_promises(report)
    assert told in promise


def test_the_file_has_a_field_a_line_and_reads_back(tmp_path: Path) -> None:
    good().write(tmp_path / "report.json")
    text = (tmp_path / "report.json").read_text()
    assert json.loads(text) == good().as_json()
    assert len(text.splitlines()) == len(good().as_json()) + 2
