"""One model's way through the state table: store the next state durably, tell the hooks, do its work."""

import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from sprat_client.agent import steps
from sprat_client.agent.active import ActiveRelease
from sprat_client.agent.desired import Desired
from sprat_client.agent.fetching import GiveWay, fetch_update
from sprat_client.agent.formats import NewerFormat
from sprat_client.agent.intake import Intake
from sprat_client.agent.journal import ModelRecord, Work
from sprat_client.agent.judgement import ValidationRefused
from sprat_client.agent.patience import Patience
from sprat_client.agent.permits import Unmet
from sprat_client.agent.progress import Progress, Settled
from sprat_client.agent.releases import Shelf, Slots
from sprat_client.agent.room import code_of
from sprat_client.agent.states import (
    AFTER_POWER_CUT,
    AT_REST,
    BEFORE_TRIAL,
    BUILT,
    NEXT,
    Event,
    State,
    resume,
)
from sprat_client.agent.steps import Workshop, wished_release_id
from sprat_client.agent.transfer import Backoff
from sprat_client.agent.trial import GoOn, Healthy, Unhealthy
from sprat_client.agent.tryout import Tryout
from sprat_client.agent.watching import LOOK_AGAIN_S
from sprat_client.runtime.memory import return_memory
from sprat_shared.errors import Conflict, SpratError, TryLater, UpdateRejected
from sprat_shared.protocol.report import Evidence, Outcome
from sprat_shared.trust.assignments import Assigned

_log = logging.getLogger(__name__)
_SUPERSEDED: Final = "assignment.superseded"
_AGAIN: Final = frozenset({state for state, event in NEXT if event is Event.AGAIN})
_STARTS: Final = 3  # tries to serve before anything else is done: one bad read must not cost a poll's time
_ACTIVATED: Final = frozenset({State.VALIDATING, State.SHADOW, State.TRIAL})


class ModelMachine:
    """Brings one model to the release that is wished, and keeps it serving meanwhile.

    Args:
        model: its name.
        shop: what it works with.
    """

    def __init__(self, model: str, shop: Workshop) -> None:
        self.model, self._shop = model, shop
        self.shelf = Shelf(model, shop.settings.folder / "models" / model, shop.store, shop.disk)
        self._backoff = Backoff(shop.settings.link)
        self._not_before = 0.0
        self.progress = Progress(model, shop)
        self.active = ActiveRelease(model, shop, self.shelf)
        self.tryout = Tryout(model, shop, self.shelf, self.active)
        self.patience = Patience(model, self.progress, shop.settings)
        self.intake = Intake(model, shop, self.progress, self.active)
        self.failures = 0  # tries in a row that ended with TryLater, or with a disk that fails
        self._resumed = self._clean = False
        self._verdict: tuple[str, str, Event, Evidence | None] | None = None  # on a trial, until it is on the disk

    @property
    def record(self) -> ModelRecord:
        """The durable record."""
        return self.progress.record

    @property
    def settled(self) -> Sequence[Settled]:
        """The last assignments that ended since the start."""
        return self.progress.settled

    @property
    def idle(self) -> bool:
        """Whether nothing is left to do."""
        return self.record.state is State.IDLE and self.record.pending is None

    @property
    def ready(self) -> bool:
        """Whether all that is left is a release that was assigned ahead and lies here, which was reported."""
        record = self.record
        told = record.work is not None and record.work.wish.prefetch and record.work.told_ready
        return record.state is State.READY and record.pending is None and told == record.highest_assignment

    @property
    def is_settled(self) -> bool:
        """Whether what the disk must hold can be told: the slots' releases, and one that lies whole beside them."""
        record = self.record
        return record.pending is None and (record.state is State.IDLE or record.state in BUILT)

    def start(self, *, clean: bool = False) -> None:
        """Serve the active release again, and count the restart if it came in the middle of something.

        Where the disk fails, what can be served serves, and `advance` tries the rest again.

        Args:
            clean: the agent was asked to end and did; that says nothing against what was under way.
        """
        self._clean = clean
        for _ in range(_STARTS):
            try:
                self._resume()
            except (OSError, MemoryError) as bad:
                self._not_before = time.monotonic() + self._say_stuck(bad)
            else:
                return

    def _resume(self) -> None:
        record = self.record
        untried = record.work.release_id if record.work is not None and record.state in BEFORE_TRIAL else None
        self.active.serve(at_rest=record.state in AT_REST, untried=untried)
        record = replace(record, state=AFTER_POWER_CUT[record.state])
        if self._clean:
            pass
        elif record.state is State.TRIAL:
            record = replace(record, trial_cuts=record.trial_cuts + 1)
        elif record.state is not State.IDLE and (record.work is None or record.work.waiting is None):
            record = replace(record, resumes=record.resumes + 1)  # while it waits for leave a restart is no failure
        if record != self.record:
            self.progress.keep(record)
            _log.info("resuming", extra={"model": self.model, "state": record.state, "resumes": record.resumes})
        self._resumed = True
        match resume(record.state, record.trial_cuts, record.resumes):
            case Event.UNHEALTHY:
                self._go_back("trial.cut-too-often", f"the device restarted {record.trial_cuts} times during the trial")
            case Event.REJECTED if record.state is State.SHADOW:
                self._reject(
                    ValidationRefused(
                        f"the agent ended {record.resumes} times while the release answered in the shadow",
                        code="shadow.cut-too-often",
                        evidence=self._work.evidence,
                    )
                )
            case Event.REJECTED:
                bad = SpratError(f"{record.resumes} restarts while {record.state}; giving up", code="agent.gave-up")
                self._reject(bad)
            case _:
                self._tell_hooks()

    def stop(self, *, keep: bool) -> None:
        """Compare nothing any more, and keep what was seen, so that the next start goes on from there."""
        if keep and self.record.work is not None and self.record.state in {State.SHADOW, State.TRIAL}:
            self.progress.keep_work(self.tryout.seen(self._work, on_trial=self.record.state is State.TRIAL))
        self.tryout.drop()

    def wish(self, wish: Desired) -> bool:
        """Take an assignment, if it is newer, or is not fulfilled and was not refused; return whether it was taken.

        Raises:
            UntrustedUpdate: a newer one was taken before.
        """
        before = self.record
        taken = self.intake.take(wish, idle=self.idle)
        if self.record != before:
            self._not_before = 0.0  # what it waited for may not be asked any more
        if taken:
            self._backoff.reset()
        return taken

    def let_go(self) -> None:
        """Give up what was fetched ahead: the director names the model no more."""
        record = self.record
        if record.work is not None and record.work.wish.prefetch and record.state in BEFORE_TRIAL:
            self._abandon()

    def refuse(self, assigned: Assigned, bad: UpdateRejected) -> None:
        """Say, once, that an assignment will not be taken. What serves, and the work under way, go on."""
        self.intake.refuse(assigned, bad)

    def roll_back(self, reason: tuple[str, str]) -> int | None:
        """Go back to the other slot's release until a newer assignment comes; Conflict where none can be served.

        Args:
            reason: code and sentence, for the report.
        """
        record, slots = self.record, self.shelf.slots()
        if record.state is State.TRIAL and self._work.back_to is not None:
            self._go_back(*reason)
        elif record.state is not State.ROLLING_BACK:
            if slots.active is None or slots.previous is None or not self.active.is_intact(slots.previous):
                raise Conflict(f"{self.model}: this device holds no release to go back to", code="agent.nothing-held")
            if record.state is not State.IDLE:
                self._abandon()
            wish = self.shelf.manifest(slots.active.release_id).as_wish(slots.active.release, record.highest_assignment)
            work = Work(wish=wish, started_at=time.time(), back_to=slots.previous.release_id, reason=reason)
            self._enter(Event.RETURN, work, pending_taken=True)
        self.advance()
        return None if (active := self.shelf.slots().active) is None else active.release

    def look_again(self) -> None:
        """Look at once at what is waited for: something changed."""
        self._not_before = 0.0

    def advance(self) -> float | None:
        """Work until there is nothing to do, or something to wait for; return how long to wait, seconds.

        Raises:
            NewerFormat: a newer agent wrote what this one must read.
        """
        while not (self.idle and self._resumed):
            wait_s = self._not_before - time.monotonic()
            if wait_s > 0 and not (self.record.pending and self.record.state in BEFORE_TRIAL):
                return wait_s
            self._shop.watchdog.step(f"{self.model}: {self.record.state}", self.patience.step_limit_s())
            try:
                if not self._resumed:
                    self._resume()
                self._take_pending()
                if (late := self.patience.judge()) is not None:
                    self._reject(late)
                wait = self._act()
                self.failures = 0
            except TryLater as bad:
                self.failures += 1
                wait = self._backoff.next_s(bad)
                said = {"model": self.model, "state": self.record.state, "code": bad.code, "detail": str(bad)}
                _log.warning("trying again later", extra={**said, "wait_s": wait})
            except NewerFormat:
                raise
            except (SpratError, OSError, MemoryError) as bad:
                wait = self._failed(bad)
            if wait is not None:
                self._not_before = time.monotonic() + wait
                return wait
        return None

    def _take_pending(self) -> None:
        """Give up the present work for a newer assignment."""
        record = self.record
        if record.pending is None or record.state in {State.IDLE, State.ROLLING_BACK} or record.work is None:
            return
        starts = record.pending.prefetch and record.state in _ACTIVATED  # it serves, or begins to, and shall wait
        if wished_release_id(record.pending) == wished_release_id(record.work.wish) and not starts:
            work = replace(record.work, wish=replace(record.pending, path=record.work.wish.path))
            if work.told_ready == record.work.wish.assignment:  # what it took was told with that report
                work = replace(work, received_bytes=0, started_at=time.time())
            self.progress.keep(replace(record, pending=None, work=work))
        elif record.state is State.TRIAL:
            self._go_back(_SUPERSEDED, "a newer assignment arrived during the trial", Event.SUPERSEDED)
        else:
            _log.info("superseded", extra={"model": self.model, "release": record.work.wish.release})
            self._abandon()

    def _abandon(self) -> None:
        self.tryout.drop()
        self._enter(Event.SUPERSEDED, None)
        self._give_back_room()

    def _act(self) -> float | None:
        """Do the work of the present state; return how long to wait before looking again, or None to go on."""
        act = {
            State.IDLE: self._idle,
            State.FETCHING: self._fetching,
            State.VERIFYING: self._verifying,
            State.REBUILDING: self._rebuilding,
            State.READY: self._ready,
            State.VALIDATING: self._validating,
            State.SHADOW: self._shadow,
            State.TRIAL: self._trial,
            State.ROLLING_BACK: self._rolling_back,
        }
        if self._verdict is not None and self.record.state is State.TRIAL:
            self._go_back(*self._verdict)
            return None
        return act[self.record.state]()

    # the states --------------------------------------------------------------------------------------------------

    def _idle(self) -> None:
        record = self.record
        wish = record.pending
        if wish is None:
            return
        slots = self.active.slots()
        work = Work(wish=wish, started_at=time.time())
        wished = wished_release_id(wish)
        if wish.prefetch and self.active.fulfils(wished, at_hand=True):
            self.progress.settle(work, Outcome.READY)
        elif slots.active is not None and slots.active.release_id == wished:
            self.shelf.point(replace(slots, active=replace(slots.active, release=wish.release)))
            self.active.serve(at_rest=self.record.state in AT_REST)
            self.progress.settle(work, Outcome.COMMITTED)
        elif (back := slots.previous) is not None and back.release_id == wished and self.active.is_intact(back):
            self._enter(Event.RETURN, replace(work, back_to=wished), pending_taken=True)
        elif not self.intake.breaks(wish):
            self._enter(Event.ASSIGNED, work, pending_taken=True)

    def _fetching(self) -> float | None:
        if (unmet := self._shop.permits.fetch(self._work.wish)) is not None:
            return self._wait(unmet)
        try:
            work = fetch_update(self._shop, self.shelf, self.progress, self._backoff.reset)
        except GiveWay as other:
            return 0.0 if other.unmet is None else self._wait(other.unmet)
        self._enter(Event.DONE, work)
        return None

    def _verifying(self) -> None:
        target = steps.verify(self._shop, self.shelf, self._work)[-1].target
        self._enter(Event.DONE, replace(self._work, release_id=wished_release_id(self._work.wish), graph=target.graph))

    def _rebuilding(self) -> None:
        steps.rebuild(self._shop, self.shelf, self._work)
        self._enter(Event.DONE, self._work)

    def _ready(self) -> float | None:
        if (work := self._work).wish.prefetch and work.told_ready != work.wish.assignment:
            self.progress.tell_ready(work)
        if (unmet := self._shop.permits.activate(self._work.wish)) is not None:
            return self._wait(unmet)
        self._enter(Event.DONE, replace(self._work, waiting=None))
        return None

    def _wait(self, unmet: Unmet) -> float:
        """Say durably, once, what is waited for; return how long to wait before looking again."""
        if self._work.waiting != unmet.reason:
            _log.info("waiting", extra={"model": self.model, "state": self.record.state, "for": unmet.reason})
            self.progress.keep_work(replace(self._work, waiting=unmet.reason))
        return unmet.wait_s

    def _shadow(self) -> float | None:
        verdict, work = self.tryout.shadow(self._work)
        match verdict:
            case Healthy():
                _log.info(
                    "shadow ended",
                    extra={"model": self.model, **({} if work.evidence is None else work.evidence.as_json())},
                )
                self._enter(Event.HEALTHY, work)
                return None
            case Unhealthy(code, why):
                raise ValidationRefused(why, code=code, evidence=work.evidence)
            case GoOn(left_s):
                if self.tryout.must_be_kept():
                    self.progress.keep(replace(self.record, work=work, resumes=0))  # it got further: no crash loop
                return min(left_s, LOOK_AGAIN_S)

    def _validating(self) -> None:
        validation = self.tryout.compare(self._work)
        _log.info(
            "validated",
            extra={
                "model": self.model,
                "mode": validation.told,
                "detail": validation.detail,
                "resident_bytes": validation.resident_bytes,
                **validation.evidence.as_json(),
            },
        )
        active = self.shelf.slots().active
        back_to = None if active is None else active.release_id
        work = replace(self._work, evidence=validation.evidence, validated=validation.told, back_to=back_to)
        self._enter(Event.WATCH if self.tryout.wants_shadow(work) else Event.DONE, work)

    def _trial(self) -> float | None:
        verdict, work = self.tryout.trial(self._work)
        match verdict:
            case Healthy():
                self.tryout.commit()
                self._enter(Event.HEALTHY, None, outcome=Outcome.COMMITTED, ended=work)
                return_memory()
                return None
            case Unhealthy(code, why):
                self._go_back(code, why, evidence=work.evidence)
                return None
            case GoOn(left_s):
                if self.tryout.must_be_kept():
                    self.progress.keep_work(work)
                return min(left_s, LOOK_AGAIN_S)

    def _rolling_back(self) -> None:
        work, slots = self._work, self.shelf.slots()
        active = slots.active
        if work.back_to is None:
            self.shelf.point(Slots())
        elif active is None or active.release_id != work.back_to:
            if work.reason is None and slots.previous is not None:  # an assigned return: both releases were committed
                self.shelf.point(Slots(active=replace(slots.previous, release=work.wish.release), previous=active))
            else:
                self.shelf.point(Slots(active=slots.previous, previous=None))
        self.active.serve(at_rest=self.record.state in AT_REST)
        outcome = Outcome.RETURNED if work.reason is None else Outcome.ROLLED_BACK
        superseded = work.reason is not None and work.reason[0] == _SUPERSEDED  # the server knows: it did it
        self._enter(Event.DONE, None, outcome=None if superseded else outcome)
        return_memory()

    # transitions -------------------------------------------------------------------------------------------------

    @property
    def _work(self) -> Work:
        return self.progress.work

    def _enter(
        self,
        event: Event,
        work: Work | None,
        *,
        outcome: Outcome | None = None,
        bad: tuple[str, str] | None = None,
        pending_taken: bool = False,
        ended: Work | None = None,
    ) -> None:
        """Enter the next state and tell the hooks; its work begins at once."""
        before, told = self.record.state, self.record.work or work
        self.progress.enter(event, work, outcome=outcome, bad=bad, pending_taken=pending_taken, ended=ended)
        self.tryout.watch_no_more()
        self._not_before = 0.0
        self._shop.left(before, event, self.model, told, bad)
        self._tell_hooks()

    def _failed(self, bad: BaseException) -> float | None:
        """Deal with an error that is not of the link; return how long to wait where the work must be tried again.

        Where the end of the work cannot be written down either, the work is tried again as well, and nothing is lost:
        what serves is what the journal says, or the release that it goes back to.
        """
        if self._resumed and self.record.state not in AT_REST and not self._shop.stopping.is_set():
            try:
                if not self._again(bad):
                    self._reject(bad)
            except (OSError, MemoryError) as worse:
                bad = worse
            else:
                return None
        return self._say_stuck(bad)

    def _say_stuck(self, bad: BaseException) -> float:
        self.failures += 1
        _log.error(
            "cannot go on; trying again",
            extra={"model": self.model, "state": self.record.state, "code": code_of(bad), "detail": str(bad)},
        )
        return self._backoff.next_s(bad)

    def _again(self, bad: BaseException) -> bool:
        """Fetch and rebuild anew where something of the update is damaged or gone; return whether that is done."""
        state = self.record.state
        work = steps.anew(self._work, code_of(bad)) if state in _AGAIN else None
        if work is None:
            return False
        said = {"model": self.model, "state": state, "code": code_of(bad), "detail": str(bad)}
        _log.error("damaged or gone; fetching anew", extra=said)
        self.tryout.drop()
        steps.fetch_again(self._shop, self.shelf, self._work)
        self._enter(Event.AGAIN, work, bad=(code_of(bad), str(bad)))
        return True

    def _reject(self, bad: BaseException) -> None:
        """End the present work: the old release serves on, untouched."""
        code, detail = code_of(bad), str(bad) or type(bad).__name__
        _log.error("given up", extra={"model": self.model, "state": self.record.state, "code": code, "detail": detail})
        self.tryout.drop()
        if self.record.state is State.TRIAL:
            self._go_back(code, detail)
            return
        work = self._work
        if isinstance(bad, ValidationRefused) and bad.evidence is not None:
            work = replace(work, evidence=bad.evidence)
            self.progress.keep_work(work)
        outcome = Outcome.REFUSED if isinstance(bad, UpdateRejected) else Outcome.FAILED
        self._enter(Event.REJECTED, None, outcome=outcome, bad=(code, detail))
        self._give_back_room()
        self.active.serve(at_rest=True)  # where the active release is what was damaged
        return_memory()

    def _go_back(
        self, code: str, detail: str, event: Event = Event.UNHEALTHY, evidence: Evidence | None = None
    ) -> None:
        """End the trial: the old release answers at once, whether or not that can be written down just now."""
        _log.warning("going back", extra={"model": self.model, "code": code, "detail": detail})
        evidence = evidence or self._work.evidence
        self._verdict = (code, detail, event, evidence)
        self.tryout.watch_no_more()
        self.active.fall_back()
        self._enter(event, replace(self._work, reason=(code, detail), evidence=evidence))
        self._verdict = None

    def _give_back_room(self) -> None:
        with contextlib.suppress(OSError):  # the next start gives it back
            self._shop.reserve.give_back()

    def _tell_hooks(self) -> None:
        record = self.record
        self._shop.hooks.entered(record.state, self.model, None if record.work is None else record.work.wish.release)
