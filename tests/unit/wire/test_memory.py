"""What a hostile or damaged file costs before it is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROBE = Path(__file__).with_name("memory_probe.py")
ALLOWED_BYTES = 64 << 20
ALLOWED_SECONDS = 20.0
PROMISE_BROKEN = "update.digest-mismatch"


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, PROBE, "25"], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_hostile_or_damaged_file_is_refused_by_name(rows: list[dict[str, Any]]) -> None:
    assert len(rows) > 60
    assert {row["error"] for row in rows} <= {"update.malformed", "update.limit", "update.wire-version", PROMISE_BROKEN}


def test_no_file_takes_more_than_64_mib_above_the_size_that_it_declares(rows: list[dict[str, Any]]) -> None:
    too_much = [row for row in rows if row["peak_bytes"] > row["declared_bytes"] + ALLOWED_BYTES]
    assert too_much == []


def test_no_file_takes_long(rows: list[dict[str, Any]]) -> None:
    assert [row for row in rows if row["seconds"] > ALLOWED_SECONDS] == []
