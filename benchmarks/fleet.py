"""A fleet of a thousand played devices: does a good release reach all, and who is exposed before a bad one halts?

    python benchmarks/fleet.py [--devices 1000] [--only silence] [--json FILE]

A real PostgreSQL, two replicas of the API behind one port, a worker; devices that join, poll, report and sign over HTTP
(`sprat simulate fleet`), and have no weights. Each row is a new release with something wrong with it, rolled out in
waves of ten devices, then twice as many each time. At its end every device must serve what it should, by its own word
and by the server's; nobody may have been told the same twice. In the last row one replica and the worker are killed
(SIGKILL) in the middle, and started again later.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/e2e"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

import tiny_models  # type: ignore[import-not-found]  # of the tests
from demo.processes import Program, environment, program
from demo.shell import Shell
from polling.balancer import Balancer

from sprat_client.api import SpratClient
from sprat_client.simulate.behaviour import TROUBLES
from sprat_client.simulate.rehearsal import Plan, rehearse
from sprat_server.db.embedded import EmbeddedPostgres

MODEL: Final = "played"
KILLED: Final = "none, a replica and the worker killed in the middle"
ROWS: Final = {**{trouble: trouble for trouble in TROUBLES}, "killed": KILLED}
"""What `--only` takes -> what the row says."""

_READY_S: Final = 120.0


class Replica:
    """One process of the API."""

    def __init__(self, folder: Path, number: int, env: dict[str, str]) -> None:
        command = [program("sprat-server"), "serve", "--port", "0", "--json"]
        self.process = Program(f"replica-{number}", command, log=folder / f"replica-{number}.log", env=env)
        self.port = 0

    def start(self) -> None:
        """Start it, on the port that it had."""
        if self.port:
            self.process.command[3] = str(self.port)
        self.process.start()

        def said() -> Any:
            line, newline, _ = self.process.out.read_text(encoding="utf-8").partition("\n")
            return json.loads(line) if newline else None

        self.port = int(self.process.until(said, "listening", _READY_S)["url"].rpartition(":")[2])


@contextmanager
def house(folder: Path, **more: str) -> Iterator[tuple[list[Replica], Program, Balancer, str]]:
    """Run everything; yields the replicas, the worker, the port before them, and an admin's token.

    Args:
        folder: for all that is kept.
        more: settings of the server.
    """
    with ExitStack() as stack:
        postgres = stack.enter_context(EmbeddedPostgres(folder / "postgres"))
        env = environment(
            SPRAT_DATABASE_URL=postgres.url,
            SPRAT_DATA_DIR=str(folder / "data"),
            SPRAT_AUTO_SIGN="*",
            SPRAT_POLL_INTERVAL_S="1",
            SPRAT_LOG_LEVEL="warning",
            **more,
        )
        for words in (["upgrade"], ["token", "--name", "bench", "--json"]):
            done = subprocess.run(
                [program("sprat-server"), "db", *words], env=env, capture_output=True, text=True, check=True
            )
        token = json.loads(done.stdout.splitlines()[-1])["token"]
        replicas = [Replica(folder, number, env) for number in (1, 2)]
        for replica in replicas:
            replica.start()
            stack.callback(replica.process.stop)
        worker = Program("worker", [program("sprat-server"), "worker"], log=folder / "worker.log", env=env)
        worker.start()
        stack.callback(worker.stop)
        balancer = stack.enter_context(Balancer([replica.port for replica in replicas]))
        yield replicas, worker, balancer, token


def register(shell: Shell, folder: Path, model: str = MODEL) -> None:
    """Register a model, as release 1."""
    weights = tiny_models.write_weights(folder / "one.safetensors", tiny_models.worn())
    graph = tiny_models.write_graph(folder / "one.onnx", tiny_models.worn())
    shell.one("model", "register", model, "--graph", str(graph), "--weights", str(weights))


def release(shell: Shell, folder: Path, step: int) -> int:
    """Make the next release; return its number."""
    changed = {name: array * (1.0 + step / 1000) for name, array in tiny_models.truth().items()}
    file = tiny_models.write_weights(folder / "next.safetensors", changed)
    return int(shell.one("release", "create", MODEL, "--weights", str(file))["result"]["release"])


def killer(replica: Replica, worker: Program, client: SpratClient, until: int) -> threading.Thread:
    """Return a thread that kills a replica and the worker when so many devices have committed; both come back later."""

    def work() -> None:
        while True:
            time.sleep(0.2)
            live = [one for one in client.rollouts.list() if one["state"] == "running" and one["rule"] == "evidence"]
            if live and live[0]["committed"] >= until:
                break
        replica.process.kill()
        worker.kill()
        time.sleep(5.0)
        replica.start()
        worker.start()

    return threading.Thread(target=work, daemon=True)


def run(folder: Path, devices: int, interval_s: float, chosen: Sequence[str]) -> list[dict[str, Any]]:
    """Play rows; each has the seed that it has among all."""
    rows = []
    with house(folder) as (replicas, worker, balancer, token):
        shell = Shell(balancer.url, token)
        register(shell, folder)
        for step, (row, trouble) in enumerate(ROWS.items(), start=1):
            if row not in chosen:
                continue
            number = release(shell, folder, step)
            plan = Plan(
                model=MODEL,
                base=1,
                release=number,
                trouble=trouble.split(",")[0],
                devices=devices,
                interval_s=interval_s,
                seed=step,
            )
            with SpratClient(balancer.url, token) as client, SpratClient(balancer.url, token) as other:
                if trouble == KILLED:
                    killer(replicas[0], worker, other, devices // 4).start()
                done = rehearse(client, balancer.url, plan, lambda line: print(line, file=sys.stderr, flush=True))
            rows.append({"trouble": trouble, **done.as_json()})
            print(line_of(rows[-1]), flush=True)
    return rows


HEAD: Final = f"{'what is wrong':<54}{'ended':>10}{'exposed':>9}{'kept it':>9}{'after':>9}{'all back':>10}{'silent':>8}"


def line_of(row: dict[str, Any]) -> str:
    """Return a row in words."""
    back = "" if row["back_seconds"] is None else f"{row['back_seconds']:.1f} s"
    return (
        f"{row['trouble']:<54}{row['state']:>10}{row['exposed']:>9,}{row['committed']:>9,}{row['seconds']:>7.0f} s"
        f"{back:>10}{row['silent']:>8}"
    )


def main() -> None:
    """Print the table; write JSON where it is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--devices", type=int, default=1000, help="that are played (default: %(default)s)")
    parser.add_argument("--interval-s", type=float, default=2.0, help="between two polls of one (default: %(default)s)")
    parser.add_argument("--only", action="append", choices=list(ROWS), help="this row; may be given again")
    parser.add_argument("--json", type=Path, help="write the report here too")
    asked = parser.parse_args()
    print(HEAD, flush=True)
    with tempfile.TemporaryDirectory(prefix="sprat-fleet-") as folder:
        rows = run(Path(folder), asked.devices, asked.interval_s, asked.only or list(ROWS))
    if asked.json:
        asked.json.write_text(json.dumps({"devices": asked.devices, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
