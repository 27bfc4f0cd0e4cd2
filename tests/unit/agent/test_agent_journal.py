"""The journal: what a transition writes is all there after a cut, or not at all."""

import itertools
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from crashing_disk import CrashingDisk, Names, PowerCut

from sprat_client.agent.desired import Desired
from sprat_client.agent.formats import NewerFormat
from sprat_client.agent.journal import (
    REFUSALS_KEPT,
    Journal,
    JournalUnreadable,
    ModelRecord,
    Trouble,
    TrustRecord,
    Work,
)
from sprat_client.agent.states import State
from sprat_client.agent.trust.marks import Marks
from sprat_shared.protocol.report import Evidence, Outcome, Report, TrustReport, read_report

PATH = Path("/disk/journal.json")
DIGEST = f"sha256:{'ab' * 32}"
WISH = Desired(
    model="tiny",
    release=3,
    weights=DIGEST,
    assignment=7,
    graph=f"tiny/graph/{'cd' * 32}",
    path=("tiny/3/from-2",),
    full="tiny/3/full",
)
EVIDENCE = Evidence(
    samples=10,
    old_correct=7,
    new_correct=8,
    only_old=0,
    only_new=1,
    p_worse=1.0,
    old_latency_s=0.1,
    new_latency_s=0.1,
)
WORK = Work(
    wish=WISH,
    started_at=12.5,
    steps=WISH.path,
    release_id=DIGEST,
    graph=DIGEST,
    back_to=DIGEST,
    reason=("trial.errors", "three requests failed"),
    evidence=EVIDENCE,
    validated="paired",
    received_bytes=99,
)
RECORD = ModelRecord(state=State.TRIAL, highest_assignment=7, pending=WISH, work=WORK, resumes=1, trial_cuts=2).refuse(
    6, 2, "validation.worse"
)


def report(sequence: int) -> Report:
    return Report(
        device=UUID(int=1),
        sequence=sequence,
        model="tiny",
        assignment=7,
        release=3,
        outcome=Outcome.COMMITTED,
        serving_release=3,
        serving_weights=DIGEST,
        error_code=None,
        error_detail=None,
        evidence=EVIDENCE,
        received_bytes=10,
        seconds=1.5,
        agent="0.1.0",
    )


def test_what_was_stored_is_read_back() -> None:
    disk = CrashingDisk(PATH.parent)
    journal = Journal(PATH, disk)
    journal.store("tiny", RECORD, report(1))
    journal.store("other", ModelRecord())
    again = Journal(PATH, disk)
    assert again.models == {"tiny": RECORD, "other": ModelRecord()}
    assert again.unsent == (report(1).to_json(),)
    assert again.next_sequence == 2


def test_what_was_seen_of_trust_is_read_back_with_the_report_of_a_refusal() -> None:
    disk = CrashingDisk(PATH.parent)
    journal = Journal(PATH, disk)
    journal.store("tiny", RECORD, report(1))
    marks = Marks(
        versions={"root": 2, "timestamp": 9},
        keys={"timestamp": frozenset({"ab", "cd"}), "snapshot": frozenset({"ef"})},
        time=datetime(2026, 5, 1, 12, 0, 3, tzinfo=UTC),
    )
    journal.keep_marks("image", marks)
    trust = TrustRecord(
        marks={"image": marks}, trouble=Trouble(code="trust.rollback", detail="old", since=3.5), clock_ahead_s=86400.0
    )
    said = TrustReport(device=UUID(int=1), sequence=2, error_code="trust.rollback", error_detail="old", agent="0.1.0")
    journal.keep_trust(trust, said)
    again = Journal(PATH, disk)
    assert again.trust == trust
    assert (again.marks("image"), again.marks("director")) == (marks, Marks())
    assert again.models == {"tiny": RECORD}
    assert again.unsent[1:] == (said.to_json(),)
    assert read_report(said.to_json()) == said
    assert again.next_sequence == 3


def test_a_model_without_a_record_is_idle() -> None:
    assert Journal(PATH, CrashingDisk(PATH.parent)).record("tiny") == ModelRecord()


@pytest.mark.parametrize("names", ["lost", "kept"])
def test_a_transition_and_its_report_are_both_there_after_a_cut_or_neither(names: Names) -> None:
    for calls in itertools.count():
        disk = CrashingDisk(PATH.parent, names)
        journal = Journal(PATH, disk)
        journal.store("tiny", ModelRecord(state=State.VALIDATING, work=WORK, highest_assignment=7))
        disk.calls_left = calls
        try:
            journal.store("tiny", RECORD, report(1))
        except PowerCut:
            again = Journal(PATH, disk)
            assert (again.record("tiny").state, again.next_sequence, len(again.unsent)) in {
                (State.VALIDATING, 1, 0),
                (State.TRIAL, 2, 1),
            }
        else:
            break


def test_a_sequence_is_never_given_twice() -> None:
    disk = CrashingDisk(PATH.parent)
    journal = Journal(PATH, disk)
    journal.store("tiny", RECORD, report(journal.next_sequence))
    journal.forget_unsent()
    disk.power_cut()
    again = Journal(PATH, disk)
    assert (again.next_sequence, again.unsent) == (2, ())


def test_only_the_newest_refusals_are_kept() -> None:
    record = ModelRecord()
    for assignment in range(1, 50):
        record = record.refuse(assignment, 1, "update.malformed")
    assert [refusal.assignment for refusal in record.refused] == list(range(50 - REFUSALS_KEPT, 50))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"format": 1}',
        b'{"format": 1, "sequence": 0, "unsent": [], "models": {"a": {"state": "?"}}}',
    ],
)
def test_a_damaged_journal_is_refused_by_name(content: bytes) -> None:
    disk = CrashingDisk(PATH.parent)
    disk.write(PATH, content, 0o600)
    with pytest.raises(JournalUnreadable, match=r"journal\.json"):
        Journal(PATH, disk)


def test_a_journal_of_a_newer_agent_is_refused_by_name() -> None:
    disk = CrashingDisk(PATH.parent)
    disk.write(PATH, b'{"format": 3}', 0o600)
    with pytest.raises(NewerFormat, match="newer agent"):
        Journal(PATH, disk)


def test_a_record_without_work_is_read_back() -> None:
    disk = CrashingDisk(PATH.parent)
    record = replace(RECORD, state=State.IDLE, work=None, pending=None)
    Journal(PATH, disk).store("tiny", record)
    assert Journal(PATH, disk).record("tiny") == record


def as_format_1(value: dict[str, Any]) -> dict[str, Any]:
    """Return a journal as an agent before 0.2 wrote it."""
    del value["paused_until"]
    for model in value["models"].values():
        del model["failures"]
        for work in filter(None, [model["work"]]):
            del work["entered_at"], work["waiting"], work["spent_s"], work["agains"]
        for wish in filter(None, [model["pending"], model["work"] and model["work"]["wish"]]):
            del wish["prefetch"], wish["policy"]
    return {**value, "format": 1}


@pytest.mark.parametrize("state", State)
def test_an_older_agents_journal_is_gone_on_with_in_every_state(state: State) -> None:
    disk = CrashingDisk(PATH.parent)
    record = replace(RECORD, state=state) if state is not State.IDLE else replace(RECORD, state=state, work=None)
    journal = Journal(PATH, disk)
    journal.store("tiny", record)
    disk.write(PATH, json.dumps(as_format_1(json.loads(disk.read(PATH)))).encode(), 0o600)
    read = Journal(PATH, disk).record("tiny")
    entered = read.work and replace(read.work, entered_at=0.0)
    assert replace(read, work=entered) == record
    assert read.work is None or read.work.entered_at == read.work.started_at


def test_a_pause_survives_and_ends() -> None:
    disk = CrashingDisk(PATH.parent)
    Journal(PATH, disk).pause(1e10)
    journal = Journal(PATH, disk)
    assert journal.paused_until == 1e10
    journal.pause(None)
    assert Journal(PATH, disk).paused_until is None
