"""What a poll costs on a real TLS connection: the goals that `benchmarks/poll_bytes.py` prints."""

from pathlib import Path

from fastapi import FastAPI
from poll_bytes import enrolled, lines_of, meets_the_goals, on_tls, polls


def test_an_idle_poll_and_the_metadata_of_an_update_stay_within_their_bytes(app: FastAPI, tmp_path: Path) -> None:
    past = 40
    with on_tls(app, tmp_path) as link:
        device, model = enrolled(app, link, past)
        report = polls(app, device, model, past)
    costs = {"body_bytes": 0.0, "signing_cpu_ms": 0.0, "poll_cpu_ms": 0.0}
    assert meets_the_goals(report), "\n".join(lines_of(report | {"past_releases": past, "director": costs}))
