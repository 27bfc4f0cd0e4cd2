"""An application on a device: asks the agent there for tasks, and prints how long each took, one JSON object a line.

    python -m siting.asker FOLDER INPUTS.npz --task find [--task see ...] [--count 100] [--rate 5]

With several tasks, each takes what the ones before gave, one after the other: what an application does that has no
parallel routing. INPUTS holds samples by the names of the tasks' inputs; request i takes sample i.
"""

import argparse
import json
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from sprat_client.agent.endpoint import Endpoint
from sprat_client.runtime.ports import Array
from sprat_shared.errors import SpratError

_lock = threading.Lock()


def main() -> None:
    """Ask, one request after the other, or so many a second whatever the answers do."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("inputs", type=Path)
    parser.add_argument("--task", action="append", required=True)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--rate", type=float, help="requests a second (default: the next when the last was answered)")
    parser.add_argument("--samples", type=int, help="take only so many samples, again and again")
    parser.add_argument("--deadline-s", type=float, help="of each request (default: the plan's)")
    parser.add_argument("--keep", action="store_true", help="print the outputs too")
    asked = parser.parse_args()
    with np.load(asked.inputs) as arrays:
        samples = {name: arrays[name] for name in arrays.files}
    endpoint = Endpoint(asked.folder, timeout_s=60.0)

    def one(number: int) -> None:
        at = number % (asked.samples or len(next(iter(samples.values()))))
        given = {name: array[at : at + 1] for name, array in samples.items()}
        begun = time.time()
        told = ask(endpoint, asked.task, given, deadline_s=asked.deadline_s, keep=asked.keep)
        with _lock:
            sys.stdout.write(json.dumps({"at": begun, "sample": at, **told}) + "\n")
            sys.stdout.flush()

    if asked.rate is None:
        for number in range(asked.count):
            one(number)
        return
    with ThreadPoolExecutor(64) as pool:
        begun = time.monotonic()
        for number in range(asked.count):
            time.sleep(max(0.0, begun + number / asked.rate - time.monotonic()))
            pool.submit(one, number)


def ask(
    endpoint: Endpoint, tasks: Sequence[str], given: Mapping[str, Array], *, deadline_s: float | None, keep: bool
) -> dict[str, Any]:
    """Ask for the tasks one after the other; return how long it took, who answered, or what went wrong."""
    begun, values = time.perf_counter(), dict(given)
    steps: list[dict[str, Any]] = []
    plans: set[str] = set()
    fallback = False
    try:
        for task in tasks:
            wanted = _inputs_of(endpoint, task)
            answer = endpoint.infer_task(task, {name: values[name] for name in wanted}, deadline_s=deadline_s)
            values |= answer.outputs
            steps += [hop.as_json() for hop in answer.steps]
            plans.add(answer.plan)
            fallback = fallback or answer.fallback
    except SpratError as bad:
        return {"seconds": time.perf_counter() - begun, "error": bad.code, "detail": str(bad)}
    outputs = {name: np.asarray(value).tolist() for name, value in answer.outputs.items()} if keep else None
    took_s = time.perf_counter() - begun
    return {"seconds": took_s, "plans": sorted(plans), "fallback": fallback, "steps": steps, "outputs": outputs}


_known: dict[str, list[str]] = {}


def _inputs_of(endpoint: Endpoint, task: str) -> list[str]:
    if task not in _known:
        for one in endpoint.tasks():
            _known[one["name"]] = [port["name"] for port in one["inputs"]]
    return _known[task]


if __name__ == "__main__":
    main()
