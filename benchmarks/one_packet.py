"""How long is the one answer that brings a device an update: metadata that changed, signatures, payload?

    python benchmarks/one_packet.py [--keep 0.9] [--json FILE]

A real server with its private PostgreSQL, the demo's network and its drifted digits: a device enrols, serves release 1
and goes away; a retrain makes release 2; the device comes back, and its first poll is measured as it goes over the
link. Then the agent itself runs again on the same folder and must serve release 2. The goal is a body of at most
1,280 bytes, the packet that every IPv6 link carries (RFC 8200, section 5); what HTTP and TCP add is told beside it.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))  # the processes, the data and the network of the demo

import httpx  # noqa: E402 - after the path is set, as the next ones
import numpy as np  # noqa: E402
from demo.device import Device  # noqa: E402
from demo.server import Server  # noqa: E402
from demo.shell import Shell  # noqa: E402
from digits_demo.data import clean, drifted  # noqa: E402
from digits_demo.train_base import train  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from sprat_client.agent.durable import PosixDisk  # noqa: E402
from sprat_client.agent.identity import Identity, load_key  # noqa: E402
from sprat_client.agent.journal import Journal  # noqa: E402
from sprat_client.agent.settings import LinkSettings  # noqa: E402
from sprat_client.agent.transfer import Link  # noqa: E402
from sprat_client.agent.trust.clock import Clock  # noqa: E402
from sprat_client.agent.trust.store import TrustStore  # noqa: E402
from sprat_shared.protocol.poll import PollAnswer  # noqa: E402

GOAL_BYTES: Final = 1280
_IP_AND_TCP: Final = 40 + 20 + 12  # IPv6, TCP, and TCP's timestamps
MODEL: Final = "digits"
_SERVE_S: Final = 120.0


class Overheard(httpx.BaseTransport):
    """The network, with the length of the last answer as it came: status line and headers, and the body."""

    def __init__(self) -> None:
        self._network = httpx.HTTPTransport()
        self.head_bytes = self.body_bytes = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Pass a request on."""
        answer = self._network.handle_request(request)
        body = answer.read()
        status = f"HTTP/1.1 {answer.status_code} {answer.reason_phrase}\r\n"
        self.head_bytes = len(status) + sum(len(name) + len(value) + 4 for name, value in answer.headers.raw) + 2
        self.body_bytes = len(body)
        return httpx.Response(answer.status_code, headers=answer.headers, stream=httpx.ByteStream(body))

    def close(self) -> None:
        """Close its connections."""
        self._network.close()


def measure(keep: str, folder: Path) -> dict[str, Any]:
    """Return how long the answer is, what of it is what, and what the update recovers.

    Args:
        keep: share of the full retrain's gain that is asked for.
        folder: an empty folder, for everything.
    """
    save_file(train().state_dict(), folder / "base.safetensors")
    with Server(folder, recipe_packages="digits_demo", more={"SPRAT_POLL_INTERVAL_S": "1"}) as server:
        shell = Shell(server.url, server.admin_token)
        weights = str(folder / "base.safetensors")
        recipe = ["--recipe", "digits_demo.model:build", "--weights", weights, "--example", "1,1,28,28"]
        shell.one("model", "register", MODEL, *recipe)
        device = Device("gate-1", folder / "gate-1", server.url, options=("--trial-s", "1"), link="direct")
        device.enrol(shell.one("enrolment-token", "create")["token"])
        with device.process:
            shell.run("rollout", "create", f"{MODEL}@1", "--waves", "100%", "--start", "--watch")
            device.wait_for(MODEL, 1, _SERVE_S)
        np.savez(folder / "drifted.npz", **drifted(clean()).arrays())  # type: ignore[arg-type] # numpy's stub
        shell.one("dataset", "upload", "drifted", str(folder / "drifted.npz"))
        told("retraining ...")
        result = shell.one("retrain", MODEL, "--dataset", "drifted", "--keep", keep, "--watch")["result"]
        release = int(result["release"])
        shell.one("rollout", "create", f"{MODEL}@{release}", "--waves", "100%", "--start")
        answer = poll_of(device.folder)
        with device:
            device.wait_for(MODEL, release, _SERVE_S)
    return {
        "keep": float(keep),
        "update_bytes": result["update_bytes"],
        "recovered_gain_test": result["recovered_gain"],
        **answer,
        "goal_bytes": GOAL_BYTES,
        "one_packet": answer["body_bytes"] <= GOAL_BYTES,
    }


def poll_of(folder: Path) -> dict[str, Any]:
    """Ask once what changed for the device on `folder`, as its agent does, and return the answer's length in parts."""
    identity, overheard, disk = Identity.load(folder), Overheard(), PosixDisk()
    keeper = Journal(folder / "journal.json", disk)
    held = TrustStore(folder / "trust", disk, identity=identity, keeper=keeper, clock=Clock()).held()
    with Link.of(identity, load_key(folder), LinkSettings(), transport=overheard) as link:
        answer = link.poll(held)
    if answer is None or not any(part.kind == "blob" for part in answer.parts):
        raise SystemExit("the answer brings no payload: nothing to measure")
    return {
        "body_bytes": overheard.body_bytes,
        "header_bytes": overheard.head_bytes,
        "parts": parts_of(answer, b"".join(data for _, data in held)),
    }


def parts_of(answer: PollAnswer, dictionary: bytes) -> dict[str, dict[str, int]]:
    """Return each part's bytes as they are, and what it adds to the compressed body; in the order of the body."""
    sizes = [len(replace(answer, parts=answer.parts[:n]).to_bytes(dictionary)) for n in range(len(answer.parts) + 1)]
    parts = {"frame": {"plain": 0, "adds": sizes[0]}}
    for part, before, after in zip(answer.parts, sizes, sizes[1:], strict=False):
        name = f"payload {part.name[:13]}" if part.kind == "blob" else part.name
        parts[name] = {"plain": len(part.data), "adds": after - before}
    return parts


def told(line: str) -> None:
    """Say how far it is."""
    print(line, file=sys.stderr, flush=True)


def lines_of(report: Mapping[str, Any]) -> list[str]:
    """Return the report in words."""
    whole = report["body_bytes"] + report["header_bytes"] + _IP_AND_TCP
    goal = "fits" if report["one_packet"] else "does not fit"
    return [
        f"one answer: {report['body_bytes']:,} bytes, which {goal} in {report['goal_bytes']:,}",
        *(f"  {one['adds']:>6,}  {name} ({one['plain']:,} bytes plain)" for name, one in report["parts"].items()),
        f"with the heads of HTTP ({report['header_bytes']:,}), IPv6 and TCP ({_IP_AND_TCP}): {whole:,} bytes",
        f"the update: {report['update_bytes']:,} bytes, asked to keep {report['keep']:.0%} of the gain",
        f"recovered on the test split: {report['recovered_gain_test']:.1%}; the agent serves the release",
    ]


def main() -> None:
    """Print the figures; write JSON where it is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--keep", default="0.9", help="share of the full retrain's gain (default: 0.9)")
    parser.add_argument("--json", type=Path, help="write the report here too")
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="sprat-packet-"))
    try:
        report = measure(asked.keep, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print("\n".join(lines_of(report)))
    if asked.json:
        asked.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
