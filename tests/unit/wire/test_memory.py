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


def test_ten_million_values_are_rebuilt_rightly_within_64_mib_above_their_size() -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    probe = PROBE.with_name("large_probe.py")
    done = subprocess.run([sys.executable, probe], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == 11
    assert [row for row in found if not row["right"]] == []
    assert [row for row in found if row["peak_bytes"] > row["declared_bytes"] + ALLOWED_BYTES] == []
    assert all(row["peak_bytes"] > row["declared_bytes"] / 2 for row in found), "what is measured is the rebuilding"


SHORT = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
from memory_probe import Dropped
from sprat_shared.apply import apply_update
from sprat_shared.errors import TryLater
from sprat_shared.wire.tensors import TensorSpec, TensorTable
from sprat_shared.wire.update import encode_update
data = encode_update(TensorTable([TensorSpec("w", "F32", (1 << 33,))]), [], base_digest=None)
try:
    apply_update(data, None, Dropped(), expected="sha256:" + "0" * 64)
except TryLater as error:
    print(error)
"""


def test_memory_that_does_not_suffice_is_said_and_not_held_against_the_update() -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROBE.parent)}
    done = subprocess.run([sys.executable, "-c", SHORT], env=env, capture_output=True, text=True, check=False)
    assert "memory ran out" in done.stdout, done.stderr
