"""Does an update arrive over a link that loses a fifth of all packets, and what does it cost?

    python benchmarks/bad_link.py [--short] [--json FILE]

Two network namespaces, joined by a TUN link that this process carries: 200 ms one way, 20 % of the packets lost each
way, 64 kbit/s each way with a queue of 16 kB, three outages. `sprat-server up` is on one side, `sprat-agent run` on the
other; it enrols and gets release 1 over a good link, then the link turns bad and release 2 is rolled out, too large for
a poll's answer. In the middle the agent is killed (SIGKILL) and started again. The goal is asserted: release 2 is
installed, and the body bytes that the agent read are at most 1.05 times the update.

It needs root, or CAP_SYS_ADMIN and CAP_NET_ADMIN, and /dev/net/tun; without it says so and ends with 0. What it starts
is in namespaces of its own, which end with it, whatever ends it.
"""

import argparse
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

from demo.processes import Program, environment, program
from demo.server import Server
from demo.shell import Shell
from links.tun import SERVER, Link, Shape, joined_networks, unshare

GOAL_RATIO: Final = 1.05
MODEL: Final = "gate"
_INPUTS, _CLASSES = 16, 4
_CLONE_NEWPID: Final = 0x20000000
_PR_SET_PDEATHSIG: Final = 1
BAD: Final = Shape(delay_s=0.2, loss=0.2, bytes_per_s=8000, queue_bytes=16_000)
SHORT: Final = Shape(delay_s=0.05, loss=0.1, bytes_per_s=32_000, queue_bytes=16_000)


def main() -> None:
    """Do it in a child that is the first process of its own namespace, so that nothing outlives it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--short", action="store_true", help="a kinder link and a smaller update: under a minute")
    parser.add_argument("--limit-s", type=float, default=900.0, help="give up after so long (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the report here too")
    asked = parser.parse_args()
    try:
        unshare(_CLONE_NEWPID)
    except OSError as bad:
        sys.exit(skip(bad))
    folder = Path(tempfile.mkdtemp(prefix="sprat-link-"))
    child = os.fork()
    if child == 0:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        for stop in (signal.SIGTERM, signal.SIGINT):
            signal.signal(stop, lambda *_: os._exit(143))
        code = 1
        try:
            code = run(asked, folder)
        except BaseException:  # noqa: BLE001 - it must not come back into the parent's stack
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    try:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        _, status = os.waitpid(child, 0)
        sys.exit(os.waitstatus_to_exitcode(status))
    finally:
        try:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
        shutil.rmtree(folder, ignore_errors=True)


def skip(bad: OSError) -> int:
    """Say why nothing is measured."""
    print(f"skipped: {bad}; two joined networks need CAP_SYS_ADMIN, CAP_NET_ADMIN and /dev/net/tun")
    return 0


def give_up(limit_s: float, folder: Path) -> None:
    """End all, with the last words of the agent."""
    log = folder / "agent.log"
    last = log.read_text(encoding="utf-8").splitlines()[-10:] if log.exists() else []
    print(f"not done in {limit_s:g} s", *last, sep="\n", flush=True)
    os._exit(124)


def run(asked: argparse.Namespace, folder: Path) -> int:
    """Measure, print and write the report; return the exit code."""
    try:
        link, there = joined_networks(seed=20)
    except OSError as bad:
        return skip(bad)
    hidden, shape, outages = (9000, SHORT, (2.0,)) if asked.short else (16_000, BAD, (5.0, 8.0, 12.0))
    limit = threading.Timer(asked.limit_s, give_up, (asked.limit_s, folder))
    limit.daemon = True
    limit.start()
    settings = {"SPRAT_HOST": "0.0.0.0", "SPRAT_INSECURE": "1", "SPRAT_POLL_INTERVAL_S": "5"}
    with link, Server(folder, more=settings) as server:
        port = server.address[1]
        shell, url = Shell(f"http://127.0.0.1:{port}", server.admin_token), f"http://{SERVER}:{port}"
        length = releases(folder, shell, hidden)
        token = shell.one("enrolment-token", "create", "--uses", "1")["token"]
        device = folder / "device"
        words = ["enrol", "--server", url, "--token", token, "--dir", str(device), "--name", "pole-1", "--insecure"]
        enrol = partial(subprocess.run, stdout=subprocess.DEVNULL, env=environment(), check=True)
        there.submit(enrol, [program("sprat-agent"), *words]).result()
        command = [program("sprat-agent"), "run", "--dir", str(device), "--trial-s", "0.5"]
        agent = Program("sprat-agent", command, log=folder / "agent.log", env=environment())
        there.submit(agent.start).result()
        roll_out(shell, 1)
        agent.until(lambda: serves(device, 1), "release 1", 120.0)
        there.submit(agent.stop).result()
        counted = (link.to_device.sent_bytes, link.to_server.sent_bytes)

        link.shape = shape
        roll_out(shell, 2)
        there.submit(agent.start).result()
        began = time.monotonic()
        uncounted: list[int] = []
        agents = (agent, there, uncounted)
        breaking = threading.Thread(target=trouble, args=(link, device, length, outages, agents), daemon=True)
        breaking.start()
        agent_until(agent, device, asked.limit_s)
        seconds = time.monotonic() - began
        breaking.join(1.0)
        link.shape, link.out = Shape(), False
        agent.stop()
        events = [json.loads(line) for line in (device / "events.jsonl").read_text().splitlines() if line]
        received = reported_bytes(shell) + sum(uncounted)
    report: dict[str, Any] = {
        "link": asdict(shape),
        "outages_s": list(outages),
        "update_bytes": length,
        "body_bytes": received,
        "ratio": received / length,
        "seconds": seconds,
        "least_seconds": length / shape.bytes_per_s,
        "wire_bytes_down": link.to_device.sent_bytes - counted[0],
        "wire_bytes_up": link.to_server.sent_bytes - counted[1],
        "packets_lost": link.to_device.lost + link.to_server.lost,
        "packets_dropped": link.to_device.dropped + link.to_server.dropped,
        "agent_starts": sum(event["event"] == "started" for event in events),
    }
    print("\n".join(lines_of(report)))
    if asked.json:
        asked.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0 if received <= GOAL_RATIO * length else 1


def releases(folder: Path, shell: Shell, hidden: int) -> int:
    """Register a model and make a second release; return the bytes of the update between."""
    weights = [
        {
            name: np.random.default_rng((seed, len(shape))).normal(size=shape).astype(np.float32)
            for name, shape in {
                "0.weight": (hidden, _INPUTS),
                "0.bias": (hidden,),
                "2.weight": (_CLASSES, hidden),
                "2.bias": (_CLASSES,),
            }.items()
        }
        for seed in (1, 2)
    ]
    constants = [numpy_helper.from_array(array, name) for name, array in weights[0].items()]
    nodes = [
        helper.make_node("Gemm", ["x", "0.weight", "0.bias"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "2.weight", "2.bias"], ["logits"], transB=1),
    ]
    ends = (("x", _INPUTS), ("logits", _CLASSES))
    inputs, outputs = ([helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", size])] for n, size in ends)
    graph = helper.make_graph(nodes, "gate", inputs, outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), folder / "gate.onnx")
    for number, arrays in enumerate(weights, start=1):
        save_file(arrays, folder / f"{number}.safetensors")
    first = str(folder / "1.safetensors")
    shell.one("model", "register", MODEL, "--graph", str(folder / "gate.onnx"), "--weights", first)
    shell.one("release", "create", MODEL, "--weights", str(folder / "2.safetensors"))
    shown = shell.one("release", "show", f"{MODEL}@2")
    return int(next(update["bytes"] for update in shown["updates"] if update["base"] == 1))


def roll_out(shell: Shell, release: int) -> None:
    """Assign a release to the device."""
    shell.one("rollout", "create", f"{MODEL}@{release}", "--waves", "100%", "--start")


def serves(device: Path, release: int) -> bool | None:
    """Return whether the release is committed; None where it is not."""
    from sprat_client.agent.status import read_status  # noqa: PLC0415 - the server's side needs nothing of it

    try:
        model = read_status(device)["models"].get(MODEL)
    except (OSError, ValueError, KeyError):
        return None
    done = model is not None and model["state"] == "idle" and (model["active"] or {}).get("release") == release
    return (done and not list((device / "outbox").glob("*.json"))) or None


def trouble(
    link: Link,
    device: Path,
    length: int,
    outages: Sequence[float],
    agents: tuple[Program, ThreadPoolExecutor, list[int]],
) -> None:
    """Take the link down while the download goes on, and kill the agent once in the middle.

    A killed agent could not write down what it read last; that is what lies on the disk beyond what its journal says,
    and is added to the list.
    """
    agent, there, uncounted = agents
    for number, seconds in enumerate(outages, start=1):
        while part_bytes(device) < length * number / (len(outages) + 2):
            time.sleep(0.05)
        link.out = True
        if number == (len(outages) + 1) // 2:
            agent.kill()
            work = json.loads((device / "journal.json").read_text())["models"][MODEL]["work"]
            uncounted.append(max(0, part_bytes(device) - work["received_bytes"]))
            there.submit(agent.start).result()
        time.sleep(seconds)
        link.out = False


def part_bytes(device: Path) -> int:
    """Return the size of the largest half download."""
    folder = device / "downloads"
    return max((file.stat().st_size for file in folder.glob("*")), default=0) if folder.is_dir() else 0


def agent_until(agent: Program, device: Path, timeout_s: float) -> None:
    """Wait for release 2; the agent may be killed and started again meanwhile."""
    deadline = time.monotonic() + timeout_s
    while not serves(device, 2):
        if time.monotonic() > deadline:
            raise SystemExit(f"release 2 did not arrive in {timeout_s:g} s:\n{agent.tail()}")
        time.sleep(0.2)


def reported_bytes(shell: Shell) -> int:
    """Return what the agent reported to have read for release 2, over all attempts."""
    devices = shell.all("device", "list")
    shown = shell.one("device", "show", devices[0]["name"])
    return int(shown["reports"][0]["received_bytes"])


def lines_of(report: dict[str, Any]) -> list[str]:
    """Return the report in words."""
    link, outages = report["link"], ", ".join(f"{seconds:g} s" for seconds in report["outages_s"])
    rows = {
        "update": f"{report['update_bytes']:>12,} bytes",
        "body bytes read for it": f"{report['body_bytes']:>12,} bytes, {report['ratio']:.4f} x (goal {GOAL_RATIO})",
        "on the wire, IP, to the device": f"{report['wire_bytes_down']:>12,} bytes",
        "on the wire, IP, from it": f"{report['wire_bytes_up']:>12,} bytes",
        "from assignment to reported": f"{report['seconds']:>12.0f} s (the rate: {report['least_seconds']:.0f} s)",
    }
    shape = (
        f"link: {1000 * link['delay_s']:.0f} ms one way, {100 * link['loss']:.0f} % lost each way, "
        f"{8 * link['bytes_per_s'] / 1000:.0f} kbit/s each way; outages of {outages}; one SIGKILL"
    )
    return [
        shape,
        *(f"{name:<34}{said}" for name, said in rows.items()),
    ]


if __name__ == "__main__":
    main()
