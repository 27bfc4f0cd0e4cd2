"""One model's way through the state table: store the next state durably, tell the hooks, do its work."""

import logging
import time
from dataclasses import dataclass, replace
from typing import Final

from sprat_client.agent import steps
from sprat_client.agent.bundle_file import BundleFile
from sprat_client.agent.desired import Desired
from sprat_client.agent.fetcher import LinkDown
from sprat_client.agent.journal import ModelRecord, Work
from sprat_client.agent.permits import Unmet
from sprat_client.agent.releases import Shelf, Slot, Slots
from sprat_client.agent.serve import Serving
from sprat_client.agent.states import AFTER_POWER_CUT, Event, State, resume, step
from sprat_client.agent.steps import Workshop, wished_release_id
from sprat_client.agent.store import StoreCorrupted
from sprat_client.agent.transfer import Backoff
from sprat_client.agent.validate import ValidationRefused
from sprat_client.agent.version import VERSION
from sprat_client.runtime.onnxruntime_host import return_memory
from sprat_client.runtime.ports import ModelHost, ModelNotLoadable
from sprat_shared.errors import SpratError, TryLater, UntrustedUpdate, UpdateRejected
from sprat_shared.protocol.report import Outcome, Report
from sprat_shared.trust.assignments import Assigned

_log = logging.getLogger(__name__)
_DETAIL_LENGTH: Final = 1000
_SUPERSEDED: Final = "assignment.superseded"
_AT_REST: Final = frozenset({State.IDLE, State.ROLLING_BACK})  # nothing new serves: there is nothing to reject
_ACTIVATED: Final = frozenset({State.VALIDATING, State.SHADOW, State.TRIAL})
_BEFORE_TRIAL: Final = frozenset(State) - _AT_REST - {State.TRIAL}


@dataclass(frozen=True, slots=True)
class Settled:
    """How an assignment ended."""

    model: str
    release: int
    outcome: Outcome
    error_code: str | None


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
        self.settled: list[Settled] = []
        self.failures = 0  # tries in a row that ended with TryLater

    @property
    def record(self) -> ModelRecord:
        """The durable record."""
        return self._shop.journal.record(self.model)

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

    def start(self) -> None:
        """Serve the active release again, and count the restart if it came in the middle of something."""
        self._serve_active()
        record = replace(self.record, state=AFTER_POWER_CUT[self.record.state])
        if record.state is State.TRIAL:
            record = replace(record, trial_cuts=record.trial_cuts + 1)
        elif record.state is not State.IDLE and (record.work is None or record.work.waiting is None):
            record = replace(record, resumes=record.resumes + 1)  # while it waits for leave a restart is no failure
        if record != self.record:
            self._shop.journal.store(self.model, record)
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
            if not self.idle or refused or self._fulfils(wish):
                if (following := record.under(wish)) != record:
                    self._shop.journal.store(self.model, following)
                    self._not_before = 0.0  # what it waited for may not be asked any more
                return False
        self._shop.journal.store(self.model, replace(record, pending=wish, highest_assignment=wish.assignment))
        self._not_before = 0.0
        self._backoff.reset()
        _log.info("assigned", extra={"model": self.model, "release": wish.release, "assignment": wish.assignment})
        return True

    def stock(self, bundle: BundleFile) -> None:
        """Copy out of a bundle what the newest assignment needs, if it is not fulfilled; errors as `steps.stock`."""
        record = self.record
        wish = record.work.wish if record.pending is None and record.work is not None else record.pending
        if wish is not None and not self.ready and not self._fulfils(replace(wish, prefetch=True)):
            steps.stock(self._shop, self.shelf, wish, bundle)

    def let_go(self) -> None:
        """Give up what was fetched ahead: the director names the model no more."""
        record = self.record
        if record.work is not None and record.work.wish.prefetch and record.state in _BEFORE_TRIAL:
            self._enter(Event.SUPERSEDED, None)

    def refuse(self, assigned: Assigned, bad: UpdateRejected) -> None:
        """Say, once, that an assignment will not be taken. What serves, and the work under way, go on."""
        record = self.record
        if assigned.assignment <= record.highest_assignment:
            return
        said = (bad.code, str(bad))
        _log.error(
            "refused",
            extra={"model": self.model, "assignment": assigned.assignment, "code": said[0], "detail": said[1]},
        )
        record = replace(record, highest_assignment=assigned.assignment)
        record = record.refuse(assigned.assignment, assigned.release, bad.code)
        self.settled.append(Settled(self.model, assigned.release, Outcome.REFUSED, bad.code))
        self._shop.journal.store(self.model, record, self._report(assigned, Outcome.REFUSED, said, None))
        self._shop.flush_reports()

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
        starts = record.pending.prefetch and record.state in _ACTIVATED  # it serves, or begins to, and shall wait
        if wished_release_id(record.pending) == wished_release_id(record.work.wish) and not starts:
            work = replace(record.work, wish=replace(record.pending, path=record.work.wish.path))
            if work.told_ready == record.work.wish.assignment:  # what it took was told with that report
                work = replace(work, received_bytes=0, started_at=time.time())
            self._shop.journal.store(self.model, replace(record, pending=None, work=work))
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
        if wish.prefetch and self._fulfils(wish):
            self._settle(work, Outcome.READY)
        elif slots.active is not None and self._runs(wish):
            self.shelf.point(replace(slots, active=replace(slots.active, release=wish.release)))
            self._serve_active()
            self._settle(work, Outcome.COMMITTED)
        elif slots.previous is not None and slots.previous.release_id == wished and self._intact(slots.previous):
            self._enter(Event.RETURN, replace(work, back_to=wished), pending_taken=True)
        else:
            self._enter(Event.ASSIGNED, work, pending_taken=True)

    def _fetching(self) -> float | None:
        if (unmet := self._shop.permits.fetch(self._work.wish)) is not None:
            return self._wait(unmet)
        received = 0

        def count(size: int) -> None:
            nonlocal received
            received += size
            self._backoff.reset()
            if self._shop.stopping.is_set():
                raise LinkDown("the agent is ending; the download goes on at the next start")

        work = replace(self._work, waiting=None)
        if not work.steps or not steps.still_signed(self._shop, work):
            work = replace(work, steps=steps.choose_steps(self._shop, self.shelf, work.wish))
            self._shop.journal.store(self.model, replace(self.record, work=work))
        try:
            steps.fetch(self._shop, self.shelf, work, count)
        finally:
            if received:
                work = replace(work, received_bytes=work.received_bytes + received)
                self._shop.journal.store(self.model, replace(self.record, work=work))
        self._enter(Event.DONE, work)
        return None

    def _verifying(self) -> None:
        target = steps.verify(self._shop, self.shelf, self._work)[-1].target
        self._enter(Event.DONE, replace(self._work, release_id=wished_release_id(self._work.wish), graph=target.graph))

    def _rebuilding(self) -> None:
        steps.rebuild(self._shop, self.shelf, self._work)
        self._enter(Event.DONE, self._work)

    def _ready(self) -> float | None:
        work = self._work
        if work.wish.prefetch and work.told_ready != work.wish.assignment:
            work = replace(work, told_ready=work.wish.assignment)
            record, report = self._conclude(replace(self.record, work=work), work, Outcome.READY, None)
            self._shop.journal.store(self.model, record, report)
            self._shop.flush_reports()
        if (unmet := self._shop.permits.activate(self._work.wish)) is not None:
            return self._wait(unmet)
        self._enter(Event.DONE, replace(self._work, waiting=None))
        return None

    def _wait(self, unmet: Unmet) -> float:
        """Say durably, once, what is waited for; return how long to wait before looking again."""
        if self._work.waiting != unmet.reason:
            _log.info("waiting", extra={"model": self.model, "state": self.record.state, "for": unmet.reason})
            work = replace(self._work, waiting=unmet.reason)
            self._shop.journal.store(self.model, replace(self.record, work=work))
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
            serving = self._load(slot, self._candidate)
            serving.warm_up()
        self._candidate = None
        if slots.active is None or slots.active.release_id != work.release_id:
            self.shelf.point(Slots(active=slot, previous=slots.active))
        else:
            old = None if slots.previous is None else self._load_or_none(slots.previous)
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
        self._serve_active()
        outcome = Outcome.RETURNED if work.reason is None else Outcome.ROLLED_BACK
        superseded = work.reason is not None and work.reason[0] == _SUPERSEDED  # the server knows: it did it
        self._enter(Event.DONE, None, outcome=None if superseded else outcome)
        return_memory()

    # transitions -------------------------------------------------------------------------------------------------

    @property
    def _work(self) -> Work:
        work = self.record.work
        if work is None:
            raise AssertionError(f"{self.record.state} without work")
        return work

    def _enter(
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
        report = None
        if outcome is not None:
            after, report = self._conclude(after, self._work, outcome, bad)
        self._shop.journal.store(self.model, after, report)
        self._not_before = 0.0
        _log.info("state", extra={"model": self.model, "state": state, "event": event, "from": record.state})
        if report is not None:
            self._shop.flush_reports()
        self._tell_hooks()

    def _settle(self, work: Work, outcome: Outcome) -> None:
        """Answer an assignment that asks for what is there already."""
        record, report = self._conclude(replace(self.record, pending=None), work, outcome, None)
        self._shop.journal.store(self.model, record, report)
        self._shop.flush_reports()

    def _conclude(
        self, record: ModelRecord, work: Work, outcome: Outcome, bad: tuple[str, str] | None
    ) -> tuple[ModelRecord, Report]:
        """Return the record and the report of an assignment that ended."""
        wish = work.wish
        bad = bad or work.reason
        if bad is not None:
            record = record.refuse(wish.assignment, wish.release, bad[0])
        self.settled.append(Settled(self.model, wish.release, outcome, None if bad is None else bad[0]))
        return record, self._report(wish, outcome, bad, work)

    def _report(
        self, assigned: Desired | Assigned, outcome: Outcome, bad: tuple[str, str] | None, work: Work | None
    ) -> Report:
        """Return the report on an assignment; without work it was refused before any was done."""
        serving = self._shop.servings.get(self.model)
        return Report(
            device=self._shop.device,
            sequence=self._shop.journal.next_sequence,
            model=self.model,
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
            self._shop.journal.store(self.model, replace(self.record, work=work))
        outcome = Outcome.REFUSED if isinstance(bad, UpdateRejected) else Outcome.FAILED
        self._enter(Event.REJECTED, None, outcome=outcome, bad=(code, detail))
        return_memory()

    def _go_back(self, code: str, detail: str, event: Event = Event.UNHEALTHY) -> None:
        _log.warning("going back", extra={"model": self.model, "code": code, "detail": detail})
        self._enter(event, replace(self._work, reason=(code, detail)))

    def _tell_hooks(self) -> None:
        record = self.record
        self._shop.hooks.entered(record.state, self.model, None if record.work is None else record.work.wish.release)

    # what serves -------------------------------------------------------------------------------------------------

    def _runs(self, wish: Desired) -> bool:
        active = self.shelf.slots().active
        return active is not None and active.release_id == wished_release_id(wish)

    def _fulfils(self, wish: Desired) -> bool:
        """Return whether a slot has what is wished: the active one, or, of a release to be at hand, the other too."""
        other = self.shelf.slots().previous
        at_hand = wish.prefetch and other is not None and other.release_id == wished_release_id(wish)
        return self._runs(wish) or (at_hand and other is not None and self._intact(other))

    def _intact(self, slot: Slot) -> bool:
        try:
            self.shelf.check(self.shelf.manifest(slot.release_id))
        except StoreCorrupted as bad:
            _log.error("the other slot is damaged", extra={"model": self.model, "detail": str(bad)})
            return False
        return True

    def _load(self, slot: Slot, host: ModelHost | None = None) -> Serving:
        manifest = self.shelf.manifest(slot.release_id)
        loaded = host or steps.load(self._shop, self.shelf, manifest)
        return Serving(slot, manifest, loaded, lambda: self.shelf.digest_of_files(manifest))

    def _load_or_none(self, slot: Slot) -> Serving | None:
        """Load a release; a damaged one is discarded, so that the next update writes it afresh."""
        try:
            return self._load(slot)
        except (StoreCorrupted, ModelNotLoadable) as bad:
            _log.error(  # the message says it all
                "a release cannot be served",
                extra={"model": self.model, "release": slot.release, "code": bad.code, "detail": str(bad)},
            )
        return None

    def _serve_active(self) -> None:
        """Let what the slots say answer; where it is damaged, the release in the other slot."""
        slots = self.shelf.slots()
        live = self._shop.servings.get(self.model)
        if live is not None and slots.active is not None and live.fallback is not None:
            live = live.fallback
        if live is not None and slots.active is not None and live.slot.release_id == slots.active.release_id:
            live.slot, live.fallback = slots.active, None
            self._shop.servings.swap(self.model, live)
            return
        for slot in (slots.active, slots.previous):
            if slot is None:
                continue
            if (serving := self._load_or_none(slot)) is not None:
                serving.warm_up()
                self._shop.servings.swap(self.model, serving)
                if slot == slots.previous and self.record.state in _AT_REST:
                    self.shelf.point(Slots(active=slot, previous=None))
                return
        self._shop.servings.swap(self.model, None)
        if slots.active is not None and self.record.state in _AT_REST:
            self.shelf.point(Slots())


def _digest_or_none(serving: Serving) -> str | None:
    """Return the digest of what serves, computed over its files; None where they cannot be read."""
    try:
        return serving.digest()
    except StoreCorrupted as bad:
        _log.error("what serves is damaged", extra={"model": serving.manifest.model, "detail": str(bad)})
        return None
