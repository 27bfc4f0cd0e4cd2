"""How light is the agent? Import time, memory at rest and serving, and what taking an update costs, beside PyTorch.

    python benchmarks/agent_footprint.py [--rounds 5] [--json FILE]

Every figure is of a fresh process, the ways take turns, and medians count. Memory is resident memory (VmRSS) at rest
and its peak (VmHWM) in work, mapped files included; private is what no file is behind (RssAnon). Times are compared
with reading, hashing and writing (durably, as the agent does) the same file in the same turn, so that a busy machine
slows both; the load is printed. Packages that httpx would load where they happen to be installed, and that no device
has, are hidden. The goals stand in the tables; the bound on the memory of an update is asserted, the rest is recorded.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/simulator"))

import apply as applying
import numpy as np
import torch
from device_server import ENROLMENT_TOKEN, DeviceServer  # type: ignore[import-not-found]  # of the tests
from digits_demo.model import build

from sprat_client.agent.durable import PosixDisk
from sprat_client.agent.endpoint import Endpoint
from sprat_client.agent.enrol import enrol
from sprat_client.agent.releases import Manifest
from sprat_client.agent.store import TensorStore
from sprat_server.training.export import Example, export
from sprat_shared.ids import digest_text
from sprat_shared.wire.safetensors import SafetensorsFile, write_safetensors
from sprat_shared.wire.tensors import ArrayTensors, TensorSource, raw_bytes, tensor_sha256, weights_digest
from sprat_shared.wire.update import read_header

MB: Final = 10**6
GOAL_IDLE_MB, GOAL_SERVING_MB, GOAL_RATIO, GOAL_OVER_MB = 60, 90, 2.5, 60
DEMO: Final = "digits"
_EXAMPLE: Final = Example.single((1, 28, 28), "float32")
_SETTLE_S: Final = 3.0
_REQUESTS: Final = 8  # some polls were answered

AGENT: Final = (
    """
from sprat_client.agent.durable import PosixDisk
from sprat_client.agent.rebuild import rebuild
from sprat_client.agent.rebuilder import RebuildStep
from sprat_client.agent.releases import Manifest
from sprat_client.agent.store import TensorStore
manifest = Manifest.of(json.loads(Path({manifest!r}).read_bytes()))
step = RebuildStep(payload=Path({update!r}), weights={weights!r})
""",
    "rebuild(TensorStore(Path({store!r}), PosixDisk()), manifest, [step])",
)
COPY: Final = (
    "import hashlib, os",
    """
data = Path({base!r}).read_bytes(); hashlib.sha256(data).digest()
with open({out!r}, 'wb') as file: file.write(data); file.flush(); os.fsync(file.fileno())
""",
)
TORCH_LOAD: Final = (
    "import torch\ntorch.set_num_threads(1)",
    "weights = torch.load({pickled!r}, weights_only=True); sum(float(t.flatten()[0]) for t in weights.values())",
)
TORCH_MERGE: Final = (
    "import os, torch, safetensors.torch\ntorch.set_num_threads(1)",
    """
weights, factors = safetensors.torch.load_file({base!r}), safetensors.torch.load_file({factors!r})
with torch.no_grad():
    for name, W in weights.items():
        if name + '|b' in factors: W.view(len(W), -1).addmm_(factors[name + '|b'], factors[name + '|a'])
        elif name + '|d' in factors: W += factors[name + '|d']
safetensors.torch.save_file(weights, {out!r})
with open({out!r}, 'rb') as file: os.fsync(file.fileno())
""",
)


def demo_model() -> tuple[dict[str, tuple[str, Any]], bytes]:
    """Return weights and graph of the demo's network, untrained."""
    torch.manual_seed(0)
    module = build({}).eval()
    codes = {torch.float32: "F32", torch.int64: "I64"}
    weights = {name: (codes[tensor.dtype], tensor.numpy()) for name, tensor in module.state_dict().items()}
    return weights, export(module, ArrayTensors(weights), _EXAMPLE).graph.data


def as_on_a_device(folder: Path) -> dict[str, str]:
    """Return an environment in which httpx finds no more for its own commands than it does on a device."""
    folder.mkdir()
    hide = "import sys\nsys.modules.update(dict.fromkeys(('rich', 'pygments')))\n"
    (folder / "sitecustomize.py").write_text(hide, encoding="utf-8")
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}"}


def imports(rounds: int, env: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """Return the wall seconds and peak megabytes of starting Python and importing, by what."""
    what = {
        "python alone": "pass",
        "sprat-agent, its commands": "import sprat_client.agent.commands",
        "sprat-agent run, before a model": "import sprat_client.agent.loop",
        "onnxruntime": "import onnxruntime",
        "torch": "import torch",
    }
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in what}
    for _ in range(rounds):
        for name, code in what.items():
            peak = "; print([l.split()[1] for l in open('/proc/self/status') if l[:5] == 'VmHWM'][0])"
            began = time.perf_counter()
            command = [sys.executable, "-c", code + peak]
            said = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout
            runs[name].append((time.perf_counter() - began, int(said) * 1024 / MB))
    return {
        name: {"seconds": statistics.median(s for s, _ in rows), "peak_mb": statistics.median(m for _, m in rows)}
        for name, rows in runs.items()
    }


def at_rest(folder: Path, env: Mapping[str, str]) -> dict[str, float]:
    """Return the resident megabytes of `sprat-agent run` before a model is loaded, and serving the demo's model."""
    weights, graph = demo_model()
    server = DeviceServer()
    server.poll_interval_s = 0.5
    server.add_release(DEMO, weights, graph=graph)
    out: dict[str, float] = {}
    with server.running() as url:
        enrol(folder, PosixDisk(), server_url=url, token=ENROLMENT_TOKEN, name="bench")
        command = [sys.executable, "-m", "sprat_client.agent", "run", "--dir", str(folder), "--trial-s", "0.1"]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, env=env, stderr=log)
        try:
            while not (folder / "endpoint.json").exists() or len(server.requests) < _REQUESTS:
                time.sleep(0.05)
            time.sleep(_SETTLE_S)
            out |= {"idle_mb": status_mb(process.pid, "VmRSS"), "idle_private_mb": status_mb(process.pid, "RssAnon")}
            report = server.wait_for_report(server.assign(DEMO, 1), timeout_s=120)
            if report.serving_release != 1:
                raise SystemExit(f"the agent does not serve the demo's model: {report.error_detail}")
            inputs = np.zeros((1, 1, 28, 28), np.float32)
            with Endpoint(folder) as endpoint:
                for _ in range(200):
                    endpoint.infer(DEMO, inputs)
            time.sleep(_SETTLE_S)
            out |= {"serving_mb": status_mb(process.pid, "VmRSS")}
            out |= {"serving_private_mb": status_mb(process.pid, "RssAnon")}
        finally:
            process.terminate()
            process.wait()
    script = (
        f"import sys; sys.path.insert(0, {sys.path[1]!r})\n"
        "import torch; torch.set_num_threads(1)\nfrom digits_demo.model import build\n"
        "m = build({}).eval()\nwith torch.inference_mode():\n    for _ in range(200): m(torch.zeros(1, 1, 28, 28))\n"
        "print([l.split()[1] for l in open('/proc/self/status') if l[:5] == 'VmRSS'][0])"
    )
    said = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    return {**out, "torch_serving_mb": int(said) * 1024 / MB}


def status_mb(pid: int, name: str) -> float:
    """Return what the system says of a process's memory, MB: all that is resident, or what no file is behind."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    found = re.search(rf"{name}:\s+(\d+)", status)
    return 0.0 if found is None else int(found[1]) * 1024 / MB


def stored(source: TensorSource, folder: Path) -> Path:
    """Put tensors into a store, as a device holds them; return the file of the manifest."""
    store = TensorStore(folder / "store", PosixDisk())
    digests = []
    for index in range(len(source.table)):
        array = source.read(index)
        digests.append(tensor_sha256(array))
        if not store.holds(digests[-1], array.nbytes):
            store.put(digests[-1], raw_bytes(array))
    store.settle()
    weights = weights_digest(source.table, digests)
    manifest = Manifest(
        model="bench",
        release=1,
        release_id=digest_text(bytes(32)),
        graph=digest_text(sha256(b"").digest()),
        weights=weights,
        table=source.table,
        sha256s=tuple(digests),
        local=None,
    )
    file = folder / "manifest.json"
    file.write_text(json.dumps(manifest.as_json()), encoding="utf-8")
    return file


def ways(
    folder: Path, weights: Mapping[str, tuple[str, Any]]
) -> tuple[dict[str, Callable[[int], dict[str, float]]], int, int]:
    """Return the ways to take one update of a model, by name; the bytes of the model, and of its largest tensor."""
    folder.mkdir()
    base, update, factors = (folder / name for name in ("base.safetensors", "low-rank.sprat", "factors.safetensors"))
    write_safetensors(base, ArrayTensors(dict(weights)))
    with SafetensorsFile(base) as held:
        records = applying.low_rank_records(held, np.random.default_rng(7))
        applying.write_update(held, records, update)
        applying.write_factors(held, records, factors)
        manifest = stored(held, folder / "device")
        size, largest = held.table.nbytes, max(spec.nbytes for spec in held.table)
    result = read_header(memoryview(update.read_bytes())).result or ""
    pickled = folder / "new.pt"
    torch.save({name: torch.from_numpy(np.array(array)) for name, (_, array) in weights.items()}, pickled)
    names = {"base": str(base), "out": str(folder / "out"), "factors": str(factors), "pickled": str(pickled)}

    def agent(number: int) -> dict[str, float]:
        store = folder / f"store-{number}"
        shutil.copytree(folder / "device/store", store, copy_function=os.link)
        try:
            more = {"store": str(store), "update": str(update), "weights": result, "manifest": str(manifest)}
            return applying.measured(AGENT, **more)
        finally:
            shutil.rmtree(store)

    peers: dict[str, Callable[[int], dict[str, float]]] = {
        "read, SHA-256, write durably": lambda _: applying.measured(COPY, **names),
        "sprat-agent takes the update": agent,
        "PyTorch merges W + BA and saves": lambda _: applying.measured(TORCH_MERGE, **names),
        "PyTorch loads the whole new model": lambda _: applying.measured(TORCH_LOAD, **names),
    }
    return peers, size, largest


def taking(folder: Path, weights: Mapping[str, tuple[str, Any]], rounds: int) -> dict[str, Any]:
    """Return medians of each way, and the ratio of its time to the copy's of the same turn."""
    all_ways, size, largest = ways(folder, weights)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in all_ways}
    for number in range(rounds):
        for name, way in all_ways.items():
            runs[name].append(way(number))
    copies = runs[next(iter(runs))]
    rows = {
        name: {
            "seconds": statistics.median(run["seconds"] for run in rows),
            "cpu_seconds": statistics.median(run["cpu_seconds"] for run in rows),
            "peak_mb": statistics.median(run["peak_bytes"] for run in rows) / MB,
            "ratio": statistics.median(
                run["seconds"] / copy["seconds"] for run, copy in zip(rows, copies, strict=True)
            ),
            "cpu_ratio": statistics.median(
                run["cpu_seconds"] / copy["cpu_seconds"] for run, copy in zip(rows, copies, strict=True)
            ),
        }
        for name, rows in runs.items()
    }
    bound = (size + 3 * largest) / MB + GOAL_OVER_MB
    return {"model_mb": size / MB, "largest_tensor_mb": largest / MB, "bound_mb": bound, "rows": rows}


def run(folder: Path, rounds: int) -> dict[str, Any]:
    """Measure all of it."""
    env = as_on_a_device(folder / "as-on-a-device")
    demo = {name: value for name, value in demo_model()[0].items() if value[0] == "F32"}  # no counters
    large = {name: ("F32", array) for name, array in applying.model(np.random.default_rng(7)).items()}
    return {
        "load_before": os.getloadavg()[0],
        "imports": imports(rounds, env),
        "at_rest": at_rest(folder / "agent", env),
        "updates": {
            "the demo's model": taking(folder / "demo", demo, rounds),
            "a model of 22.7M values": taking(folder / "large", large, rounds),
        },
        "load_after": os.getloadavg()[0],
    }


def lines_of(report: Mapping[str, Any]) -> list[str]:
    """Return the report in words."""
    rest = report["at_rest"]
    lines = [f"load {report['load_before']:.1f} to {report['load_after']:.1f} on {os.cpu_count()} cores", ""]
    lines += [f"{'start and import':<40}{'wall':>10}{'VmHWM':>12}"]
    lines += [f"{n:<40}{1000 * r['seconds']:>7.0f} ms{r['peak_mb']:>9.1f} MB" for n, r in report["imports"].items()]
    lines += ["", f"{'at rest':<40}{'VmRSS':>12}{'private':>12}{'goal':>12}"]
    lines += [
        f"{'sprat-agent, no model':<40}{rest['idle_mb']:>9.1f} MB{rest['idle_private_mb']:>9.1f} MB{GOAL_IDLE_MB:>9} MB"
    ]
    serving = f"{rest['serving_mb']:>9.1f} MB{rest['serving_private_mb']:>9.1f} MB"
    lines += [f"{'sprat-agent serving the demo model':<40}{serving}{GOAL_SERVING_MB:>9} MB"]
    lines += [f"{'PyTorch with the demo model':<40}{rest['torch_serving_mb']:>9.1f} MB"]
    for name, update in report["updates"].items():
        head = f"{name}: {update['model_mb']:.1f} MB, bound {update['bound_mb']:.1f} MB, ratio at most {GOAL_RATIO}"
        lines += ["", head, f"{'':<40}{'wall':>10}{'CPU':>10}{'VmHWM':>12}{'ratio':>8}{'of CPU':>8}"]
        lines += [
            f"{way:<40}{row['seconds']:>8.2f} s{row['cpu_seconds']:>8.2f} s{row['peak_mb']:>9.1f} MB"
            f"{row['ratio']:>8.2f}{row['cpu_ratio']:>8.2f}"
            for way, row in update["rows"].items()
        ]
    return lines


def over_the_bound(report: Mapping[str, Any]) -> Sequence[str]:
    """Return the models whose update takes more memory than its bound."""
    return [
        f"{name}: {took:.1f} MB of {update['bound_mb']:.1f} MB"
        for name, update in report["updates"].items()
        if (took := update["rows"]["sprat-agent takes the update"]["peak_mb"]) > update["bound_mb"]
    ]


def main() -> None:
    """Print the tables; write JSON where it is asked for; end with 1 where an update is over its bound."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="turns of each measurement (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the report here too")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sprat-footprint-") as folder:
        report = run(Path(folder), asked.rounds)
    print("\n".join(lines_of(report)))
    if asked.json:
        asked.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if over := over_the_bound(report):
        raise SystemExit("over the bound: " + "; ".join(over))


if __name__ == "__main__":
    main()
