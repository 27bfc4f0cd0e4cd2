"""How many idle polls does one API process answer, beside a bare uvicorn that answers the same and does nothing?

    python benchmarks/polls.py [--devices 100000] [--asking 2000] [--json FILE]

A real PostgreSQL with so many devices; `asking` of them have polled before and hold all that is new, as a fleet does
nearly always. Server and load generator are pinned to a core each, where there are two; connections are kept, plain
HTTP, each answer is a 304. The bare application runs under the same uvicorn with the same settings, in turn with the
server, and the ratio is of the same turn. Then two processes behind one port, the statistics of PostgreSQL that say
which tables idle polls touch, and the time that a wave of 10,000 assignments takes to be computed.
"""

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import httpx
import psycopg
import uvicorn
from fastapi import FastAPI
from poll_bytes import hold, publish
from polling.load import Rate, load
from sqlalchemy import insert

from sprat_server.app import check, create_app
from sprat_server.db import migrate
from sprat_server.db.embedded import EmbeddedPostgres
from sprat_server.db.projects import DEFAULT_PROJECT
from sprat_server.db.session import Database
from sprat_server.fleet import service as fleet
from sprat_server.fleet.models import Device
from sprat_server.fleet.tokens import hash_token
from sprat_server.flows import poll as poll_flow
from sprat_server.flows import rollout as rollout_flow
from sprat_server.observe import logs
from sprat_server.registry import service as registry
from sprat_server.rollouts.gate_plan import GatePlan
from sprat_server.settings import Settings
from sprat_shared.ids import new_id
from sprat_shared.protocol.poll import HeldMetadata, Part, format_tag

GOAL_RATIO: Final = 0.5
WAVE: Final = 10_000
ROUNDS: Final = 3
CONNECTIONS: Final = 64


def serve(kind: str, fd: int, core: int) -> None:
    """Serve on a listening socket, pinned to a core: the server, or what answers 304 and does nothing else."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    logs.configure(log_format="json", log_level="info")
    app: Any = _bare if kind == "bare" else create_app(Settings.model_validate_json(os.environ["SETTINGS"]))
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, date_header=False, timeout_keep_alive=75
    )
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=fd)])


async def _bare(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        while (await receive())["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    await send({"type": "http.response.start", "status": 304, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@contextlib.contextmanager
def serving(kind: str, settings: Settings, port: int, core: int) -> Iterator[int]:
    """Run a server process on a port, 0 for a free one, which several may share; yields the port."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(512)
        port, fd = listener.getsockname()[1], listener.fileno()
        env = {**os.environ, "SETTINGS": settings.model_dump_json(exclude_none=True)}
        command = [sys.executable, __file__, "--serve", kind, "--fd", str(fd), "--core", str(core)]
        process = subprocess.Popen(
            command, pass_fds=[fd], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    try:
        wait_until_ready(port, process)
        yield port
    finally:
        process.terminate()
        process.wait()


def wait_until_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until a request is answered."""
    for _ in range(600):
        with contextlib.suppress(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=1.0)
            return
        if process.poll() is not None:
            raise SystemExit("the server ended")
        time.sleep(0.1)
    raise SystemExit("the server does not answer")


def register(app: FastAPI, devices: int) -> dict[UUID, str]:
    """Add so many devices to the fleet, each with a bearer token for a day; return the tokens."""
    tokens = {new_id(): f"spratd_{n:022d}" for n in range(devices)}
    until = datetime.now(UTC) + timedelta(days=1)
    rows = [
        {
            "id": device,
            "project_id": DEFAULT_PROJECT,
            "name": f"d{n}",
            "device_group": f"site-{n % 5}",
            "public_key": n.to_bytes(32, "little"),
            "token_hash": hash_token(token),
            "token_expires_at": until,
            "agent": "0.1.0",
            "attributes": {},
        }
        for n, (device, token) in enumerate(tokens.items())
    ]
    for at in range(0, devices, WAVE):
        with app.state.database.transaction(DEFAULT_PROJECT) as session:
            session.execute(insert(Device), rows[at : at + WAVE])
    return tokens


def polls_of(app: FastAPI, asking: Sequence[UUID], tokens: dict[UUID, str], model: UUID) -> list[bytes]:
    """Assign release 1 to devices that hold it; return the idle poll of each, naming all that is signed for it."""
    requests = []
    for device in asking:
        with app.state.database.transaction(DEFAULT_PROJECT) as session:
            fleet.assign(session, model, {device: 1}, "rollout")
            hold(session, device, model, 1)
        with app.state.database.transaction(DEFAULT_PROJECT) as session:
            reading = poll_flow.read(session, app.state.settings, device, held=[], inline_bytes=0)
        held = [_held(part) for part in (reading.draft.answer.parts if reading.draft else ())]
        lines = [
            "GET /device/v1/poll HTTP/1.1",
            "Host: 127.0.0.1",
            f"Authorization: Bearer {tokens[device]}",
            f"If-None-Match: {format_tag(held)}",
        ]
        requests.append("\r\n".join([*lines, "", ""]).encode())
    return requests


def _held(part: Part) -> HeldMetadata:
    repository, _, file = part.name.partition("/")
    return HeldMetadata(
        repository, file.removesuffix(".json").split(".", 1)[-1], json.loads(part.data)["signed"]["version"]
    )


def wave(app: FastAPI, devices: Sequence[UUID]) -> float:
    """Return the seconds that starting a rollout takes whose first wave has so many devices, each assigned."""
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        publish(session, app, 2)
    begun = time.perf_counter()
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        name = registry.all_models(session)[0].name
        made = rollout_flow.create(
            session, model=name, release=2, reaches=["100%"], devices=list(devices), by="bench", gates=GatePlan()
        )
        rollout_flow.start(session, made.id, settings=app.state.settings)
    return time.perf_counter() - begun


def touched(url: str) -> dict[str, int]:
    """Return how many rows of each table of ours were read, and written, since the statistics were begun."""
    query = (
        "SELECT relname, coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0) + n_tup_ins + n_tup_upd + n_tup_del "
        "FROM pg_stat_user_tables"
    )
    with psycopg.connect(url, autocommit=True) as connection:
        return {str(name): int(rows) for name, rows in connection.execute(query)}


def run(folder: Path, devices: int, asking: int, seconds: float) -> dict[str, Any]:
    """Measure all of it."""
    logs.configure(log_format="json", log_level="error")
    with EmbeddedPostgres(folder / "postgres") as postgres:
        database = Database(postgres.url)
        migrate.upgrade(database.engine)
        database.close()
        settings = Settings(database_url=postgres.url, data_dir=folder / "data", auto_sign="*")
        app = create_app(settings)
        check(app)
        with app.state.database.transaction(DEFAULT_PROJECT) as session:
            model = publish(session, app, 1)
        tokens = register(app, devices)
        ids = list(tokens)
        requests = polls_of(app, ids[:asking], tokens, model)
        server, generator = _cores()
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {generator})
        with serving("bare", settings, 0, server) as bare, serving("sprat", settings, 0, server) as own:
            warm = load(own, requests, connections=CONNECTIONS, seconds=max(5.0, asking / 100))
            turns = [
                tuple(load(port, requests, connections=CONNECTIONS, seconds=seconds) for port in (bare, own))
                for _ in range(ROUNDS)
            ]
            time.sleep(6.0)  # the last batch of last-seen times, and the statistics of both
            before = touched(postgres.url)
            last = load(own, requests, connections=CONNECTIONS, seconds=4.0)
            after = touched(postgres.url)
        with serving("sprat", settings, 0, server) as first, serving("sprat", settings, first, generator):
            load(first, requests, connections=CONNECTIONS, seconds=max(5.0, asking / 100))
            both = load(first, requests, connections=CONNECTIONS, seconds=seconds)
        report = {
            "devices": devices,
            "asking": asking,
            "warm": warm.statuses,
            "bare": _middle([bare for bare, _ in turns]),
            "sprat": _middle([own for _, own in turns]),
            "ratio": statistics.median(own.per_s / bare.per_s for bare, own in turns),
            "two_processes": _middle([both]),
            "rows_touched": {name: n - before.get(name, 0) for name, n in after.items() if n != before.get(name, 0)},
            "polls_meanwhile": sum(last.statuses.values()),
            "wave_seconds": wave(app, ids[asking : asking + WAVE]),
            "wave_devices": len(ids[asking : asking + WAVE]),
        }
        app.state.database.close()
        return report


def _cores() -> tuple[int, int]:
    if not hasattr(os, "sched_getaffinity"):
        return 0, 0
    here = sorted(os.sched_getaffinity(0))
    return here[0], here[-1]


def _middle(rates: Sequence[Rate]) -> dict[str, Any]:
    if any(set(rate.statuses) != {304} for rate in rates):
        raise SystemExit(f"not every answer was 304: {[rate.statuses for rate in rates]}")
    return {
        "per_s": statistics.median(rate.per_s for rate in rates),
        "p50_ms": statistics.median(rate.p50_ms for rate in rates),
        "p99_ms": statistics.median(rate.p99_ms for rate in rates),
    }


def lines_of(report: dict[str, Any]) -> list[str]:
    """Return the report in words."""
    rows = {
        "bare uvicorn": report["bare"],
        "sprat, one process": report["sprat"],
        "sprat, two processes, one port": report["two_processes"],
    }
    touches = ", ".join(f"{name} {n}" for name, n in report["rows_touched"].items()) or "none"
    return [
        f"{report['devices']:,} devices registered, {report['asking']:,} of them asking",
        f"{'':<34}{'polls/s':>10}{'p50':>10}{'p99':>10}",
        *(f"{n:<34}{r['per_s']:>10,.0f}{r['p50_ms']:>7.2f} ms{r['p99_ms']:>7.2f} ms" for n, r in rows.items()),
        f"{'ratio to bare uvicorn':<34}{report['ratio']:>10.2f} (goal {GOAL_RATIO})",
        f"rows of tables touched meanwhile by {report['polls_meanwhile']:,} idle polls: {touches}",
        f"a wave of {report['wave_devices']:,} assignments: {report['wave_seconds']:.1f} s",
    ]


def main() -> None:
    """Print the table; write JSON where it is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--devices", type=int, default=100_000, help="registered (default: %(default)s)")
    parser.add_argument("--asking", type=int, default=2000, help="of these poll (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each turn (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the report here too")
    parser.add_argument("--serve", choices=("bare", "sprat"), help=argparse.SUPPRESS)
    parser.add_argument("--fd", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--core", type=int, default=0, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        serve(asked.serve, asked.fd, asked.core)
        return
    with tempfile.TemporaryDirectory(prefix="sprat-polls-") as folder:
        report = run(Path(folder), asked.devices, asked.asking, asked.seconds)
    print("\n".join(lines_of(report)))
    if asked.json:
        asked.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
