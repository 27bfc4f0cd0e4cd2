"""Peak memory and time of `sprat delta apply` on a 90 MB float32 model, beside the ways without sprat.

    python benchmarks/apply.py [--json FILE]

Each row is a process of its own; memory is its VmHWM (mapped files included), times are wall and CPU time in it after
imports; the ratio is of CPU times, to reading, hashing and writing the same file. sprat hashes base and result, PyTorch
hashes nothing. In the same run PyTorch merges the same factors into the loaded model (PEFT's way), over eight settings
of which the best count. The bound on memory is asserted; times are only recorded.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sprat_shared.apply import rebuild_tensor
from sprat_shared.wire.planes import encode_planes
from sprat_shared.wire.records import Dense, Edit, Lossless, LowRank
from sprat_shared.wire.safetensors import SafetensorsFile, write_safetensors
from sprat_shared.wire.scales import STEPS, nearest_scale
from sprat_shared.wire.tensors import ArrayTensors, TensorSource, digest_of, tensor_sha256, weights_digest
from sprat_shared.wire.update import encode_update

MB: Final = 10**6
LAYERS, WIDTH, WORDS, RANK = 6, 512, 7_300, 8
ROUNDS: Final = 3
Array = npt.NDArray[Any]

# What a measured process runs: `work()` is timed, and what it needs is imported before.
PROBE: Final = """
import json, sys, time
from pathlib import Path
{prepare}
begin, worked = time.perf_counter(), time.process_time()
{work}
seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - worked
peak = next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith("VmHWM:"))
print("\\n" + json.dumps({{"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_bytes": peak}}))
"""
SPRAT: Final = (
    """
sys.argv = ['sprat', 'delta', 'apply', {base!r}, {update!r}, '-o', {out!r}]
import sprat_client.cli.app, sprat_client.cli.delta_files
""",
    "try: sprat_client.cli.app.run()\nexcept SystemExit as end: assert not end.code, end.code",
)
COPY: Final = (
    "import hashlib",
    "data = Path({base!r}).read_bytes(); hashlib.sha256(data).digest(); Path({out!r}).write_bytes(data)",
)
TORCH: Final = (
    "import torch, safetensors, safetensors.torch\ntorch.set_num_threads({threads})",
    """
if {whole}:
    weights = safetensors.torch.load_file({base!r})
else:
    with safetensors.safe_open({base!r}, 'pt') as file:
        weights = {{name: file.get_tensor(name) for name in file.keys()}}
with torch.no_grad():
    for name, tensor in safetensors.torch.load_file({factors!r}).items():
        target, part = name.rsplit('|')
        if part == 'b':
            a = factors_a[target]
            if {fused}: weights[target].addmm_(tensor, a)
            else: weights[target] += tensor @ a
        elif part == 'd': weights[target] += tensor
        else: factors_a = {{**globals().get('factors_a', {{}}), target: tensor}}
safetensors.torch.save_file(weights, {out!r})
""",
)


def model(rng: np.random.Generator) -> dict[str, Array]:
    """Return float32 tensors of a small transformer."""
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (WORDS, WIDTH), "norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        at = f"blocks.{layer}."
        for name, (m, n) in {
            "attention.qkv": (3 * WIDTH, WIDTH),
            "attention.out": (WIDTH, WIDTH),
            "mlp.up": (4 * WIDTH, WIDTH),
            "mlp.down": (WIDTH, 4 * WIDTH),
        }.items():
            shapes[f"{at}{name}.weight"], shapes[f"{at}{name}.bias"] = (m, n), (m,)
        shapes[at + "norm1.weight"] = shapes[at + "norm2.weight"] = (WIDTH,)
    return {name: 0.02 * rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def low_rank_records(base: TensorSource, rng: np.random.Generator) -> list[Edit]:
    """Return factors on the grid that training gives, small integers, and dense records for what has one dimension."""
    records: list[Edit] = []
    for index, spec in enumerate(base.table):
        if spec.matrix is None:
            records.append(Dense(index, 88, rng.integers(-3, 4, spec.size).astype(np.int32)))
        else:
            m, n = spec.matrix
            u, v = (np.rint(rng.laplace(0, 1.5, shape)).clip(-127, 127) for shape in ((m, RANK), (RANK, n)))
            records.append(LowRank(index, 96, u.astype(np.int8), v.astype(np.int8)))
    return records


def dense_records(base: TensorSource, rng: np.random.Generator) -> list[Edit]:
    """Return one quantised dense record for each tensor."""
    scale = nearest_scale(1e-4)
    return [
        Dense(index, scale, np.rint(rng.laplace(0, 1.0, spec.size)).astype(np.int32))
        for index, spec in enumerate(base.table)
    ]


def lossless_records(base: TensorSource, rng: np.random.Generator) -> list[Edit]:
    """Return one lossless record for each tensor: every weight moved a little, as fine-tuning does."""
    records: list[Edit] = []
    for index, spec in enumerate(base.table):
        old = base.read(index)
        new = old + np.float32(1e-4) * rng.standard_normal(spec.shape, dtype=np.float32)
        records.append(Lossless(index, encode_planes(spec, old, new, level=3)))
    return records


def write_update(base: TensorSource, records: Sequence[Edit], path: Path) -> None:
    """Write a file that stands alone; every tensor has one record."""
    sha256s = [tensor_sha256(rebuild_tensor(base.read(i), base.table[i], [record])) for i, record in enumerate(records)]
    result = weights_digest(base.table, sha256s)
    path.write_bytes(encode_update(base.table, records, base_digest=digest_of(base), result_digest=result))


def write_factors(base: TensorSource, records: Sequence[Edit], path: Path) -> None:
    """Write the same low-rank change as float32 factors, for PyTorch."""
    factors: dict[str, tuple[str, Array]] = {}
    for spec, record in zip(base.table, records, strict=True):
        if isinstance(record, LowRank):
            factors[spec.name + "|a"] = ("F32", record.v.astype(np.float32))
            factors[spec.name + "|b"] = ("F32", record.u.astype(np.float32) * STEPS[record.scale])
        elif isinstance(record, Dense):
            factors[spec.name + "|d"] = ("F32", (record.q.astype(np.float32) * STEPS[record.scale]).reshape(spec.shape))
    write_safetensors(path, ArrayTensors(factors))


def measured(script: tuple[str, str], **names: Any) -> dict[str, float]:
    """Run one process and return its seconds and peak bytes."""
    text = PROBE.format(prepare=script[0].format(**names), work=script[1].format(**names))
    threads = str(names.get("threads", 1))
    env = {**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
    done = subprocess.run([sys.executable, "-c", text], env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"a measured process failed:\n{done.stderr}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def best(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the least times and the largest peak of several runs."""
    times = {key: min(run[key] for run in runs) for key in ("seconds", "cpu_seconds")}
    return {**times, "peak_bytes": max(run["peak_bytes"] for run in runs)}


def cases(base: TensorSource, rng: np.random.Generator) -> dict[str, Callable[[], list[Edit]]]:
    """Return the updates by name."""
    return {
        "low rank": lambda: low_rank_records(base, rng),
        "quantised dense": lambda: dense_records(base, rng),
        "lossless": lambda: lossless_records(base, rng),
    }


def run(folder: Path) -> dict[str, Any]:
    """Make model and updates, measure, and return the report."""
    rng = np.random.default_rng(7)
    base, out = folder / "base.safetensors", folder / "out.safetensors"
    write_safetensors(base, ArrayTensors({name: ("F32", array) for name, array in model(rng).items()}))
    paths = {"base": str(base), "out": str(out)}
    rows: list[dict[str, Any]] = []
    with SafetensorsFile(base) as held:
        model_bytes, largest = held.table.nbytes, max(spec.nbytes for spec in held.table)
        for name, make in cases(held, rng).items():
            records, update = make(), folder / f"{name.replace(' ', '-')}.sprat"
            write_update(held, records, update)
            if name == "low rank":
                write_factors(held, records, folder / "factors.safetensors")
            sprat, copy = [], []
            for _ in range(ROUNDS if name != "quantised dense" else 1):
                sprat.append(measured(SPRAT, update=str(update), **paths))
                copy.append(measured(COPY, **paths))
            took = best(sprat)
            ratio = took["cpu_seconds"] / best(copy)["cpu_seconds"]
            rows.append(
                {"way": f"sprat delta apply, {name}", "bytes": update.stat().st_size, **took, "cpu_ratio": ratio}
            )
            print(f"measured: {name}", file=sys.stderr)
    settings = itertools.product((True, False), (True, False), (1, 2))
    peers: list[dict[str, Any]] = [
        {
            **measured(TORCH, factors=str(folder / "factors.safetensors"), whole=w, fused=f, threads=t, **paths),
            "setting": f"{'load_file' if w else 'safe_open'}, {'addmm_' if f else 'matmul and add'}, {t} threads",
        }
        for w, f, t in settings
    ]
    quickest, leanest = (min(peers, key=itemgetter(key)) for key in ("seconds", "peak_bytes"))
    copied = best([measured(COPY, **paths) for _ in range(ROUNDS)])
    for title, peer in (("quickest", quickest), ("leanest", leanest)):
        rows.append(
            {
                "way": f"PyTorch merge, {title} of {len(peers)} ({peer['setting']})",
                "bytes": (folder / "factors.safetensors").stat().st_size,
                **{key: peer[key] for key in ("seconds", "cpu_seconds", "peak_bytes")},
                "cpu_ratio": peer["cpu_seconds"] / copied["cpu_seconds"],
            }
        )
    rows.append({"way": "read, SHA-256, write the model", "bytes": model_bytes, **copied, "cpu_ratio": 1.0})
    return {
        "model_bytes": model_bytes,
        "largest_tensor_bytes": largest,
        "bound_bytes": 90 * MB + 3 * largest + 60 * MB,
        "rows": rows,
        "peers": peers,
    }


def main() -> None:
    """Print the table, then the report as one line of JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the report here too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sprat-bench-") as folder:
        report = run(Path(folder))
    mb = {key: report[key] / MB for key in ("model_bytes", "largest_tensor_bytes", "bound_bytes")}
    print(f"model {mb['model_bytes']:.1f} MB float32, largest tensor {mb['largest_tensor_bytes']:.1f} MB")
    print(f"bound on sprat's peak: 90 MB + 3 x largest tensor + 60 MB = {mb['bound_bytes']:.1f} MB\n")
    print(f"{'way':<78} {'download':>10} {'VmHWM':>9} {'wall':>8} {'CPU':>8} {'ratio':>6}")
    for row in report["rows"]:
        download, peak = f"{row['bytes'] / MB:.3f} MB", f"{row['peak_bytes'] / MB:.1f} MB"
        times = f"{row['seconds']:>6.2f} s {row['cpu_seconds']:>6.2f} s {row['cpu_ratio']:>6.2f}"
        print(f"{row['way']:<78} {download:>10} {peak:>9} {times}")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print("\n" + json.dumps(report))
    over = [
        row["way"]
        for row in report["rows"]
        if row["way"].startswith("sprat") and row["peak_bytes"] > report["bound_bytes"]
    ]
    if over:
        raise SystemExit(f"over the bound: {', '.join(over)}")


if __name__ == "__main__":
    main()
