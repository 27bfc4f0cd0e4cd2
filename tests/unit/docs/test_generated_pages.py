"""The pages that come out of the code say what the code says now."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_the_pages_of_commands_and_errors_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"],
        cwd=ROOT,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_command_shows_an_example() -> None:
    page = (ROOT / "docs/cli.md").read_text()
    sections = [part for part in page.split("\n#") if "```text" in part and "--help" in part]
    without = [
        part.partition("\n")[0].lstrip("# ")
        for part in sections
        if "xample" not in part and "Commands:" not in part and "COMMAND [ARGS]" not in part
    ]
    assert sections
    assert not without, f"give these an example in their help: {without}"
