"""One model's durable record and what the server is told of it: the next state is on the disk before it is acted on."""

import logging
import time
from dataclasses import dataclass, replace
from typing import Final

from sprat_client.agent.desired import Desired
from sprat_client.agent.journal import ModelRecord, Work
from sprat_client.agent.serve import Serving
from sprat_client.agent.states import Event, State, step
from sprat_client.agent.steps import Workshop
from sprat_client.agent.store import StoreCorrupted
from sprat_client.agent.version import VERSION
from sprat_shared.protocol.report import Outcome, Report
from sprat_shared.trust.assignments import Assigned

_log = logging.getLogger(__name__)
_DETAIL_LENGTH: Final = 1000


@dataclass(frozen=True, slots=True)
class Settled:
    """How an assignment ended."""

    model: str
    release: int
    outcome: Outcome
    error_code: str | None


class Progress:
    """Keeps one model's record, and reports what became of its assignments.

    Args:
        model: its name.
        shop: what the agent works with.

    Attributes:
        settled: the assignments that ended since the start.
    """

    def __init__(self, model: str, shop: Workshop) -> None:
        self._model, self._shop = model, shop
        self.settled: list[Settled] = []

    @property
    def record(self) -> ModelRecord:
        """The durable record."""
        return self._shop.journal.record(self._model)

    @property
    def state(self) -> State:
        """The state that the journal says."""
        return self.record.state

    @property
    def work(self) -> Work:
        """The update under way."""
        work = self.record.work
        if work is None:
            raise AssertionError(f"{self.record.state} without work")
        return work

    def keep(self, record: ModelRecord) -> None:
        """Make a record durable that says nothing new to the server."""
        self._shop.journal.store(self._model, record)

    def keep_work(self, work: Work) -> None:
        """Make what is known of the update under way durable."""
        self.keep(replace(self.record, work=work))

    def enter(
        self,
        event: Event,
        work: Work | None,
        *,
        outcome: Outcome | None = None,
        bad: tuple[str, str] | None = None,
        pending_taken: bool = False,
    ) -> None:
        """Make the next state durable, with its report, before anything is done in it."""
        record = self.record
        state = step(record.state, event)
        work = None if work is None else replace(work, entered_at=time.time())
        after = replace(record, state=state, work=work, resumes=0, trial_cuts=0)
        if pending_taken:
            after = replace(after, pending=None)
        report, settled = None, None
        if outcome is not None:
            after, report, settled = self._conclude(after, self.work, outcome, bad)
        self._store(after, report, settled)
        _log.info("state", extra={"model": self._model, "state": state, "event": event, "from": record.state})

    def settle(self, work: Work, outcome: Outcome) -> None:
        """Answer an assignment that asks for what is there already."""
        self._store(*self._conclude(replace(self.record, pending=None), work, outcome, None))

    def refuse(self, assigned: Assigned | Desired, bad: tuple[str, str]) -> None:
        """Answer an assignment that will not be worked on, with code and sentence of the reason."""
        _log.error(
            "refused", extra={"model": self._model, "assignment": assigned.assignment, "code": bad[0], "detail": bad[1]}
        )
        record = self.record
        record = replace(record, highest_assignment=max(record.highest_assignment, assigned.assignment))
        record = record.refuse(assigned.assignment, assigned.release, bad[0])
        settled = Settled(self._model, assigned.release, Outcome.REFUSED, bad[0])
        self._store(record, self._report(assigned, Outcome.REFUSED, bad, None), settled)

    def _store(self, record: ModelRecord, report: Report | None, settled: Settled | None) -> None:
        self._shop.journal.store(self._model, record, report)
        if settled is not None:
            self.settled.append(settled)
        if report is not None:
            self._shop.flush_reports()

    def _conclude(
        self, record: ModelRecord, work: Work, outcome: Outcome, bad: tuple[str, str] | None
    ) -> tuple[ModelRecord, Report, Settled]:
        """Return the record and the report of an assignment that ended."""
        wish = work.wish
        bad = bad or work.reason
        if bad is not None:
            record = record.refuse(wish.assignment, wish.release, bad[0])
        settled = Settled(self._model, wish.release, outcome, None if bad is None else bad[0])
        return record, self._report(wish, outcome, bad, work), settled

    def _report(
        self, assigned: Desired | Assigned, outcome: Outcome, bad: tuple[str, str] | None, work: Work | None
    ) -> Report:
        """Return the report on an assignment; without work it was refused before any was done."""
        serving = self._shop.servings.get(self._model)
        return Report(
            device=self._shop.device,
            sequence=self._shop.journal.next_sequence,
            model=self._model,
            assignment=assigned.assignment,
            release=assigned.release,
            outcome=outcome,
            serving_release=None if serving is None else serving.slot.release,
            serving_weights=None if serving is None else _digest_or_none(serving),
            error_code=None if bad is None else bad[0][:100],
            error_detail=None if bad is None else bad[1][:_DETAIL_LENGTH],
            evidence=None if work is None else work.evidence,
            received_bytes=0 if work is None else work.received_bytes,
            seconds=0.0 if work is None else max(0.0, time.time() - work.started_at),
            agent=VERSION,
        )


def _digest_or_none(serving: Serving) -> str | None:
    """Return the digest of what serves, computed over its files; None where they cannot be read."""
    try:
        return serving.digest()
    except StoreCorrupted as bad:
        _log.error("what serves is damaged", extra={"model": serving.manifest.model, "detail": str(bad)})
        return None
