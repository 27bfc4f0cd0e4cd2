"""The agent: polls, lets each model's machine work, delivers reports, and serves meanwhile."""

import logging
import os
import queue
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from sprat_client.agent.applications import Applications
from sprat_client.agent.assembly import assemble
from sprat_client.agent.attributes import AttributesReporter
from sprat_client.agent.bundle_file import BundleFile
from sprat_client.agent.choice import stock
from sprat_client.agent.drift import DriftReporter
from sprat_client.agent.durable import Disk, PosixDisk, remove, write_json
from sprat_client.agent.estimator import Estimator
from sprat_client.agent.guard import Guard
from sprat_client.agent.http_endpoint import HttpEndpoint
from sprat_client.agent.identity import Identity, load_key
from sprat_client.agent.lock import FolderLock
from sprat_client.agent.machine import ModelMachine
from sprat_client.agent.orders import Orders
from sprat_client.agent.overview import Overview
from sprat_client.agent.polling import Poller
from sprat_client.agent.progress import Settled
from sprat_client.agent.rebuilder import Rebuilder
from sprat_client.agent.room import code_of
from sprat_client.agent.settings import AgentSettings
from sprat_client.agent.site.plans import SitePlans
from sprat_client.agent.steps import wished_release_id
from sprat_client.agent.transfer import Backoff, Link
from sprat_client.agent.trust.clock import Clock
from sprat_client.agent.trust.store import Agreed
from sprat_client.agent.upkeep import Upkeep
from sprat_client.agent.watchdog import Watchdog
from sprat_client.runtime.ports import Array, Runtime
from sprat_shared.errors import SpratError, TryLater, UpdateRejected
from sprat_shared.protocol.report import Outcome

if TYPE_CHECKING:
    from sprat_client.agent.serve import Answer
    from sprat_client.agent.site.task_answer import TaskAnswer

_log = logging.getLogger(__name__)
_GIVE_UP_AFTER: Final = 8  # failures in a row, with --once
_SHORTEST_WAIT_S: Final = 0.01
_STOPPED: Final = "stopped.json"  # is there while the agent was asked to end in the middle of something, and did
# How long steps may take before they are stuck, beside what the server may take.
_POLLING_S: Final = 300.0
_TIDYING_UP_S: Final = 1800.0
_WAKING_UP_S: Final = 300.0


class Agent:
    """One device's agent, on one folder. Use it as a context manager: entering takes the folder and serves.

    Args:
        settings: of the agent.
        disk: where durable writes go.
        rebuilder: computes weights; in a process of its own when left out.
        estimator: computes local statistics; likewise.
        runtime: loads models; onnxruntime when left out.
        clock: of the device; the real one when left out.
        offline: nothing is sent to the network, whatever happens.
        watchdog: ends the process when it is stuck; nobody does when left out: the process may be an application's.
        draw: chooses the requests by which releases that share layers are watched.

    Raises:
        NotFound: the folder is not enrolled.
        Conflict: another agent runs on it.
    """

    def __init__(
        self,
        settings: AgentSettings,
        *,
        disk: Disk | None = None,
        rebuilder: Rebuilder | None = None,
        estimator: Estimator | None = None,
        runtime: Runtime | None = None,
        clock: Clock | None = None,
        offline: bool = False,
        watchdog: Watchdog | None = None,
        draw: random.Random | None = None,
    ) -> None:
        self._settings, self._disk = settings, disk or PosixDisk()
        self._identity = Identity.load(settings.folder)
        self._lock = FolderLock(settings.folder / "run.lock")
        try:
            self._shop = assemble(
                settings,
                self._identity,
                self._disk,
                rebuilder=rebuilder,
                estimator=estimator,
                runtime=runtime,
                clock=clock,
                offline=offline,
            )
            self._watchdog = self._shop.watchdog = watchdog or self._shop.watchdog
            self._poller = Poller(self._shop)
            self._machines = {model: ModelMachine(model, self._shop) for model in self._shop.journal.models}
            self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
            self._site = SitePlans(self._shop, self._machines, lambda: self._wake.put(None))
            self._upkeep = Upkeep(self._shop, self._site.kept)
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise
        self._backoff = Backoff(settings.link)
        self._report_backoff = Backoff(settings.link)
        self._disk_backoff = Backoff(settings.link)
        self._poll_interval_s = settings.poll_interval_s or self._identity.poll_interval_s
        self._next_poll = self._next_delivery = 0.0
        self._unsettled_poll = True  # nothing is known of what the server wishes yet
        self._stopped = self._shop.stopping
        self.orders = Orders(self._shop, self._machines, self._wake)
        self._guard = Guard(self._shop, self._machines, lambda: self._wake.put(None), draw)
        self._shop.meanwhile = self._meanwhile
        overview = Overview(self._shop, self._site)
        self._applications = Applications(self._shop.servings, self._shop.holdouts, overview, self._site)
        self._drift, self._attributes = DriftReporter(self._shop), AttributesReporter(self._shop, self._site.where)
        self._endpoint = None if settings.port is None else HttpEndpoint(self._applications, settings.port)

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _start(self) -> None:
        folder = self._settings.folder
        if (folder / "store").is_dir():
            with FolderLock(folder / "store" / "rebuild.lock", wait=True):
                pass  # a rebuild that an earlier agent left behind has ended now
        self._shop.flush_reports()
        self.orders.listen()
        if self._endpoint is not None:
            self._endpoint.start()
            with _serving_anyway("applications that read endpoint.json do not find the endpoint"):
                write_json(self._disk, folder / "endpoint.json", {"url": self.url, "pid": os.getpid()})
        with _serving_anyway("room that was set aside for an update stays taken"):
            self._shop.reserve.give_back()
        clean = self._was_stopped()
        for machine in self._machines.values():
            machine.start(clean=clean)
        self._guard.look()
        self._site.start()
        self._watchdog.ready()
        self._shop.events.note("started")
        _log.info("started", extra={"folder": str(folder), "device": str(self._identity.device), "url": self.url})

    def __exit__(
        self, kind: type[BaseException] | None, bad: BaseException | None, trace: TracebackType | None
    ) -> None:
        with ExitStack() as each:  # whatever one of them raises, the others are done; the last one first
            each.callback(self._lock.__exit__, kind, bad, trace)
            each.callback(lambda: self._shop.link.close())  # noqa: PLW0108 - a relocated agent has another link
            each.callback(self._forget_endpoint)
            each.callback(self._stop_machines, clean=kind is None)
            each.callback(self._guard.close)
            if kind is None:
                each.callback(self._shop.budget.close)
            each.callback(self._site.close)
            if self._endpoint is not None:
                each.callback(self._endpoint.stop)
            each.callback(self.orders.close)

    def _forget_endpoint(self) -> None:
        with _serving_anyway("endpoint.json is left behind"):
            remove(self._disk, self._settings.folder / "endpoint.json")

    def _was_stopped(self) -> bool:
        """Return whether the last agent here was asked to end in the middle of something, and did; say so only once."""
        mark = self._settings.folder / _STOPPED
        stopped = self._disk.exists(mark)
        try:
            remove(self._disk, mark)  # before anything answers: what ends the agent from here on is no stop
        except OSError as bad:
            _log.warning("the mark of a stop cannot be removed", extra={"detail": str(bad)})
            return False
        return stopped

    def _stop_machines(self, *, clean: bool) -> None:
        """Let nothing be compared any more; where the agent was asked to end, say that no crash ended it."""
        under_way = not all(machine.idle for machine in self._machines.values())
        with _serving_anyway("this stop counts like a crash against what is under way"):
            for machine in self._machines.values():
                machine.stop(keep=clean)
            if clean and under_way:
                write_json(self._disk, self._settings.folder / _STOPPED, {})

    @property
    def url(self) -> str:
        """Where local applications reach the models; empty where no endpoint was asked for."""
        return "" if self._endpoint is None else self._endpoint.url

    @property
    def settled(self) -> list[Settled]:
        """The assignments that ended since the start."""
        return [settled for machine in self._machines.values() for settled in machine.settled]

    def infer(self, model: str, inputs: Array | Mapping[str, Array]) -> "Answer":
        """Ask a model, in this process.

        Args:
            model: its name.
            inputs: (batch, ...) array, or arrays by input name.

        Raises:
            NotFound: the model is not served.
            InvalidInput: the inputs do not fit.
            InferenceFailed: the model failed.
        """
        return self._applications.infer(model, inputs)

    def infer_task(self, task: str, inputs: Mapping[str, Array], *, deadline_s: float | None = None) -> "TaskAnswer":
        """Let a task of the site answer, with the modules of this device and of others, all under one plan.

        Args:
            task: its name.
            inputs: arrays by the names of its inputs.
            deadline_s: of this request; the plan's where that is shorter, or none is said.

        Raises:
            InvalidInput: the inputs do not fit.
            SpratError: a module failed, or one of `site.failures`: its code says which.
        """
        return self._applications.infer_task(task, inputs, deadline_s=deadline_s)

    def report_error(self, model: str, text: str, *, release: int | None = None) -> int:
        """Say that an answer was wrong. A release on trial that gives rise to too many of these is taken back.

        Args:
            model: its name.
            text: what was wrong, 1 to 500 characters, for logs and the report; no samples.
            release: `Answer.release`; the release that serves when left out.

        Returns:
            The release that it counts against.

        Raises:
            InvalidInput: the text is empty or too long.
            NotFound: the model is not served.
        """
        return self._applications.report_error(model, text, release)

    def add_labelled(self, model: str, inputs: Array, labels: Array | Sequence[int]) -> int:
        """Add labelled samples to those that new releases must not do worse on; they never leave the device.

        Once this returns, a power cut does not take them.

        Args:
            model: its name.
            inputs: (n, ...), as the model takes them.
            labels: (n,) whole numbers from 0.

        Returns:
            How many samples are kept now: the newest of each class, within `AgentSettings.kept`.

        Raises:
            InvalidInput: they do not fit the model or each other.
            NotFound: the model is not served.
            OSError: the disk failed; nothing was kept.
        """
        return self._applications.add_labelled(model, inputs, labels)

    def stop(self) -> None:
        """Let `run` return soon. What is under way goes on at the next start."""
        if not self._stopped.is_set():
            self._stopped.set()
            self._wake.put(None)  # may be called by a signal's handler, as this is

    def run(self, *, once: bool = False) -> int:
        """Work until `stop`, or, with `once`, until nothing is left to do.

        Returns:
            The exit code: 0 every assignment is fulfilled; 76 one was refused or went back; 1 one failed on this
            device; 75 with `once`, link or server were not ready, or a condition is not met.
        """
        self._unsettled_poll = True
        self._site.look()  # before the first poll, which may wait for a network that is not there
        if once:
            self._next_poll = 0.0
        while not self._stopped.is_set():
            wait_s = self.turn()
            if once and (code := self._once_done()) is not None:
                return code
            self._watchdog.step("waiting", wait_s + _WAKING_UP_S)
            with suppress(queue.Empty):
                self._wake.get(timeout=max(_SHORTEST_WAIT_S, wait_s))
        return self._exit_code()

    def install(self, bundle: BundleFile) -> int:
        """Work until nothing is left to do of what a bundle holds for this device, without the network.

        Reports wait in the outbox until the device has a network.

        Returns:
            The exit code, as `run` with `once`.

        Raises:
            InvalidInput: the bundle was changed, or is for other devices.
            TryLater: its metadata are expired, or it lacks a payload that this device needs.
            UntrustedUpdate: its metadata are refused: it is an old one, or was tampered with.
        """
        bundle.check()
        agreed = self._poller.carried(bundle.metadata(self._identity.device))
        self._take(agreed)
        self._site.stock(bundle)
        if agreed.foreign:
            raise agreed.foreign[0]
        for wish in agreed.desired:
            machine = self._machines[wish.model]
            if not (machine.idle or machine.ready) and not machine.active.fulfils(
                wished_release_id(wish), at_hand=True
            ):
                stock(self._shop, machine.shelf, wish, bundle)
        while not self._stopped.is_set():
            waits = [wait for machine in self._machines.values() if (wait := machine.advance()) is not None]
            if all(machine.idle or machine.ready for machine in self._machines.values()):
                self._upkeep.tidy(self._machines.values())
                break
            if max(machine.failures for machine in self._machines.values()) >= _GIVE_UP_AFTER:
                return TryLater.exit_code
            self._stopped.wait(max(_SHORTEST_WAIT_S, min(waits)))
        return self._exit_code()

    def turn(self) -> float:
        """Do what is due; return how long nothing will be, seconds. A disk that fails only puts it off."""
        try:
            wait_s = self._do_what_is_due()
        except (OSError, MemoryError) as bad:
            wait_s = self._disk_backoff.next_s(bad)
            said = {"code": code_of(bad), "detail": str(bad), "wait_s": wait_s}
            _log.exception("the disk or the system fails; trying again", extra=said)
        else:
            self._disk_backoff.reset()
        return wait_s

    def _do_what_is_due(self) -> float:
        self.orders.do()
        if self.orders.relocated:
            self._relink()
        if self.orders.retried:
            self.orders.retried, self._next_poll = False, 0.0
            self._poller.look_again()
        if self.orders.facts_changed:
            self.orders.facts_changed = False
            self._attributes.look_soon()
        now = time.monotonic()
        if now >= self._next_poll:
            self._poll()
        waits = [machine.advance() for machine in list(self._machines.values())]  # a poll between may bring one more
        self._watchdog.step("tidying up", _TIDYING_UP_S)
        waits.append(self._site.look())
        self._upkeep.tidy(self._machines.values())
        self._drift.look()
        self._attributes.look()
        self._guard.look()
        if now >= self._next_delivery or any(machine.settled for machine in self._machines.values()):
            self._deliver()
        now = time.monotonic()
        due = [self._next_poll - now, *(wait for wait in waits if wait is not None)]
        if self._shop.reports_wait:
            due.append(self._next_delivery - now)
        return max(0.0, min(due))

    def _meanwhile(self) -> bool:
        """Do what is due between two chunks of a download; return whether the download must end for it."""
        if self.orders.do_within_download() or self._guard.is_due:
            return True
        now = time.monotonic()
        if now >= self._next_poll:
            with self._watchdog.aside():
                self._poll()
        if now >= self._next_delivery and self._shop.outbox.waiting():
            with self._watchdog.aside():
                self._deliver()
        return False

    def _relink(self) -> None:
        """Turn to the server's new address, and go on with everything where it is."""
        folder = self._settings.folder
        self._identity = Identity.load(folder)
        self._shop.link.close()
        counted = self._shop.budget.count
        self._shop.link = Link.of(self._identity, load_key(folder), self._settings.link, counted=counted)
        self.orders.relocated = False
        self._backoff.reset()
        self._next_poll = 0.0

    def _poll(self) -> None:
        """Ask the server once, and take what both repositories agree on."""
        self._watchdog.step("polling", _POLLING_S + 4 * self._settings.link.total_timeout_s)
        try:
            agreed = self._poller.poll()
            self._unsettled_poll = agreed is not None and self._take(agreed)
        except (SpratError, OSError, MemoryError) as bad:
            self._poller.look_again()
            wait_s = self._backoff.next_s(bad)
            _log.warning("poll failed", extra={"code": code_of(bad), "detail": str(bad), "wait_s": wait_s})
            self._next_poll = time.monotonic() + (
                wait_s if isinstance(bad, TryLater) else max(wait_s, self._poll_interval_s)
            )
            return
        if self._settings.poll_interval_s is None and self._poller.interval_s is not None:
            self._poll_interval_s = self._poller.interval_s
        self._backoff.reset()
        self._next_poll = time.monotonic() + self._poll_interval_s * random.uniform(0.9, 1.1)  # noqa: S311  # jitter

    def _take(self, agreed: Agreed) -> bool:
        """Hand out what is agreed on; return whether it brought work."""
        troubles, taken = list(agreed.foreign), False
        for wish in agreed.desired:
            try:
                if self._machine(wish.model).wish(wish):
                    taken = True
                    said = {"model": wish.model, "release": wish.release, "assignment": wish.assignment}
                    self._shop.events.note("assigned", **said)
            except UpdateRejected as replayed:
                troubles.append(replayed)
        for refused in agreed.refused:
            assigned, why = refused.assigned, refused.why
            if assigned.assignment > self._machine(assigned.model).record.highest_assignment:
                said = {"model": assigned.model, "release": assigned.release, "assignment": assigned.assignment}
                self._shop.events.note("refused", **said, code=why.code, detail=str(why))
            self._machine(assigned.model).refuse(assigned, why)
            troubles.append(refused.why)
        named = {wish.model for wish in agreed.desired} | {refused.assigned.model for refused in agreed.refused}
        for model in self._machines.keys() - named if not agreed.foreign else ():
            self._machines[model].let_go()
        self._site.take(agreed.plans, all_of_them=not agreed.foreign)
        self._poller.settle(troubles[0] if troubles else None)
        return taken

    def _machine(self, model: str) -> ModelMachine:
        if model not in self._machines:
            self._machines[model] = ModelMachine(model, self._shop)
        return self._machines[model]

    def _deliver(self) -> None:
        """Deliver reports; those that cannot be delivered now wait in the outbox."""
        reports = len(self._shop.journal.unsent) + 1
        self._watchdog.step("delivering reports", _POLLING_S + reports * self._settings.link.total_timeout_s)
        try:
            self._shop.flush_reports()
            if self._shop.outbox.deliver(self._shop.link):
                self._next_poll = min(self._next_poll, time.monotonic() + min(1.0, self._poll_interval_s))
            self._report_backoff.reset()
            self._next_delivery = time.monotonic() + self._poll_interval_s
        except (SpratError, OSError, MemoryError) as bad:
            wait_s = self._report_backoff.next_s(bad)
            _log.warning("report not delivered", extra={"detail": str(bad), "wait_s": wait_s})
            self._next_delivery = time.monotonic() + wait_s

    def _once_done(self) -> int | None:
        """Return the exit code of `run --once`, if there is nothing left to do or no way to do it."""
        if self._poller.refused and not self._shop.reports_wait:
            return UpdateRejected.exit_code
        failures = max([self._backoff.failures, *(machine.failures for machine in self._machines.values())])
        if max(failures, self._report_backoff.failures) >= _GIVE_UP_AFTER:
            return TryLater.exit_code
        machines = self._machines.values()
        idle = all(machine.idle or machine.ready for machine in machines)
        if not idle and not self._unsettled_poll and not self._backoff.failures and not self._shop.reports_wait:
            busy = [machine for machine in machines if not (machine.idle or machine.ready)]
            waiting = {
                machine.model: work.waiting for machine in busy if (work := machine.record.work) and work.waiting
            }
            if len(waiting) == len(busy) and not any(machine.record.pending for machine in busy):
                for model, reason in waiting.items():
                    sys.stderr.write(f"sprat-agent: {model} waits: {reason}\n")
                return TryLater.exit_code
        if self._backoff.failures or self._unsettled_poll or not idle or self._shop.reports_wait:
            if idle and self._unsettled_poll and not self._backoff.failures:
                self._next_poll = 0.0
            return None
        return self._exit_code()

    def _exit_code(self) -> int:
        outcomes = {settled.outcome for settled in self.settled}
        if self._poller.refused or outcomes & {Outcome.REFUSED, Outcome.ROLLED_BACK}:
            return UpdateRejected.exit_code
        return SpratError.exit_code if Outcome.FAILED in outcomes else 0


@contextmanager
def _serving_anyway(consequence: str) -> Iterator[None]:
    """Go on where a disk that fails would only keep the agent from serving."""
    try:
        yield
    except OSError as bad:
        _log.warning("the disk fails", extra={"code": code_of(bad), "detail": str(bad), "consequence": consequence})
