"""What does a poll cost on the link, and what does the director cost the server?

    python benchmarks/poll_bytes.py [--past 1000] [--json FILE]

A real server on its private PostgreSQL, reached over TLS 1.3 on a kept connection; a device that enrols, holds a
release and polls. Bytes are counted on the socket, TLS's records included. Goals: an idle poll takes at most 250 bytes
up and down; the signed metadata that bring one update, of both repositories, take at most 700 bytes where the device
holds the ones before, 4,000 where it holds nothing: with one release in the past, and with a thousand. Those stand in
PostgreSQL alone, as live metadata are pruned to what a device may need.
"""

import argparse
import hashlib
import json
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import numpy as np
import uvicorn
from fastapi import FastAPI
from polling.link import Device, TlsConnection, make_certificate
from sqlalchemy.orm import Session

from sprat_server.app import create_app
from sprat_server.db import migrate
from sprat_server.db.embedded import EmbeddedPostgres
from sprat_server.db.projects import DEFAULT_PROJECT
from sprat_server.db.session import Database
from sprat_server.fleet import service as fleet
from sprat_server.fleet.enrolment import create_enrolment_token
from sprat_server.fleet.models import DeviceSlots
from sprat_server.flows.poll import wishes_of
from sprat_server.flows.publishing import publish_release
from sprat_server.observe import logs
from sprat_server.observe.actors import SYSTEM
from sprat_server.publish import director
from sprat_server.registry import service as registry
from sprat_server.registry.models import Publication
from sprat_server.registry.service import NewUpdate
from sprat_server.settings import Settings
from sprat_shared.wire.tensors import TensorSpec, TensorTable, weights_digest

GOAL_IDLE_BYTES: Final = 250
GOAL_KNOWN_BYTES: Final = 700
GOAL_PLAIN_BYTES: Final = 4000
MODEL: Final = "pcb-defects"
_TABLE: Final = TensorTable([TensorSpec("w", "F32", (500,))])
_PAYLOAD_BYTES: Final = 500
_CHANGES: Final = 50


def measure(past: int, folder: Path) -> dict[str, Any]:
    """Return the bytes of polls of a device whose model has so many releases in the past, and the director's cost.

    Args:
        past: releases before the one that the update brings, at least 1.
        folder: an empty folder, for everything.
    """
    logs.configure(log_format="json", log_level="error")
    with EmbeddedPostgres(folder / "postgres") as postgres:
        database = Database(postgres.url)
        migrate.upgrade(database.engine)
        database.close()
        app = create_app(Settings(database_url=postgres.url, data_dir=folder / "data", auto_sign="*"))
        with on_tls(app, folder) as link:
            device, model = enrolled(app, link, past)
            return {
                "past_releases": past,
                **polls(app, device, model, past),
                "director": director_cost(app, device, model, past),
            }


def enrolled(app: FastAPI, link: TlsConnection, release: int) -> tuple[Device, UUID]:
    """Publish so many releases of a model; return a device that holds the last, and the model's id."""
    database: Database = app.state.database
    with database.transaction(DEFAULT_PROJECT) as session:
        model = publish(session, app, release)
        _, token = create_enrolment_token(session, uses=1, expires_s=3600, group="default", by=SYSTEM)
    device = Device(link, token)
    with database.transaction(DEFAULT_PROJECT) as session:
        fleet.assign(session, model, {device.id: release}, "rollout")
    device.take(device.poll(inline_bytes=0))
    with database.transaction(DEFAULT_PROJECT) as session:
        hold(session, device.id, model, release)
    return device, model


def polls(app: FastAPI, device: Device, model: UUID, past: int) -> dict[str, Any]:
    """Publish and assign the next release; return the bytes of the poll that brings it, and of an idle one."""
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        publish(session, app, past + 1)
        fleet.assign(session, model, {device.id: past + 1}, "rollout")
    known, whole = device.poll(inline_bytes=0), device.poll()
    plain = device.poll(knowing=False, inline_bytes=0)
    files = {part.name: len(part.data) for part in device.take(whole).parts if part.kind == "metadata"}
    idle = [device.poll() for _ in range(5)][-1]
    if idle.status != 304:  # noqa: PLR2004 - nothing is new
        raise SystemExit(f"an idle poll was answered {idle.status}")
    return {
        "idle": {"up_bytes": idle.up_bytes, "down_bytes": idle.down_bytes},
        "update": {
            "up_bytes": whole.up_bytes,
            "down_bytes": whole.down_bytes,
            "head_bytes": whole.head_bytes,
            "body_bytes": len(whole.body),
            "payload_bytes": _PAYLOAD_BYTES,
            "metadata_bytes": len(known.body),
            "metadata_unknown_bytes": len(plain.body),
            "files": files,
        },
    }


def director_cost(app: FastAPI, device: Device, model: UUID, past: int) -> dict[str, Any]:
    """Return what one change of an assignment costs: bytes of the answer, CPU time of signing and of the whole poll."""
    database: Database = app.state.database
    signing, polling, bodies = [], [], []
    for change in range(_CHANGES):
        with database.transaction(DEFAULT_PROJECT) as session:
            fleet.assign(session, model, {device.id: past + change % 2}, "rollout")
        with database.transaction(DEFAULT_PROJECT) as session:
            signing.append(signing_s(session, app.state.settings, device.id))
        begin = time.process_time()
        answer = device.poll(inline_bytes=0)
        polling.append(time.process_time() - begin)
        bodies.append(len(answer.body))
        device.take(answer)
    return {
        "body_bytes": statistics.median(bodies),
        "signing_cpu_ms": 1000 * statistics.median(signing),
        "poll_cpu_ms": 1000 * statistics.median(polling),
    }


def signing_s(session: Session, settings: Settings, device_id: UUID) -> float:
    """Have the director sign what changed for a device; return the CPU time, seconds."""
    wishes = wishes_of(session, device_id)
    begin = time.process_time()
    director.current(session, settings, device_id, lambda: wishes)
    return time.process_time() - begin


@contextmanager
def on_tls(app: FastAPI, folder: Path) -> Iterator[TlsConnection]:
    """Serve the application on TLS, with a certificate in `folder`, and give a connection to it."""
    certificate, key = make_certificate(folder)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            port=0,
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            ssl_certfile=certificate,
            ssl_keyfile=key,
        )
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise SystemExit("the server did not start")
            time.sleep(0.01)
        link = TlsConnection(server.servers[0].sockets[0].getsockname()[1], certificate)
        try:
            yield link
        finally:
            link.close()
    finally:
        server.should_exit = True
        thread.join()


def publish(session: Session, app: FastAPI, number: int) -> UUID:
    """Publish release `number`, with random weights and an update from the one before; return the model's id.

    Releases before it that do not exist are added to the history, with nothing signed for them but the first.
    """
    models = registry.all_models(session)
    model = models[0] if models else registry.create_model(session, name=MODEL, recipe=None, example=None)
    newest = registry.latest_release(session, model).number if models else 0
    for past in range(newest + 1, number + 1):
        weights = np.random.default_rng(past).bytes(2000)
        digest = weights_digest(_TABLE, [hashlib.sha256(weights).digest()])
        blobs = app.state.blobs
        graph, full = blobs.put_bytes(b"the graph"), blobs.put_bytes(weights)
        update = blobs.put_bytes(np.random.default_rng(-past % (1 << 32)).bytes(_PAYLOAD_BYTES))
        base = past - 1 or None
        updates = [NewUpdate(None, full.digest, full.length)]
        updates += [NewUpdate(base, update.digest, update.length)] if base is not None else []
        facts: dict[str, Any] = {
            "model": model,
            "weights_blob": full.digest,
            "table": _TABLE,
            "weights_digest": digest,
            "updates": updates,
            "metrics": {},
            "origin": "registered" if base is None else "created",
            "base": base,
        }
        if base is None or past == number:
            publish_release(session, blobs, app.state.settings, graph_blob=graph.digest, **facts)
        else:
            kept = registry.ensure_graph(session, digest=graph.digest, length=graph.length, probe=None)
            registry.add_release(session, graph=kept, **facts)
            session.add(Publication(model_id=model.id, number=past))
    return model.id


def hold(session: Session, device: UUID, model: UUID, number: int) -> None:
    """Have the device hold this release, as its report would say."""
    session.add(
        DeviceSlots(
            device_id=device,
            model_id=model,
            active=number,
            previous=None,
            weights=None,
            outcome="committed",
            reported_at=datetime.now(UTC),
        )
    )


def meets_the_goals(report: Mapping[str, Any]) -> bool:
    """Whether the bytes are within the goals."""
    return bool(
        report["idle"]["up_bytes"] + report["idle"]["down_bytes"] <= GOAL_IDLE_BYTES
        and report["update"]["metadata_bytes"] <= GOAL_KNOWN_BYTES
        and report["update"]["metadata_unknown_bytes"] <= GOAL_PLAIN_BYTES
    )


def lines_of(report: Mapping[str, Any]) -> list[str]:
    """Return the report in words."""
    idle, update, director = report["idle"], report["update"], report["director"]
    both = idle["up_bytes"] + idle["down_bytes"]
    files = sum(update["files"].values())
    return [
        f"{report['past_releases']:,} releases in the past",
        f"  idle poll: {both:,} bytes, goal {GOAL_IDLE_BYTES} ({idle['up_bytes']} up, {idle['down_bytes']} down)",
        f"  metadata of an update: {update['metadata_bytes']:,} bytes, goal {GOAL_KNOWN_BYTES} (as files: {files:,})",
        f"  where nothing is held: {update['metadata_unknown_bytes']:,} bytes, goal {GOAL_PLAIN_BYTES:,}",
        f"  with the payload of {update['payload_bytes']}: {update['up_bytes']} up, {update['down_bytes']:,} down",
        f"  the director, for a change of assignment: {director['body_bytes']:,.0f} bytes",
        f"  CPU time: signing {director['signing_cpu_ms']:.1f} ms, the whole poll {director['poll_cpu_ms']:.1f} ms",
    ]


def main() -> None:
    """Print the figures; write JSON where it is asked for; end with 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--past", type=int, nargs="+", default=[1, 1000], help="releases in the past (default: 1 1000)")
    parser.add_argument("--json", type=Path, help="write the report here too")
    asked = parser.parse_args()
    reports = []
    for past in asked.past:
        folder = Path(tempfile.mkdtemp(prefix="sprat-poll-"))
        try:
            reports.append(measure(past, folder))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        print("\n".join(lines_of(reports[-1])), flush=True)
    if asked.json:
        asked.json.write_text(json.dumps(reports, indent=1) + "\n", encoding="utf-8")
    sys.exit(0 if all(map(meets_the_goals, reports)) else 1)


if __name__ == "__main__":
    main()
