"""A worker process with tasks made for tests: `python worker_with_test_tasks.py`, settings from the environment."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sprat_server.jobs.tasks import JobContext, task
from sprat_server.observe import logs
from sprat_server.settings import load_settings
from sprat_server.worker import run_worker


@task("test-linger")
def linger(ctx: JobContext, args: Mapping[str, Any]) -> dict[str, Any]:
    """Say in a file that attempt N has begun, then go on until a file says that it is enough."""
    folder = Path(args["folder"])
    (folder / f"attempt-{ctx.attempt}").touch()
    while not (folder / "enough").exists():
        ctx.progress("linger", 0.5, f"attempt {ctx.attempt}")
        time.sleep(0.02)
    return {"attempt": ctx.attempt}


@task("test-stubborn")
def stubborn(ctx: JobContext, args: Mapping[str, Any]) -> dict[str, Any]:
    """Like test-linger, but never looks up: only the end of the process ends it."""
    folder = Path(args["folder"])
    (folder / f"attempt-{ctx.attempt}").touch()
    while not (folder / "enough").exists():
        time.sleep(0.02)
    return {"attempt": ctx.attempt}


if __name__ == "__main__":
    settings = load_settings()
    logs.configure(log_format="json", log_level="info", process="test-worker")
    run_worker(settings, load=lambda: [__name__])
