"""One request for a task: its steps asked as their inputs are there, elsewhere where a device fails, within a deadline.

Whoever asked waits in its own thread, which decides; calls to other devices run in threads of a pool and put what came
of them into a queue.
"""

import queue
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from sprat_client.agent.site.failures import Busy, DeadlineOver, PlanExpired, TooLate, Unreachable
from sprat_client.agent.site.hedging import HedgeBudget
from sprat_client.agent.site.held_plan import HeldPlan
from sprat_client.agent.site.module_queue import Ran
from sprat_client.agent.site.peer import Ask, Peer, Told
from sprat_client.agent.site.task_answer import Hop
from sprat_client.runtime.ports import Array, InferenceFailed
from sprat_shared.errors import InvalidInput, SpratError
from sprat_shared.tasks.graph import Step, TaskGraph

_ROUNDS: Final = 2  # over the hosts of a module: a link that was cut once may be whole again
_FAIR_S: Final = 0.1  # a device that had less than this is not to blame for a deadline
_SPARE_S: Final = 0.005  # of the deadline, for what is left to do once it is over
_FALLBACK_MARGIN_S: Final = 0.02
_FALLBACK_FACTOR: Final = 2.0
_LARGEST_RESERVE: Final = 0.5  # of the deadline, for the fallback


@dataclass(eq=False, slots=True)
class _Attempt:
    """One request to one host."""

    way: "_Way"
    step: Step
    host: UUID
    hedge: bool
    begun: float = field(default_factory=time.monotonic)
    hedge_at: float | None = None
    ask: Ask = field(default_factory=Ask)
    future: "Future[Ran] | Future[Told] | None" = None


@dataclass(eq=False, slots=True)
class _Asked:
    """How a step stands.

    Attributes:
        hosts: that were asked, in order.
        under_way: attempts.
        wrong: what the last failed one said, and of whom.
    """

    hosts: list[UUID] = field(default_factory=list)
    under_way: list[_Attempt] = field(default_factory=list)
    hedged: bool = False
    wrong: SpratError | None = None


@dataclass(eq=False, slots=True)
class _Way:
    """A graph on its way to its outputs: the task's own, or its fallback."""

    graph: TaskGraph
    values: dict[str, Array]
    local_only: bool
    asked: dict[str, _Asked] = field(default_factory=dict)
    ended: dict[str, Hop] = field(default_factory=dict)
    failed: SpratError | None = None

    @property
    def done(self) -> bool:
        return len(self.ended) == len(self.graph.steps)

    def ready(self) -> list[Step]:
        """Return the steps whose inputs are there, and that nobody was asked for yet."""
        return [step for step in self.graph.order if step.name not in self.asked and step.needs <= self.ended.keys()]

    def wanted(self, step: Step) -> list[str]:
        """Return the outputs of a step that something takes."""
        sources = {source for one in self.graph.steps for source in one.inputs.values()} | set(
            self.graph.outputs.values()
        )
        own = f"{step.name}."
        return sorted(source.removeprefix(own) for source in sources if source.startswith(own))


def _place_in(routed: Sequence[UUID], host: UUID) -> int:
    return routed.index(host) if host in routed else len(routed)


_Event = tuple[_Attempt, "Ran | Told | BaseException"]


class TaskRun:
    """Answers one request.

    Args:
        held: the plan under which all of it is done.
        task: name of the task.
        inputs: checked.
        until: the deadline, on the monotonic clock.
        pool: of threads for calls to other devices.
        hedges: how many second requests may be sent.
        request: its id.
        trace: `traceparent` header; None: there is none.
        on_hedge: called for each second request.
    """

    def __init__(
        self,
        held: HeldPlan,
        task: str,
        inputs: Mapping[str, Array],
        *,
        until: float,
        pool: Executor,
        hedges: HedgeBudget,
        request: str,
        trace: str | None,
        on_hedge: Callable[[], None] = lambda: None,
    ) -> None:
        self._held, self._task, self._inputs, self._until = held, task, inputs, until
        self._pool, self._hedges, self._on_hedge = pool, hedges, on_hedge
        self._request, self._trace = request, trace
        self._begun = time.monotonic()
        self._came: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        planned = held.plan.tasks[task]
        self._routes = planned.routes.get(held.device, {})
        self._main = _Way(planned.graph, dict(inputs), local_only=False)
        self._fallback_graph = held.fallback_of(planned)
        self._fallback: _Way | None = None

    def answer(self) -> tuple[dict[str, Array], tuple[Hop, ...], bool]:
        """Return the outputs, the steps that gave them, and whether those were the fallback's.

        Raises:
            InvalidInput: a module does not take what came.
            InferenceFailed: a module failed on it.
            Unreachable: no device that holds a step's module answers, and there is no fallback.
            Busy: the last of them had too many requests waiting, likewise.
            DeadlineOver: the deadline is over.
        """
        fall_at = self._until - self._reserve_s()
        try:
            self._go_on(self._main)
            while True:
                for way in (self._main, self._fallback):
                    if way is not None and way.done:
                        outputs = {name: way.values[source] for name, source in way.graph.outputs.items()}
                        return outputs, tuple(way.ended.values()), way is self._fallback
                now = time.monotonic()
                if now >= self._until - _SPARE_S:
                    raise self._over()
                if self._fallback is None and self._fallback_graph is not None:
                    if self._main.failed is not None or now >= fall_at:
                        self._fallback = _Way(self._fallback_graph, dict(self._inputs), local_only=True)
                        self._go_on(self._fallback)
                        continue
                elif self._main.failed is not None and (self._fallback is None or self._fallback.failed is not None):
                    raise self._main.failed
                self._wait(now, fall_at)
        finally:
            self._end_all()

    def _end_all(self) -> None:
        """Let go of what is under way; a device that the fallback had to answer for has failed."""
        over = self._fallback is not None or time.monotonic() >= self._until - _SPARE_S
        for way in (self._main, self._fallback):
            for asked in () if way is None else way.asked.values():
                for attempt in asked.under_way:
                    late = over and time.monotonic() - attempt.begun >= _FAIR_S
                    if late and (peer := self._held.peers.get(attempt.host)) is not None:
                        peer.breaker.failed()
                    self._end(attempt, "nobody waits for the answer any more")

    def _reserve_s(self) -> float:
        """Return how long before the deadline the fallback has to begin, seconds; 0 where there is none."""
        if self._fallback_graph is None:
            return 0.0
        rows = max((value.shape[0] for value in self._inputs.values() if value.ndim), default=1)
        alone_s = sum(self._held.modules[step.model].alone_s for step in self._fallback_graph.steps)
        needed_s = _FALLBACK_MARGIN_S + _SPARE_S + _FALLBACK_FACTOR * rows * alone_s
        return min(needed_s, _LARGEST_RESERVE * (self._until - self._begun))

    def _wait(self, now: float, fall_at: float) -> None:
        """Wait for the next event, or until something is due."""
        due = [self._until - _SPARE_S]
        if self._fallback is None and self._fallback_graph is not None:
            due.append(fall_at)
        hedged = [
            attempt
            for asked in self._main.asked.values()
            if not asked.hedged
            for attempt in asked.under_way
            if attempt.hedge_at is not None
        ]
        due += [attempt.hedge_at for attempt in hedged if attempt.hedge_at is not None]
        try:
            attempt, came = self._came.get(timeout=max(0.0, min(due) - now))
        except queue.Empty:
            for attempt in hedged:
                if attempt.hedge_at is not None and attempt.hedge_at <= time.monotonic():
                    self._hedge(attempt)
            return
        self._take(attempt, came)

    def _take(self, attempt: _Attempt, came: "Ran | Told | BaseException") -> None:
        """Go on with what came of an attempt."""
        way, step = attempt.way, attempt.step
        asked = way.asked[step.name]
        if attempt not in asked.under_way:
            return  # another one answered before
        asked.under_way.remove(attempt)
        took_s = time.monotonic() - attempt.begun
        peer = self._held.peers.get(attempt.host)
        if isinstance(came, BaseException):
            bad = came if isinstance(came, SpratError) else SpratError(f"this device made a mistake: {came!r:.200}")
            if peer is not None:
                away = isinstance(bad, Unreachable) or (isinstance(bad, DeadlineOver | TooLate) and took_s >= _FAIR_S)
                peer.breaker.failed() if away else peer.breaker.given_up()
            self._fail(way, step, asked, attempt, bad)
            return
        if peer is not None:
            peer.breaker.succeeded()
            peer.latencies_of(step.model).add(took_s)
        for other in asked.under_way:
            self._end(other, "another device answered before")
        asked.under_way = []
        way.ended[step.name] = Hop(
            step=step.name,
            model=step.model,
            release=self._held.plan.modules[step.model].release,
            device=self._held.plan.member[attempt.host].name,
            local=peer is None,
            seconds=took_s,
            waited_s=came.waited_s,
            ran_s=came.ran_s,
            tries=len(asked.hosts) - asked.hedged,
            hedged=asked.hedged,
        )
        way.values |= {f"{step.name}.{name}": value for name, value in came.outputs.items()}
        self._go_on(way)

    def _fail(self, way: _Way, step: Step, asked: _Asked, attempt: _Attempt, bad: SpratError) -> None:
        """Turn to another host, or give the way up where there is none or it would fail there as well."""
        asked.wrong = self._at(step, attempt.host, bad)
        if isinstance(bad, InvalidInput):
            raise asked.wrong
        if isinstance(bad, InferenceFailed) or (not asked.under_way and not self._begin(way, step, asked)):
            way.failed = asked.wrong

    def _go_on(self, way: _Way) -> None:
        """Ask for all steps whose inputs are there."""
        for step in way.ready() if way.failed is None else ():
            asked = way.asked[step.name] = _Asked()
            self._hedges.asked()
            if not self._begin(way, step, asked):
                way.failed = asked.wrong or self._nobody(step)

    def _begin(self, way: _Way, step: Step, asked: _Asked, *, hedge: bool = False) -> bool:
        """Ask the next host of a step; return whether there was one."""
        if way.failed is not None:
            return False
        while (host := self._next_host(way, step, asked, hedge=hedge)) is not None:
            attempt = _Attempt(way, step, host, hedge)
            asked.hosts.append(host)
            inputs = {port: way.values[source] for port, source in step.inputs.items()}
            if host == self._held.device:
                try:
                    attempt.future = self._held.modules[step.model].queue.ask(inputs, self._until)
                except InvalidInput as bad:
                    raise self._at(step, host, bad) from None
                except SpratError as bad:
                    asked.wrong = self._at(step, host, bad)
                    continue
            else:
                attempt.future = self._pool.submit(self._ask, attempt, self._held.peers[host], inputs)
            asked.under_way.append(attempt)
            attempt.future.add_done_callback(lambda future, attempt=attempt: self._put(attempt, future))  # type: ignore[misc]
            p95_s = None if host == self._held.device else self._held.peers[host].latencies_of(step.model).p95()
            attempt.hedge_at = None if p95_s is None or hedge else attempt.begun + p95_s
            return True
        return False

    def _ask(self, attempt: _Attempt, peer: Peer, inputs: Mapping[str, Array]) -> Told:
        return peer.infer(
            self._held.plan.modules[attempt.step.model],
            inputs,
            attempt.way.wanted(attempt.step),
            until=self._until,
            request=self._request,
            trace=self._trace,
            ask=attempt.ask,
        )

    def _put(self, attempt: _Attempt, future: "Future[Ran] | Future[Told]") -> None:
        if not future.cancelled():
            self._came.put((attempt, future.exception() or future.result()))

    def _next_host(self, way: _Way, step: Step, asked: _Asked, *, hedge: bool) -> UUID | None:
        """Return who is asked next: as the plan routes it, else this device, then the others; None: nobody is left.

        One that failed before, and rests, is asked where it is the last resort: it is there, and may only be busy.
        """
        own, hosts = self._held.device, self._held.plan.modules[step.model].hosts
        routed = self._routes.get(step.name, ())
        order = sorted(hosts, key=lambda host: (_place_in(routed, host), host != own, hosts.index(host)))
        resting = []
        for times in range(1 if hedge else _ROUNDS):
            for host in order:
                if asked.hosts.count(host) > times or (way.local_only and host != own):
                    continue
                if host == own:
                    if not times:
                        return host
                elif (peer := self._held.peers.get(host)) is not None:
                    if peer.breaker.let_through():
                        return host
                    if not (peer.breaker.away or host in asked.hosts):
                        resting.append(host)
        last_resort = not hedge and not asked.under_way and self._fallback_graph is None
        return resting[0] if resting and last_resort else None

    def _hedge(self, attempt: _Attempt) -> None:
        """Ask a second host for what takes longer there than nearly ever."""
        attempt.hedge_at = None
        asked = attempt.way.asked[attempt.step.name]
        others = set(self._held.plan.modules[attempt.step.model].hosts) - set(asked.hosts)
        if others and self._hedges.take() and self._begin(attempt.way, attempt.step, asked, hedge=True):
            asked.hedged = True
            self._on_hedge()

    def _end(self, attempt: _Attempt, why: str) -> None:
        """Let go of an attempt that nobody waits for."""
        attempt.ask.cancel(why)
        if attempt.future is not None:
            attempt.future.cancel()
        if (peer := self._held.peers.get(attempt.host)) is not None:
            peer.breaker.given_up()

    def _over(self) -> SpratError:
        """Return the error that says what the deadline found undone."""
        ways = [way for way in (self._main, self._fallback) if way is not None]
        for way in ways:
            for name, asked in way.asked.items():
                if asked.under_way:
                    at, waits = asked.under_way[-1].host, time.monotonic() - asked.under_way[-1].begun
                    return DeadlineOver(
                        f"task {self._task}: {self._until - self._begun:.3g} s are over, and step {name} was not "
                        f"answered by {self._name(at)} within {waits:.3g} s"
                    )
        return DeadlineOver(f"task {self._task}: {self._until - self._begun:.3g} s are over")

    def _nobody(self, step: Step) -> Unreachable:
        why = [
            f"{self._name(host)} {peer.breaker.away or 'failed before, and rests'}"
            for host in self._held.plan.modules[step.model].hosts
            if (peer := self._held.peers.get(host)) is not None
        ]
        return Unreachable(f"task {self._task}, step {step.name}: nobody holds {step.model} just now: {'; '.join(why)}")

    def _at(self, step: Step, host: UUID, bad: SpratError) -> SpratError:
        """Return an error with task, step and device in it; of one that does not answer: `site.unreachable`."""
        said = f"task {self._task}, step {step.name} on {self._name(host)}: {bad}"
        if isinstance(bad, InvalidInput):
            return InvalidInput(said, code=bad.code)
        for kind in (InferenceFailed, PlanExpired, Busy):
            if isinstance(bad, kind):
                return kind(said)
        return DeadlineOver(said) if isinstance(bad, DeadlineOver | TooLate) else Unreachable(said)

    def _name(self, host: UUID) -> str:
        member = self._held.plan.member[host]
        return member.name if host == self._held.device else f"{member.name} ({member.address})"
