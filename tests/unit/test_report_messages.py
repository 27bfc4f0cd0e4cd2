"""Reports of other versions are read, and what contradicts itself is not."""

import json
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from sprat_shared.errors import InvalidInput
from sprat_shared.protocol.facts_report import FactsReport
from sprat_shared.protocol.holdout_report import HoldoutReport
from sprat_shared.protocol.report import Evidence, Outcome, Report, read_report
from sprat_shared.protocol.watched import Watched

OLD = {
    "samples": 200,
    "old_correct": 190,
    "new_correct": 191,
    "only_old": 3,
    "only_new": 4,
    "p_worse": 0.77,
    "old_latency_s": 0.01,
    "new_latency_s": 0.01,
}
REPORT = Report(
    device=UUID(int=1),
    sequence=3,
    model="tiny",
    assignment=2,
    release=2,
    outcome=Outcome.COMMITTED,
    serving_release=2,
    serving_weights="sha256:" + "0" * 64,
    error_code=None,
    error_detail=None,
    evidence=Evidence.of(OLD),
    received_bytes=900,
    seconds=1.5,
    agent="0.1.0",
)
HOLDOUT = HoldoutReport(
    device=UUID(int=1),
    sequence=4,
    model="tiny",
    release=2,
    samples=3,
    added=5,
    classes=((1, 2), (0, 1)),
    others=0,
    confidences=(0, 0, 0, 0, 0, 0, 0, 0, 0, 3),
    correct=(0, 0, 0, 0, 0, 0, 0, 0, 0, 2),
    agent="0.1.0",
)


def test_evidence_of_an_older_agent_is_read_and_told_again_as_it_was() -> None:
    assert Evidence.of(OLD).as_json() == OLD


def test_evidence_of_now_goes_through_the_report_and_takes_no_bytes_for_what_is_not_known() -> None:
    evidence = replace(
        Evidence.of(OLD),
        mode="paired",
        unproven=True,
        new_latency_p95_s=0.02,
        new_memory_bytes=10,
        compared=4,
        agreed=4,
        max_drop=0.53,
        shadow=Watched(seconds=9.0),
        trial=Watched(seconds=1.5, requests=7, failed=1, old_p95_s=0.1, new_confidence=0.5),
    )
    body = replace(REPORT, evidence=evidence).to_json()
    assert read_report(body) == replace(REPORT, evidence=evidence)
    said = json.loads(body)["evidence"]
    assert said["shadow"] == {"seconds": 9.0, "requests": 0}
    assert said.keys() == OLD.keys() | {
        "mode", "unproven", "new_latency_p95_s", "new_memory_bytes", "compared", "agreed", "max_drop", "shadow", "trial"
    }  # fmt: skip


def test_a_report_of_a_newer_agent_is_read_without_what_is_not_known_here() -> None:
    said = json.loads(REPORT.to_json())
    said["evidence"] |= {"mood": "good", "trial": {"seconds": 1, "requests": 2, "weather": "fine"}}
    report = read_report(json.dumps(said | {"battery": 0.4}).encode())
    assert isinstance(report, Report)
    assert report.evidence == replace(Evidence.of(OLD), trial=Watched(seconds=1.0, requests=2))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"compared": 3, "agreed": 4}, "more inputs agreed"),
        ({"agreed": 4}, "more inputs agreed"),
        ({"max_drop": 1.5}, "max_drop"),
        ({"new_latency_p95_s": -1.0}, "new_latency_p95_s"),
        ({"trial": {"seconds": 1, "requests": 1, "compared": 2, "agreed": 3}}, "more samples agreed"),
        ({"trial": {"seconds": float("inf"), "requests": 1}}, "seconds"),
        ({"shadow": {"requests": -1, "seconds": 1}}, "requests"),
    ],
)
def test_evidence_that_contradicts_itself_is_not_read(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        Evidence.of(OLD | change)


def test_a_report_on_a_holdout_goes_through_its_bytes() -> None:
    assert read_report(HOLDOUT.to_json()) == HOLDOUT


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"samples": 4}, "sum to the samples"),
        ({"classes": [[1, 2], [0]]}, "pairs of label and count"),
        ({"classes": [[1, 3], [-1, 0]]}, "pairs of label and count"),
        ({"classes": [[k, 0] for k in range(64)] + [[64, 3]]}, "at most 64"),
        ({"confidences": [3]}, "10 counts"),
        ({"correct": [1, 0, 0, 0, 0, 0, 0, 0, 0, 2]}, "more right than it holds"),
        ({"device": "me"}, "not a UUID"),
    ],
)
def test_a_report_on_a_holdout_that_contradicts_itself_is_not_read(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        read_report(json.dumps(json.loads(HOLDOUT.to_json()) | change).encode())


FACTS = FactsReport(device=UUID(int=1), sequence=5, attributes={"camera": "imx219"}, agent="0.1.0")


def test_facts_are_read_as_they_were_said() -> None:
    assert read_report(FACTS.to_json()) == FACTS


@pytest.mark.parametrize(
    "attributes", [{"a": 4}, {"a": None}, {"a": "x" * 401}, {"k" * 101: "v"}, {f"k{n}": "v" for n in range(65)}, []]
)
def test_facts_are_few_short_texts(attributes: Any) -> None:
    said = json.loads(FACTS.to_json()) | {"attributes": attributes}
    with pytest.raises(InvalidInput, match="attribute"):
        read_report(json.dumps(said).encode())
