"""An update over a real link that loses a tenth of all packets, with an outage and a kill in the middle."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks/bad_link.py"


@pytest.mark.e2e
def test_an_update_arrives_over_a_lossy_link_and_costs_no_byte_twice(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, str(BENCHMARK), "--short", "--limit-s", "150", "--json", str(report)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    if ended.stdout.startswith("skipped"):
        pytest.skip(ended.stdout.strip())
    assert ended.returncode == 0, ended.stdout + ended.stderr
    said = json.loads(report.read_text())
    assert said["update_bytes"] <= said["body_bytes"] <= 1.05 * said["update_bytes"]
    assert said["packets_lost"] > 0
    assert said["agent_starts"] == 3
