"""Mutated update files: a named refusal or the promised result, within time and memory. Never anything else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.crash
SCRIPT = Path(__file__).with_name("update_mutations.py")
MANY = int(os.environ.get("SPRAT_CRASH_TIMES", "1"))  # `make crash` has it higher
FILES = 500 if MANY == 1 else 1_000 * MANY
SEED = 8
ALLOWED_BYTES = 64 << 20
NAMED = {"malformed", "wire-version", "digest-mismatch", "limit", "base-mismatch"}


def test_mutated_updates_give_a_named_error_or_the_promised_weights() -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, SCRIPT, str(FILES), str(SEED)], env=env, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    found = json.loads(done.stdout)
    assert found["unexpected"] == []
    assert set(found["outcomes"]) == {"valid", *(f"update.{name}" for name in NAMED)}, "damage of every kind"
    assert sum(found["outcomes"].values()) == found["files"] == FILES
    assert found["bytes_above_declared"] <= ALLOWED_BYTES
