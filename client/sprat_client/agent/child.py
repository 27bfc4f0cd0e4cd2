"""Work in a process of its own: a job as JSON on stdin, its result or error as JSON on stdout, an end by a deadline.

The child keeps the store locked while it works and ends with the agent that started it, so two never write at once. It
is nice from its first line on: an update must not slow the answers of what serves, and imports alone take a while.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from sprat_client.agent.lock import FolderLock
from sprat_client.agent.room import code_of
from sprat_client.runtime.background import NICE
from sprat_shared.errors import SpratError, TryLater, UpdateRejected

_PR_SET_PDEATHSIG: Final = 1
_PEAK: Final = "VmHWM:"
_NICELY: Final = f"""
import os, sys
os.nice({NICE})
import runpy
runpy.run_module(sys.argv[1], run_name="__main__")
"""
_ERRORS: Final[Mapping[str, type[SpratError]]] = {
    "rejected": UpdateRejected,
    "later": TryLater,
    "failed": SpratError,
}


class ChildFailed(SpratError):
    """A process that the agent started died or did not end; the update may or may not be at fault."""

    code = "agent.child-failed"
    exit_code = 70


def run_child(
    module: str, store: Path, job: Mapping[str, Any], *, timeout_s: float, failed: type[ChildFailed]
) -> dict[str, Any]:
    """Run a module as `python -m` does on a job, nice and with one thread; return its result.

    Args:
        module: one whose `main` calls `serve_job`.
        store: folder of the tensor store, which the child locks.
        job: JSON.
        timeout_s: before the process is killed.
        failed: raised where the process gives no result.

    Raises:
        ChildFailed: the process died, or did not end in time.
        SpratError: what the job ended with, by its kind and code.
    """
    name = module.rpartition(".")[2]
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    try:
        done = subprocess.run(  # noqa: S603  # our own interpreter and module
            [sys.executable, "-c", _NICELY, module],
            input=json.dumps({**job, "store": str(store), "parent": os.getpid()}).encode(),
            stdout=subprocess.PIPE,
            timeout=timeout_s,
            check=False,
            env={**os.environ, **one_thread},
        )
    except subprocess.TimeoutExpired:
        raise failed(f"the {name} did not end in {timeout_s:g} s and was killed") from None
    try:
        result: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise failed(
            f"the {name}'s process ended with status {done.returncode} and without a result; "
            "a status of -9 means that memory ran out"
        ) from None
    if "error" in result:
        raise _ERRORS[result["kind"]](result["error"], code=result["code"])
    return result


def serve_job(work: Callable[[Path, Mapping[str, Any]], dict[str, Any]]) -> int:
    """In the child: read the job on stdin, do `work(store, job)` under the store's lock, write what came of it."""
    job = json.load(sys.stdin)
    _die_with(job["parent"])
    store = Path(job["store"])
    try:
        with FolderLock(store / "rebuild.lock", wait=True):
            result = work(store, job)
    except SpratError as bad:
        result = {"error": str(bad), "code": bad.code, "kind": _kind(bad)}
    except (OSError, MemoryError) as bad:
        result = {"error": str(bad) or type(bad).__name__, "code": code_of(bad), "kind": "failed"}
    json.dump(result, sys.stdout)
    return 0


def peak_bytes() -> int:
    """Return the largest resident memory of this process; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(_PEAK)), 0)


def _kind(error: SpratError) -> str:
    return next(kind for kind, base in _ERRORS.items() if isinstance(error, base))


def _die_with(parent: int) -> None:
    """Let the kernel end this process when the agent ends, and nothing else: two children must not write at once."""
    for stop in (signal.SIGTERM, signal.SIGINT):  # a service's stop reaches the whole group; the agent decides
        signal.signal(stop, signal.SIG_IGN)
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    except (AttributeError, OSError):
        return
    if os.getppid() != parent:
        sys.exit(1)
