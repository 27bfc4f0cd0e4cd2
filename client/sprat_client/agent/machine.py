"""One model's way through the state table: store the next state durably, tell the hooks, do its work."""

import logging
import time
from dataclasses import replace
from typing import Final

from sprat_client.agent import steps
from sprat_client.agent.active import ActiveRelease
from sprat_client.agent.desired import Desired
from sprat_client.agent.journal import ModelRecord, Work
from sprat_client.agent.permits import Unmet
from sprat_client.agent.progress import Progress, Settled
from sprat_client.agent.releases import Shelf, Slot, Slots
from sprat_client.agent.serve import Serving
from sprat_client.agent.states import AFTER_POWER_CUT, Event, State, resume
from sprat_client.agent.steps import Workshop, wished_release_id
from sprat_client.agent.transfer import Backoff
from sprat_client.agent.validate import ValidationRefused
from sprat_client.agent.watch import GiveWay, Watch
from sprat_client.runtime.onnxruntime_host import return_memory
from sprat_client.runtime.ports import ModelHost
from sprat_shared.errors import Conflict, SpratError, TryLater, UntrustedUpdate, UpdateRejected
from sprat_shared.protocol.report import Outcome
from sprat_shared.trust.assignments import Assigned
from sprat_shared.trust.targets import graph_path, update_path

_log = logging.getLogger(__name__)
ON_SITE: Final = "operator.rolled-back"
_SUPERSEDED: Final = "assignment.superseded"
_AT_REST: Final = frozenset({State.IDLE, State.ROLLING_BACK})  # nothing new serves: there is nothing to reject
_BEFORE_TRIAL: Final = frozenset(State) - _AT_REST - {State.TRIAL}


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
        self._candidate: ModelHost | None = None
        self.progress = Progress(model, shop)
        self.active = ActiveRelease(model, shop, self.shelf)
        self.failures = 0  # tries in a row that ended with TryLater

    @property
    def record(self) -> ModelRecord:
        """The durable record."""
        return self.progress.record

    @property
    def settled(self) -> list[Settled]:
        """The assignments that ended since the start."""
        return self.progress.settled

    @property
    def idle(self) -> bool:
        """Whether nothing is left to do."""
        return self.record.state is State.IDLE and self.record.pending is None

    @property
    def waits_for(self) -> str | None:
        """What the update waits for that time or somebody must bring, in words; None: for nothing of that kind."""
        work = self.record.work
        return None if work is None or self.is_ahead or self.record.pending is not None else work.waiting

    @property
    def is_ahead(self) -> bool:
        """Whether all is done for a release that was assigned ahead."""
        record = self.record
        ready = record.state is State.READY and record.pending is None
        return ready and record.work is not None and record.work.wish.prefetch

    def start(self) -> None:
        """Serve the active release again, and count the restart if it came in the middle of something."""
        self.active.serve(at_rest=self.record.state in _AT_REST)
        record = replace(self.record, state=AFTER_POWER_CUT[self.record.state])
        if record.state is State.TRIAL:
            record = replace(record, trial_cuts=record.trial_cuts + 1)
        elif record.state is not State.IDLE:
            record = replace(record, resumes=record.resumes + 1)
        if record != self.record:
            self.progress.keep(record)
            _log.info("resuming", extra={"model": self.model, "state": record.state, "resumes": record.resumes})
        if resume(record.state, record.trial_cuts) is Event.UNHEALTHY:
            self._go_back("trial.cut-too-often", f"the device restarted {record.trial_cuts} times during the trial")
        elif record.state in _BEFORE_TRIAL and record.resumes > self._shop.settings.resumes:
            self._reject(SpratError(f"{record.resumes} restarts while {record.state}; giving up", code="agent.gave-up"))
        else:
            self._tell_hooks()

    def wish(self, wish: Desired) -> bool:
        """Take an assignment, if it is newer, or is not fulfilled and was not refused; return whether it was taken.

        Raises:
            UntrustedUpdate: a newer one was taken before.
        """
        record = self.record
        if wish.assignment < record.highest_assignment:
            raise UntrustedUpdate(
                f"assignment {wish.assignment} of {wish.full} is replayed: {record.highest_assignment} was seen before",
                code="trust.replayed",
            )
        if wish.assignment == record.highest_assignment:
            refused = any(refusal.assignment == wish.assignment for refusal in record.refused)
            if not self.idle or refused or self.active.runs(wished_release_id(wish)):
                return False
        self.progress.keep(replace(record, pending=wish, highest_assignment=wish.assignment))
        self._not_before = 0.0
        self._backoff.reset()
        _log.info("assigned", extra={"model": self.model, "release": wish.release, "assignment": wish.assignment})
        return True

    def refuse(self, assigned: Assigned, bad: UpdateRejected) -> None:
        """Say, once, that an assignment will not be taken. What serves, and the work under way, go on."""
        if assigned.assignment > self.record.highest_assignment:
            self.progress.refuse(assigned, (bad.code, str(bad)))

    def look_again(self) -> None:
        """Look at once at what is waited for: something changed."""
        self._not_before = 0.0

    def roll_back(self) -> int:
        """Go back to the release in the other slot, by the word of somebody on site; return its number.

        The standing assignment counts as refused: only a newer one changes what serves then.

        Raises:
            Conflict: no other release is held, or it is damaged.
        """
        reason = (ON_SITE, "somebody on site went back to the release before: sprat-agent rollback")
        record, slots = self.record, self.shelf.slots()
        if record.state is State.TRIAL and self._work.back_to is not None:
            self._go_back(*reason)
        elif record.state is not State.ROLLING_BACK:
            if slots.active is None or slots.previous is None or not self.active.is_intact(slots.previous):
                raise Conflict(f"{self.model}: this device holds no release to go back to", code="agent.nothing-held")
            if record.state is not State.IDLE:
                self._candidate = None
                self._enter(Event.SUPERSEDED, None)
            wish = Desired(
                model=self.model,
                release=slots.active.release,
                weights=slots.active.weights,
                assignment=record.highest_assignment,
                graph=graph_path(self.model, self.shelf.manifest(slots.active.release_id).graph),
                path=(),
                full=update_path(self.model, slots.active.release, None),
            )
            work = Work(wish=wish, started_at=time.time(), back_to=slots.previous.release_id, reason=reason)
            self._enter(Event.RETURN, work, pending_taken=True)
        self.advance()
        active = self.shelf.slots().active
        return 0 if active is None else active.release

    def advance(self) -> float | None:
        """Work until there is nothing to do, or something to wait for; return how long to wait, seconds."""
        while not self.idle:
            wait_s = self._not_before - time.monotonic()
            if wait_s > 0 and not (self.record.pending and self.record.state in _BEFORE_TRIAL):
                return wait_s
            try:
                wait = self._take_pending() or self._act()
                self.failures = 0
            except TryLater as bad:
                self.failures += 1
                wait = self._backoff.next_s(bad)
                _log.warning(
                    "trying again later",
                    extra={
                        "model": self.model,
                        "state": self.record.state,
                        "code": bad.code,
                        "detail": str(bad),
                        "wait_s": wait,
                    },
                )
            except (SpratError, OSError, MemoryError) as bad:
                wait = self._failed(bad)
            if wait is not None:
                self._not_before = time.monotonic() + wait
                return wait
        return None

    def _take_pending(self) -> float | None:
        """Give up the present work for a newer assignment."""
        record = self.record
        if record.pending is None or record.state in {State.IDLE, State.ROLLING_BACK} or record.work is None:
            return None
        if wished_release_id(record.pending) == wished_release_id(record.work.wish):
            work = replace(record.work, wish=replace(record.pending, path=record.work.wish.path))
            self.progress.keep(replace(record, pending=None, work=work))
        elif record.state is State.TRIAL:
            self._go_back(_SUPERSEDED, "a newer assignment arrived during the trial", Event.SUPERSEDED)
        else:
            _log.info("superseded", extra={"model": self.model, "release": record.work.wish.release})
            self._enter(Event.SUPERSEDED, None)
        return None

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
        return act[self.record.state]()

    # the states --------------------------------------------------------------------------------------------------

    def _idle(self) -> None:
        record = self.record
        wish = record.pending
        if wish is None:
            return
        slots = self.shelf.slots()
        work = Work(wish=wish, started_at=time.time())
        wished = wished_release_id(wish)
        if slots.active is not None and slots.active.release_id == wished:
            self.shelf.point(replace(slots, active=replace(slots.active, release=wish.release)))
            self.active.serve(at_rest=self.record.state in _AT_REST)
            self.progress.settle(work, Outcome.COMMITTED)
        elif (back := slots.previous) is not None and back.release_id == wished and self.active.is_intact(back):
            self._enter(Event.RETURN, replace(work, back_to=wished), pending_taken=True)
        else:
            self._enter(Event.ASSIGNED, work, pending_taken=True)

    def _fetching(self) -> float | None:
        if (unmet := self._shop.permits.fetch(self._work.wish)) is not None:
            return self._wait(unmet)
        received, gave_way = 0, None

        def count(size: int) -> None:
            nonlocal received
            received += size
            self._backoff.reset()

        work = replace(self._work, waiting=None)
        if not work.steps:
            work = replace(work, steps=steps.choose_steps(self._shop, self.shelf, work.wish))
            self.progress.keep_work(work)
        try:
            watch = Watch(self._shop, work.wish, count, lambda: self.record.pending is not None)
            steps.fetch(self._shop, self.shelf, work, watch)
        except GiveWay as other:
            gave_way = other
        finally:
            if received:
                work = replace(work, received_bytes=work.received_bytes + received)
                self.progress.keep_work(work)
        if gave_way is not None:
            return 0.0 if gave_way.unmet is None else self._wait(gave_way.unmet)
        self._enter(Event.DONE, work)
        return None

    def _verifying(self) -> None:
        target = steps.verify(self._shop, self.shelf, self._work)[-1].target
        self._enter(Event.DONE, replace(self._work, release_id=wished_release_id(self._work.wish), graph=target.graph))

    def _rebuilding(self) -> None:
        steps.rebuild(self._shop, self.shelf, self._work)
        self._enter(Event.DONE, self._work)

    def _ready(self) -> float | None:
        if (unmet := self._shop.permits.activate(self._work.wish)) is not None:
            return self._wait(unmet)
        self._enter(Event.DONE, replace(self._work, waiting=None))
        return None

    def _wait(self, unmet: Unmet) -> float:
        """Say durably, once, what is waited for; return how long to wait before looking again."""
        if self._work.waiting != unmet.reason:
            _log.info("waiting", extra={"model": self.model, "state": self.record.state, "for": unmet.reason})
            work = replace(self._work, waiting=unmet.reason)
            self.progress.keep_work(work)
        return unmet.wait_s

    def _shadow(self) -> None:
        self._enter(Event.HEALTHY, self._work)

    def _validating(self) -> None:
        self._candidate, validation = steps.compare(self._shop, self.shelf, self._work)
        _log.info(
            "validated",
            extra={
                "model": self.model,
                "mode": validation.mode,
                "detail": validation.detail,
                "latency_p50_s": validation.latency_s[0],
                "latency_p95_s": validation.latency_s[1],
                "old_latency_p50_s": validation.old_latency_s and validation.old_latency_s[0],
                "old_latency_p95_s": validation.old_latency_s and validation.old_latency_s[1],
                "resident_bytes": validation.resident_bytes,
            },
        )
        active = self.shelf.slots().active
        back_to = None if active is None else active.release_id
        work = replace(self._work, evidence=validation.evidence, validated=validation.mode, back_to=back_to)
        self._enter(Event.DONE, work)

    def _trial(self) -> float | None:
        serving = self._shop.servings.get(self.model)
        if serving is None or serving.slot.release_id != self._work.release_id or serving.fallback is None:
            serving = self._begin_trial(serving)
        settings = self._shop.settings.under(self._work.wish.policy)
        if serving.failed >= settings.trial_error_limit:
            self._go_back("trial.errors", f"{serving.failed} requests failed on trial: {serving.last_failure}")
            return None
        left_s = serving.since + settings.trial_s - time.monotonic()
        if left_s > 0 and serving.answered < settings.trial_requests:
            return min(left_s, 0.05)
        serving.fallback = None
        self._enter(Event.HEALTHY, None, outcome=Outcome.COMMITTED)
        return_memory()
        return None

    def _begin_trial(self, old: Serving | None) -> Serving:
        """Point the slots at the new release and let it answer; what must be read is read before anything changes."""
        work = self._work
        slots = self.shelf.slots()
        if work.release_id is None:
            raise AssertionError("TRIAL follows VERIFYING, which sets the release id")
        slot = Slot(release=work.wish.release, release_id=work.release_id, weights=work.wish.weights)
        if old is not None and old.slot.release_id == work.release_id:  # a restart in the trial loaded it already
            serving = old
        else:
            serving = self.active.load(slot, self._candidate)
            serving.warm_up()
        self._candidate = None
        if slots.active is None or slots.active.release_id != work.release_id:
            self.shelf.point(Slots(active=slot, previous=slots.active))
        else:
            old = None if slots.previous is None else self.active.load_or_none(slots.previous)
        serving.fallback = old or serving
        serving.since = time.monotonic()
        self._shop.servings.swap(self.model, serving)
        return serving

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
        self.active.serve(at_rest=self.record.state in _AT_REST)
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
    ) -> None:
        """Enter the next state and tell the hooks; its work begins at once."""
        before, told = self.record.state, self.record.work or work
        self.progress.enter(event, work, outcome=outcome, bad=bad, pending_taken=pending_taken)
        release = None if told is None else told.wish.release
        self._shop.left(before, event, self.model, release, None if bad is None else bad[0])
        self._not_before = 0.0
        self._tell_hooks()

    def _failed(self, bad: BaseException) -> float | None:
        """Deal with an error that is not of the link; return how long to wait where the work must be tried again."""
        if self.record.state not in _AT_REST and not self._shop.stopping.is_set():
            self._reject(bad)
            return None
        self.failures += 1
        wait_s = self._backoff.next_s(bad)
        _log.error(
            "cannot go on; trying again", extra={"model": self.model, "state": self.record.state, "detail": str(bad)}
        )
        return wait_s

    def _reject(self, bad: BaseException) -> None:
        """End the present work: the old release serves on, untouched."""
        code = (
            bad.code if isinstance(bad, SpratError) else "disk.failed" if isinstance(bad, OSError) else "memory.short"
        )
        detail = str(bad) or type(bad).__name__
        _log.error("given up", extra={"model": self.model, "state": self.record.state, "code": code, "detail": detail})
        self._candidate = None
        if self.record.state is State.TRIAL:
            self._go_back(code, detail)
            return
        work = self._work
        if isinstance(bad, ValidationRefused) and bad.evidence is not None:
            work = replace(work, evidence=bad.evidence)
            self.progress.keep_work(work)
        outcome = Outcome.REFUSED if isinstance(bad, UpdateRejected) else Outcome.FAILED
        self._enter(Event.REJECTED, None, outcome=outcome, bad=(code, detail))
        return_memory()

    def _go_back(self, code: str, detail: str, event: Event = Event.UNHEALTHY) -> None:
        _log.warning("going back", extra={"model": self.model, "code": code, "detail": detail})
        self._enter(event, replace(self._work, reason=(code, detail)))

    def _tell_hooks(self) -> None:
        record = self.record
        self._shop.hooks.entered(record.state, self.model, None if record.work is None else record.work.wish.release)
