"""Reports of what was measured: the same after JSON, and refused by name where they say what cannot be."""

import json
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from sprat_shared.errors import InvalidInput
from sprat_shared.protocol.measures_report import (
    MOST_MODULES,
    LinkFigures,
    MeasuresReport,
    ModuleFigures,
    Spread,
)
from sprat_shared.protocol.report import read_report

SPREAD = Spread(count=12, p10=0.1, median=0.2, p90=0.4)
OTHER = UUID(int=7)
REPORT = MeasuresReport(
    device=UUID(int=3),
    sequence=4,
    modules=(
        ModuleFigures(model="vision", release=3, memory_bytes=90 << 20, tried_s=0.25, runs=SPREAD),
        ModuleFigures(model="head", release=1),
    ),
    links=(LinkFigures(device=OTHER, round_trip=SPREAD, sent=SPREAD), LinkFigures(device=UUID(int=8))),
    agent="1",
)


def test_a_report_is_what_it_was_after_json() -> None:
    assert read_report(REPORT.to_json()) == REPORT
    assert len(REPORT.to_json()) < 1000


def said(path: str, value: Any) -> bytes:
    body = json.loads(REPORT.to_json())
    *way, last = path.split(".")
    at = body
    for name in way:
        at = at[int(name) if name.isdecimal() else name]
    at[last] = value
    return json.dumps(body).encode()


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("modules.0.memory_bytes", -1, "module vision.*memory_bytes.*1 to"),
        ("modules.0.memory_bytes", 0, "memory_bytes"),
        ("modules.0.memory_bytes", 1 << 60, "memory_bytes"),
        ("modules.0.memory_bytes", 0.5, "an integer"),
        ("modules.0.tried_s", -0.1, "module vision.*tried_s.*0 to 1e[+]06 seconds, got -0.1"),
        ("modules.0.tried_s", float("nan"), "got nan"),
        ("modules.0.tried_s", float("inf"), "got inf"),
        ("modules.0.tried_s", 10**400, "larger than any number"),
        ("modules.0.tried_s", "fast", "a number"),
        ("modules.0.runs.median", 0.5, "module vision: runs: p10, median and p90 must not fall"),
        ("modules.0.runs.count", 0, "count"),
        ("modules.0.release", 0, "release"),
        ("modules.0.model", "Vision!", "Vision!"),
        ("modules.1.model", "vision!", "vision!"),
        ("links.0.round_trip.p10", -1, f"link to {OTHER}: round_trip.*p10"),
        ("links.0.sent", [1], "an object"),
        ("links.0.device", "box", "not a UUID"),
        ("links.0.device", str(REPORT.device), "measured twice, or by itself"),
        ("links.1.device", str(OTHER), f"{OTHER} is measured twice"),
        ("modules", [{"model": "m", "release": at} for at in range(1, MOST_MODULES + 2)], "201 modules"),
        ("links", {"box": 1}, "a list"),
    ],
)
def test_figures_that_cannot_be_are_refused_by_name(path: str, value: Any, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        read_report(said(path, value))


def test_a_release_that_is_measured_twice_is_refused() -> None:
    twice = replace(REPORT, modules=(REPORT.modules[0], replace(REPORT.modules[1], model="vision", release=3)))
    with pytest.raises(InvalidInput, match="vision@3 is measured twice"):
        read_report(twice.to_json())
