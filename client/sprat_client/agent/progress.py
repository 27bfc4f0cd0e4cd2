"""One model's durable record and what the server is told of it: the next state is on the disk before it is acted on."""

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from sprat_client.agent.desired import Desired
from sprat_client.agent.journal import ModelRecord, Work
from sprat_client.agent.states import Event, State, step
from sprat_client.agent.steps import Workshop, wished_release_id
from sprat_client.agent.store import StoreCorrupted
from sprat_client.agent.version import VERSION
from sprat_shared.errors import SpratError
from sprat_shared.protocol.report import Outcome, Report
from sprat_shared.trust.assignments import Assigned

if TYPE_CHECKING:
    from sprat_client.agent.serve import Serving

_log = logging.getLogger(__name__)
_DETAIL_LENGTH: Final = 1000
_SETTLED_KEPT: Final = 64
_BY_HAND: Final = "operator.rolled-back"


class DeadlineMissed(SpratError):
    """A state took longer than it may; what was under way is given up, and the old release serves on."""

    code = "agent.deadline"


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
        now: a clock in seconds that nobody sets.

    Attributes:
        settled: the last assignments that ended since the start.
    """

    def __init__(self, model: str, shop: Workshop, now: Callable[[], float] = time.monotonic) -> None:
        self._model, self._shop, self._now = model, shop, now
        self._counted_at = now()
        self.settled: deque[Settled] = deque(maxlen=_SETTLED_KEPT)

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

    @property
    def spent_s(self) -> float:
        """How long the agent has been at the present state, over all its starts; waiting for a link to use is no time.

        A clock that is set, or a device that is off, changes nothing.
        """
        record = self.record
        work = record.work
        if work is None:
            return 0.0
        waits = record.state is State.FETCHING and work.waiting is not None
        return work.spent_s + (0.0 if waits else self._now() - self._counted_at)

    @property
    def unkept_s(self) -> float:
        """How much of that a power cut would forget."""
        return 0.0 if self.record.work is None else self._now() - self._counted_at

    def keep(self, record: ModelRecord) -> None:
        """Make a record durable that says nothing new to the server, and how long its state has lasted."""
        if record.work is not None:
            record = replace(record, work=replace(record.work, spent_s=self.spent_s))
        self._store(record, None, None)

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
        ended: Work | None = None,
    ) -> None:
        """Make the next state durable, with its report, before anything is done in it.

        Args:
            event: what happened.
            work: the update under way from now on.
            outcome: how an assignment ended, if it did, and
            bad: why, where it did not end well.
            pending_taken: the pending assignment is the one under way now.
            ended: what is known of the update that ended, where that is more than the journal says.
        """
        record = self.record
        state = step(record.state, event)
        work = None if work is None else replace(work, entered_at=time.time(), spent_s=0.0)
        after = replace(record, state=state, work=work, resumes=0, trial_cuts=0)
        if pending_taken:
            after = replace(after, pending=None)
        report, settled = None, None
        if outcome is not None:
            after, report, settled = self._conclude(after, ended or self.work, outcome, bad)
        self._store(after, report, settled)
        _log.info("state", extra={"model": self._model, "state": state, "event": event, "from": record.state})

    def settle(self, work: Work, outcome: Outcome) -> None:
        """Answer an assignment that asks for what is there already."""
        self._store(*self._conclude(replace(self.record, pending=None), work, outcome, None))

    def tell_ready(self, work: Work) -> None:
        """Report, once, that a release which was assigned ahead lies here and waits."""
        work = replace(work, told_ready=work.wish.assignment, spent_s=self.spent_s)
        settled = Settled(self._model, work.wish.release, Outcome.READY, None)
        self._store(replace(self.record, work=work), self._report(work.wish, Outcome.READY, None, work), settled)

    def refuse(self, assigned: Assigned | Desired, bad: tuple[str, str]) -> None:
        """Answer an assignment that will not be worked on, with code and sentence of the reason."""
        _log.error(
            "refused", extra={"model": self._model, "assignment": assigned.assignment, "code": bad[0], "detail": bad[1]}
        )
        record = self.record
        highest = max(record.highest_assignment, assigned.assignment)
        pending = None if record.pending and record.pending.assignment == assigned.assignment else record.pending
        record = replace(record, highest_assignment=highest, pending=pending)
        record = record.refuse(assigned.assignment, assigned.release, bad[0])
        settled = Settled(self._model, assigned.release, Outcome.REFUSED, bad[0])
        self._store(record, self._report(assigned, Outcome.REFUSED, bad, None), settled)

    def _store(self, record: ModelRecord, report: Report | None, settled: Settled | None) -> None:
        self._shop.journal.store(self._model, record, report)
        self._counted_at = self._now()
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
        if outcome is Outcome.RETURNED or (outcome is Outcome.COMMITTED and work.validated is not None):
            record = replace(record, validated=work.validated)
        if outcome in {Outcome.COMMITTED, Outcome.RETURNED}:
            record = record.forgiven(wished_release_id(wish))
        if bad is not None:
            record = record.refuse(wish.assignment, wish.release, bad[0], final=outcome is not Outcome.FAILED)
            link = bad[0] == DeadlineMissed.code and self.record.state is State.FETCHING
            if not link and bad[0] != _BY_HAND:  # neither says anything of the release on this device
                record = record.failed(wished_release_id(wish))
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


def _digest_or_none(serving: "Serving") -> str | None:
    """Return the digest of what serves, computed over its files; None where they cannot be read."""
    try:
        return serving.digest()
    except StoreCorrupted as bad:
        _log.error("what serves is damaged", extra={"model": serving.manifest.model, "detail": str(bad)})
        return None
