"""Does a request fail while releases are swapped under load, and is each answer of exactly one release?

    python benchmarks/swap_load.py [--swaps 50] [--clients 4] [--json FILE]

A real agent on the simulated server takes one assignment after the other, to newer releases and back, while client
threads ask it over HTTP, in JSON and in safetensors by turns, on connections that they keep. Every answer is compared
with what the release that it names gives under the same runtime settings, bit for bit. Goal: no request fails, and no
answer differs.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "simulator"))

import tiny_onnx  # of the simulator
from one_device import INPUTS, MODEL, OneDevice, one_device  # likewise
from simulated_release import Release  # likewise

from sprat_client.agent.http_endpoint import RELEASE_HEADER, SAFETENSORS  # likewise
from sprat_client.runtime.onnxruntime_host import OnnxRuntime  # likewise
from sprat_client.runtime.tensor_bodies import decode_tensors, encode_tensors  # likewise
from sprat_shared.evidence.bounds import percentile  # after the path

_RELEASES: Final = 5


@dataclass
class Seen:
    """What the clients saw.

    Attributes:
        answers: by release.
        failures: of requests, in words.
        foreign: answers that are not the named release's.
        seconds: of each answer.
        changes: how often a client's next answer was of another release.
    """

    answers: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    changes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


def reference(release: Release, folder: Path) -> np.ndarray[Any, Any]:
    """Return what a release answers, loaded by itself with the agent's settings, (batch, classes)."""
    (folder / "t").mkdir(parents=True)
    (folder / "graph.onnx").write_bytes(release.graph)
    for index, name in enumerate(sorted(release.weights)):
        (folder / "t" / str(index)).write_bytes(release.weights[name][1].tobytes())
    return OnnxRuntime().load(folder).run({"inputs": INPUTS})[0]


def ask(url: str, client: int, expected: dict[int, np.ndarray[Any, Any]], seen: Seen, stop: threading.Event) -> None:
    """Ask on one kept connection until told to stop; a connection that breaks is a failure."""
    as_json, as_tensors = {"inputs": INPUTS.tolist()}, encode_tensors({"inputs": INPUTS})
    last, number = None, client
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as http:
        while not stop.is_set():
            number += 1
            begun = time.perf_counter()
            try:
                path = f"/v1/models/{MODEL}/infer"
                answer = (
                    http.post(path, json=as_json)
                    if number % 2
                    else http.post(path, content=as_tensors, headers={"Content-Type": SAFETENSORS})
                )
            except httpx.HTTPError as bad:
                with seen.lock:
                    seen.failures.append(repr(bad))
                continue
            took_s = time.perf_counter() - begun
            with seen.lock:
                if answer.status_code != httpx.codes.OK:
                    seen.failures.append(answer.text)
                    continue
                release = int(answer.headers[RELEASE_HEADER])
                got = (
                    np.array(answer.json()["outputs"]["logits"], np.float32)
                    if number % 2
                    else decode_tensors(answer.content)["logits"]
                )
                seen.answers[release] += 1
                seen.seconds.append(took_s)
                seen.changes += last not in {None, release}
                last = release
                if not np.array_equal(got, expected[release]):
                    seen.foreign.append(f"an answer of release {release} is not that release's")


def load(folder: Path, *, swaps: int, clients: int) -> tuple[Seen, int]:
    """Swap so often under load; return what the clients saw and how many swaps there were."""
    with one_device(folder) as device:
        expected = _releases(device, folder)
        seen, stop = Seen(), threading.Event()
        with device.agent(port=0) as agent:
            before = agent._shop.servings.meter.swaps()[MODEL]  # noqa: SLF001  # a benchmark may look inside
            threads = [threading.Thread(target=ask, args=(agent.url, k, expected, seen, stop)) for k in range(clients)]
            for thread in threads:
                thread.start()
            try:
                for swap in range(swaps):
                    device.server.assign(MODEL, 1 if swap % 2 else 2 + swap // 2 % (_RELEASES - 1))
                    if agent.run(once=True):
                        seen.failures.append("an assignment was not taken")
            finally:
                stop.set()
                for thread in threads:
                    thread.join()
            return seen, agent._shop.servings.meter.swaps()[MODEL] - before  # noqa: SLF001  # likewise


def _releases(device: OneDevice, folder: Path) -> dict[int, np.ndarray[Any, Any]]:
    for number in range(2, _RELEASES + 1):
        weights = tiny_onnx.nudged(tiny_onnx.weights(1), number, size=0.01)
        device.server.add_release(MODEL, weights, base=number - 1)
    return {
        number: reference(release, folder / "reference" / str(number))
        for number, release in device.server.models[MODEL].items()
    }


def main() -> int:
    """Run it; return 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swaps", type=int, default=50)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        seen, swaps = load(Path(folder), swaps=asked.swaps, clients=asked.clients)
    said = {
        "swaps": swaps,
        "clients": asked.clients,
        "seconds": round(time.monotonic() - begun, 1),
        "answers": sum(seen.answers.values()),
        "by release": dict(sorted(seen.answers.items())),
        "changes seen by clients": seen.changes,
        "failed": len(seen.failures),
        "not of the named release": len(seen.foreign),
        "p50 ms": round(1000 * (percentile(seen.seconds, 0.5) or 0.0), 2),
        "p99 ms": round(1000 * (percentile(seen.seconds, 0.99) or 0.0), 2),
    }
    for name, value in said.items():
        sys.stdout.write(f"{name:<26} {value}\n")
    for what in (*seen.failures[:5], *seen.foreign[:5]):
        sys.stdout.write(f"  {what}\n")
    if asked.json is not None:
        asked.json.write_text(json.dumps(said, indent=1))
    return 1 if seen.failures or seen.foreign or swaps < asked.swaps else 0


if __name__ == "__main__":
    raise SystemExit(main())
