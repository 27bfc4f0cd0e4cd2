"""The plans of the site that this device has a part in, moved by what the director signs; light until there is one.

hold:  fetch the file, wait for the releases, load and try them, answer others, reach them, report `ready`
serve: begin applications' requests under it, report `serving`
drain, or signed no more: begin none; finish; let go
"""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from sprat_client.agent.bundle_file import BundleFile
from sprat_client.agent.identity import load_key
from sprat_client.agent.machine import ModelMachine
from sprat_client.agent.metrics import Gauge
from sprat_client.agent.room import code_of
from sprat_client.agent.site.failures import MdnsMissing, NoSuchTask, PlanRefused
from sprat_client.agent.site.measures_reporter import MeasuresReporter
from sprat_client.agent.site.plan_files import PlanFiles, PlanRecord
from sprat_client.agent.site.site_meter import SiteMeter
from sprat_client.agent.steps import Workshop
from sprat_client.agent.transfer import Backoff, Blob
from sprat_client.agent.trust.store import AgreedPlan
from sprat_client.agent.version import VERSION
from sprat_client.runtime.ports import Array
from sprat_shared.errors import InvalidInput, SpratError, TryLater
from sprat_shared.protocol.site_report import PlanState, SiteReport
from sprat_shared.trust.site_targets import Phase

if TYPE_CHECKING:  # numpy, and what serves TLS
    from socket import socket

    from sprat_client.agent.site.held_plan import HeldPlan
    from sprat_client.agent.site.running import Running
    from sprat_client.agent.site.task_answer import TaskAnswer
    from sprat_shared.protocol.site_plan import SitePlan

_log = logging.getLogger(__name__)
_LOOK_AGAIN_S: Final = 1.0
_RETIRING_S: Final = 0.2
_LOADING_S: Final = 600.0
_LONGEST_DETAIL: Final = 1000


@dataclass(frozen=True, slots=True)
class PlanStatus:
    """How this device stands with one plan, for people.

    Attributes:
        plan: `site/number`.
        phase: that is signed.
        told: what was reported; None: nothing was.
        waiting: what it waits for, or what went wrong; empty: nothing.
    """

    plan: str
    phase: str
    told: str | None
    waiting: str


class SitePlans:
    """Holds plans. What applications ask may be called from any thread, all else by the agent's.

    Args:
        shop: what the agent works with.
        machines: by model.
        wake: wakes the agent's thread.
    """

    def __init__(self, shop: Workshop, machines: Mapping[str, ModelMachine], wake: Callable[[], object]) -> None:
        self._shop, self._machines, self._wake = shop, machines, wake
        self._files = PlanFiles(shop.settings.folder, shop.disk)
        self._plans: dict[tuple[str, int, str], SitePlan] = {}
        self._waiting: dict[tuple[str, int, str], str] = {}
        self._not_before: dict[tuple[str, int, str], float] = {}
        self._held_at: dict[tuple[str, int, str], float] = {}
        self._backoff = Backoff(shop.settings.link)
        self._measured = SiteMeter()
        self._reporter = MeasuresReporter(shop, self._measured)
        self._running: Running | None = None
        self._socket: socket | None = None
        self._address: str | None = None

    def start(self) -> None:
        """Take the address on which others reach this device.

        Raises:
            InvalidInput: the address is not free, or cannot be told to others.
            MdnsMissing: mDNS is asked for, and not installed.
        """
        settings = self._shop.settings.site
        if settings.mdns and find_spec("zeroconf") is None:
            raise MdnsMissing("--site-mdns: the package zeroconf is not installed; pip install 'sprat[mdns]'")
        if settings.listen is not None:
            from sprat_client.agent.site.binding import bind  # noqa: PLC0415  # what few devices need

            self._socket, self._address = bind(settings.listen, settings.address)

    def where(self) -> str | None:
        """Return where other devices of a site reach this one; None: they do not."""
        return self._address

    def take(self, agreed: Sequence[AgreedPlan], *, all_of_them: bool) -> None:
        """Take what is signed now.

        Args:
            agreed: plans.
            all_of_them: those that are not among them are signed no more; else something that was signed is not this
                device's, and they are kept.
        """
        signed = [
            PlanRecord(
                site=one.plan.site,
                number=one.plan.number,
                phase=one.plan.phase,
                sha256=one.sha256.hex(),
                length=one.length,
            )
            for one in agreed
        ]
        if not all_of_them:
            named = {(record.site, record.number) for record in signed}
            signed += [record for record in self._files.records if (record.site, record.number) not in named]
        if self._files.sign(signed):
            for record in self._files.records:
                said = {"plan": record.title, "phase": record.phase.value}
                self._shop.events.note("site plan", **said)
        for record in self._files.records:
            inline = self._shop.blobs.get(f"sha256:{record.sha256}")
            if inline is not None and self._files.body(record) is None:
                self._keep(record, inline)
        keys = {record.key for record in self._files.records}
        self._plans = {key: plan for key, plan in self._plans.items() if key in keys}
        self._waiting = {key: why for key, why in self._waiting.items() if key in keys}
        self._not_before = {}

    def stock(self, bundle: BundleFile) -> None:
        """Take from a bundle the files of plans that are not here; what it lacks is fetched once there is a network."""
        from sprat_shared.protocol.site_plan import MOST_PLAN_BYTES  # noqa: PLC0415  # likewise

        for record in self._files.records:
            sha256 = bytes.fromhex(record.sha256)
            if bundle.payloads.get(sha256, MOST_PLAN_BYTES + 1) <= MOST_PLAN_BYTES and self._files.body(record) is None:
                self._keep(record, b"".join(bundle.payload(sha256)))

    def look(self) -> float | None:
        """Do what is due; return how long nothing will be, seconds; None: until something changes.

        A disk that fails puts it off, and ends nothing.
        """
        if not self._files.records and self._running is None:
            return None
        try:
            waits = [self._look_at(record) for record in self._kept_records]
            waits.append(self._settle())
        except (OSError, MemoryError) as bad:
            _log.warning("plans of the site have to wait", extra={"code": code_of(bad), "detail": str(bad)})
            return _LOOK_AGAIN_S
        return min((wait for wait in waits if wait is not None), default=None)

    def kept(self) -> dict[str, set[str]]:
        """Return the releases that plans need on this device, by model: they stay on the disk."""
        kept: dict[str, set[str]] = {}
        for record in self._kept_records:
            for module in () if (plan := self._known_or_none(record)) is None else plan.modules_of(self._shop.device):
                kept.setdefault(module.model, set()).add(module.release_id)
        return kept

    def close(self) -> None:
        """End what runs; what is under way is answered first."""
        if self._running is not None:
            self._running.close()
            self._running = None
        elif self._socket is not None:
            self._socket.close()

    # for applications, in their threads ------------------------------------------------------------------------------

    def infer_task(self, task: str, inputs: Mapping[str, Array], **more: Any) -> "TaskAnswer":
        """Let a task answer; see `Agent.infer_task`."""
        if (running := self._running) is None:
            raise NoSuchTask(f"task {task[:100]!r} is not served here: this device serves by no plan of a site")
        return running.router.infer_task(task, inputs, **more)

    def tasks(self) -> list[dict[str, Any]]:
        """Return the tasks that can be asked for."""
        running = self._running
        return [] if running is None else running.router.tasks()

    def status(self) -> list[PlanStatus]:
        """Return how this device stands with each plan."""
        return [
            PlanStatus(
                record.title,
                record.phase.value,
                None if record.told is None else record.told.value,
                self._waiting.get(record.key, "") if record.why is None else ": ".join(record.why),
            )
            for record in self._files.records
        ]

    def wrong(self) -> Iterator[tuple[str, str, bool]]:
        """Return what is wrong: code, sentence, and whether tasks are not answered for it."""
        for record in self._files.records:
            if record.why is not None:
                yield record.why[0], f"plan {record.title}: {record.why[1]}", record.phase is Phase.SERVE
            elif record.phase is Phase.SERVE and (why := self._waiting.get(record.key)):
                yield "site.not-served", f"plan {record.title} should serve: {why}", True
        if (running := self._running) is None:
            return
        for held in running.router.serving:
            if held.expired:
                yield "site.plan-expired", f"plan {held.plan.title} is over; tasks are not answered", True
        for device, why in running.router.away():
            yield "site.unreachable", f"{device}: {why}", False

    def gauges(self) -> Iterator[Gauge]:
        """Return what is true just now, and counts."""
        if (running := self._running) is not None:
            yield from running.router.gauges()

    # on the agent's thread -------------------------------------------------------------------------------------------

    def _look_at(self, record: PlanRecord) -> float | None:
        """Do what is due of one plan; return when to look again, seconds."""
        if (wait_s := self._not_before.get(record.key, 0.0) - time.monotonic()) > 0:
            return wait_s
        try:
            wait = self._advance(record)
        except (SpratError, OSError, MemoryError) as bad:
            final = isinstance(bad, SpratError) and not isinstance(bad, TryLater) and record.phase is Phase.HOLD
            if not final:
                return self._again(record, bad)
            self._refuse(record, bad)
            return None
        if wait is None:
            self._waiting.pop(record.key, None)
            self._backoff.reset()
        return wait

    def _again(self, record: PlanRecord, bad: BaseException) -> float:
        wait_s = max(_LOOK_AGAIN_S, self._backoff.next_s(bad))
        self._not_before[record.key] = time.monotonic() + wait_s
        said = {"plan": record.title, "code": code_of(bad), "detail": str(bad), "wait_s": wait_s}
        _log.warning("a plan of the site has to wait", extra=said)
        self._waiting[record.key] = str(bad)
        return wait_s

    def _advance(self, record: PlanRecord) -> float | None:
        plan = self._known(record) or self._fetched(record)
        held = None if self._running is None else self._running.of(record.sha256)
        if held is None:
            self._check(record, plan)
            missing = [
                one for one in plan.modules_of(self._shop.device) if not self._is_here(one.model, one.release_id)
            ]
            if missing:
                return self._wait_for(record, f"{missing[0].model}@{missing[0].release} is not on this device yet")
            self._shop.watchdog.step(f"loading plan {plan.title}", _LOADING_S)
            shelves = {model: machine.shelf for model, machine in self._machines.items()}
            held = self._running_now().hold(record.sha256, plan, shelves)
            self._held_at[record.key] = time.monotonic()
            self._shop.events.note("site plan held", plan=plan.title)
        if record.phase is Phase.HOLD and record.told is None:
            if left := self._unreached(record, held):
                return self._wait_for(record, left)
            held.check_types()
            self._report(record, PlanState.READY)
        return None

    def _wait_for(self, record: PlanRecord, why: str) -> float:
        self._waiting[record.key] = why
        return _LOOK_AGAIN_S

    def _unreached(self, record: PlanRecord, held: "HeldPlan") -> str:
        """Return which member has to answer before the plan is ready; empty: none has to."""
        late = time.monotonic() - self._held_at[record.key] > self._shop.settings.site.reach_s
        for model, peers in held.unreached().items():
            hosts = sum(host in held.peers for host in held.plan.modules[model].hosts)
            if not late or len(peers) == hosts:  # after a while one of those that hold it will do
                return f"{peers[0].said}, which holds {model}, is not ready yet"
        return ""

    @property
    def _kept_records(self) -> list[PlanRecord]:
        return [record for record in self._files.records if record.told is not PlanState.REFUSED]

    def _settle(self) -> float | None:
        """Serve by the newest plan of each site, and let go of what is not signed any more."""
        if (running := self._running) is None:
            return None
        held = {record: one for record in self._kept_records if (one := running.of(record.sha256)) is not None}
        serving = {record.site: record for record in held if record.phase is Phase.SERVE}  # the newest is the last
        running.router.serve(tuple(held[record] for record in serving.values()))
        unfinished = {one.plan.site for one in held.values() if one not in running.router.serving and not one.finished}
        for record in serving.values():
            # The server has others let go of the plan before once all say this, and requests under it must be over.
            if record.told is not PlanState.SERVING and not held[record].expired and record.site not in unfinished:
                self._report(record, PlanState.SERVING)
        trying = [one for record, one in held.items() if record.phase is Phase.HOLD and record.told is None]
        running.listen_to([*running.router.serving, *trying])
        running.keep_only([record.sha256 for record in held])
        waits = [self._reporter.look(running.router.serving, list(held.values()))]
        waits += [_RETIRING_S] if running.retiring or unfinished else []
        return min((wait for wait in waits if wait is not None), default=None)

    def _running_now(self) -> "Running":
        if self._running is None:
            from sprat_client.agent.site.running import Running  # noqa: PLC0415  # numpy and uvicorn, for plans alone

            self._running = Running(self._shop, self._socket, self._look_soon, self._measured)
        return self._running

    def _look_soon(self) -> None:
        """Let the agent's thread look at the plans; called from others."""
        self._wake()

    def _known(self, record: PlanRecord) -> "SitePlan | None":
        """Return a plan whose file is here; None: it is not, or is damaged."""
        plan = self._plans.get(record.key)
        if plan is None and (body := self._files.body(record)) is not None:
            from sprat_shared.protocol.site_plan import SitePlan  # noqa: PLC0415  # what a device without a plan spares

            plan = self._plans[record.key] = SitePlan.from_bytes(body)
        return plan

    def _known_or_none(self, record: PlanRecord) -> "SitePlan | None":
        try:
            return self._known(record)
        except InvalidInput:
            return None

    def _fetched(self, record: PlanRecord) -> "SitePlan":
        """Fetch a plan's file.

        Raises:
            LinkDown: try again later.
            PlanRefused: it is larger than plans are.
            InvalidInput: it is no plan.
        """
        from sprat_shared.protocol.site_plan import MOST_PLAN_BYTES  # noqa: PLC0415  # likewise

        if record.length > MOST_PLAN_BYTES:
            raise PlanRefused(f"plan {record.title}: {record.length} bytes; {MOST_PLAN_BYTES} at most")
        shop = self._shop
        shop.watchdog.step(f"fetching plan {record.title}", _LOADING_S + shop.settings.link.total_timeout_s)
        blob = Blob(bytes.fromhex(record.sha256), record.length, shop.downloads / record.sha256)
        shop.link.download(blob, shop.disk, lambda _: None)
        self._files.keep(record, shop.disk.read(blob.file))
        plan = self._known(record)
        if plan is None:
            raise TryLater(f"plan {record.title}: the disk gives other bytes than were written")
        return plan

    def _check(self, record: PlanRecord, plan: "SitePlan") -> None:
        """Refuse a plan that is not this device's.

        Raises:
            PlanRefused: it is not what was signed, or this device cannot have that part in it.
        """
        own = plan.member.get(self._shop.device)
        if (plan.site, plan.number) != (record.site, record.number) or own is None:
            raise PlanRefused(f"plan {record.title}: the file is of plan {plan.title}, or this device is no member")
        from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415  # what a device without a plan spares
        from cryptography.x509 import load_der_x509_certificate  # noqa: PLC0415  # likewise

        try:
            key = load_der_x509_certificate(own.certificate).public_key()
        except (ValueError, UnsupportedAlgorithm) as bad:
            raise PlanRefused(f"plan {plan.title}: this device's certificate cannot be read ({bad})") from None
        if key != load_key(self._shop.settings.folder).public_key():
            raise PlanRefused(f"plan {plan.title}: its certificate is over another key than this device's")
        if record.phase is Phase.HOLD and self._shop.clock.now() >= plan.expires_at:
            raise PlanRefused(f"plan {plan.title} ended at {plan.expires_at.isoformat()}", code="site.plan-expired")
        if self._socket is None and len(plan.members) > 1 and plan.modules_of(self._shop.device):
            raise PlanRefused(
                f"plan {plan.title}: other devices cannot reach this one; start its agent with --site-listen",
                code="site.no-listener",
            )

    def _is_here(self, model: str, release_id: str) -> bool:
        machine = self._machines.get(model)
        return machine is not None and machine.shelf.holds(release_id)

    def _refuse(self, record: PlanRecord, bad: BaseException) -> None:
        code, detail = code_of(bad), str(bad)[:_LONGEST_DETAIL]
        _log.error("a plan of the site is refused", extra={"plan": record.title, "code": code, "detail": detail})
        self._report(record, PlanState.REFUSED, (code, detail))

    def _report(self, record: PlanRecord, state: PlanState, why: tuple[str, str] | None = None) -> None:
        """Report how far this device is with a plan, and remember that; a cut between repeats the report."""
        journal = self._shop.journal
        journal.say(
            SiteReport(
                device=self._shop.device,
                sequence=journal.next_sequence,
                site=record.site,
                plan=record.number,
                state=state,
                agent=VERSION,
                error_code=None if why is None else why[0][:100],
                error_detail=None if why is None else why[1],
            )
        )
        self._files.tell(record, state, why)
        self._shop.flush_reports()
        self._shop.events.note("site plan reported", plan=record.title, state=state.value)

    def _keep(self, record: PlanRecord, body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() == record.sha256:
            self._files.keep(record, body)
