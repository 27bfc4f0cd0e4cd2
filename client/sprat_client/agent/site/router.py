"""Answers applications' requests for tasks, each wholly under the plan by which this device serves when it comes."""

import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from sprat_client.agent.kserve import typed
from sprat_client.agent.metrics import Gauge
from sprat_client.agent.settings import SiteSettings
from sprat_client.agent.site.breaker import Circuit
from sprat_client.agent.site.failures import Busy, DeadlineOver, NoSuchTask
from sprat_client.agent.site.hedging import HedgeBudget
from sprat_client.agent.site.held_plan import HeldPlan
from sprat_client.agent.site.task_answer import TaskAnswer, fit_task_inputs
from sprat_client.agent.site.task_meter import TaskMeter
from sprat_client.agent.site.task_run import TaskRun
from sprat_client.runtime.ports import Array
from sprat_shared.errors import InvalidInput, SpratError

_CALLS: Final = 64  # to other devices at once


class Router:
    """Takes requests in any thread.

    Args:
        settings: bounds.
    """

    def __init__(self, settings: SiteSettings) -> None:
        self._room = threading.BoundedSemaphore(settings.most_requests)
        self._most = settings.most_requests
        self._hedges = HedgeBudget(settings.hedge_share)
        self._pool = ThreadPoolExecutor(_CALLS, thread_name_prefix="site-calls")
        self._serving: tuple[HeldPlan, ...] = ()
        self.meter = TaskMeter()

    def serve(self, plans: tuple[HeldPlan, ...]) -> None:
        """Begin requests under these plans from now on, and under no others; those under way go on under theirs."""
        self._serving = plans

    @property
    def serving(self) -> tuple[HeldPlan, ...]:
        """Return the plans under which requests are begun."""
        return self._serving

    def tasks(self) -> list[dict[str, Any]]:
        """Return the tasks that can be asked for."""
        return [
            {
                "name": name,
                "plan": held.plan.title,
                "deadline_s": task.deadline_s,
                "fallback": held.fallback_of(task) is not None,
                "inputs": typed(task.graph.inputs),
                "outputs": list(task.graph.outputs),
            }
            for held in self._serving
            for name, task in sorted(held.plan.tasks.items())
        ]

    def infer_task(
        self,
        task: str,
        inputs: Mapping[str, Array],
        *,
        deadline_s: float | None = None,
        trace: str | None = None,
        request: str | None = None,
    ) -> TaskAnswer:
        """Answer one request; see `Agent.infer_task`."""
        begun = time.monotonic()
        held = self._holder(task)
        try:
            with held.in_use(begun_here=True):
                held.require_fresh()
                planned = held.plan.tasks[task]
                fitted = fit_task_inputs(planned.graph.inputs, inputs)
                if deadline_s is not None and not deadline_s > 0:
                    raise InvalidInput(f"task {task}: a deadline of {deadline_s} s; more than 0 s")
                until = begun + min(planned.deadline_s, deadline_s or planned.deadline_s)
                if not self._room.acquire(blocking=False):
                    raise Busy(f"task {task}: {self._most} requests are under way already; ask again in a second")
                try:
                    request = request or secrets.token_hex(8)
                    answer = self._run(held, task, fitted, begun=begun, until=until, trace=trace, request=request)
                finally:
                    self._room.release()
        except SpratError as bad:
            self.meter.failed(task, bad.code)
            raise
        self.meter.answered(answer)
        return answer

    def _run(
        self,
        held: HeldPlan,
        task: str,
        inputs: Mapping[str, Array],
        *,
        begun: float,
        until: float,
        trace: str | None,
        request: str,
    ) -> TaskAnswer:
        run = TaskRun(
            held,
            task,
            inputs,
            until=until,
            pool=self._pool,
            hedges=self._hedges,
            request=request,
            trace=trace,
            on_hedge=lambda: self.meter.hedged(task),
        )
        outputs, hops, fallback = run.answer()
        took_s = time.monotonic() - begun
        if time.monotonic() > until:
            raise DeadlineOver(f"task {task}: its answer took {took_s:.3g} s, {until - begun:.3g} s were given")
        return TaskAnswer(
            task=task,
            plan=held.plan.title,
            outputs=outputs,
            fallback=fallback,
            steps=hops,
            seconds=took_s,
            request=request,
        )

    def _holder(self, task: str) -> HeldPlan:
        for held in self._serving:
            if task in held.plan.tasks:
                return held
        has = ", ".join(name for held in self._serving for name in sorted(held.plan.tasks)) or "none"
        raise NoSuchTask(f"task {task[:100]!r} is not served here; served: {has}")

    def gauges(self) -> Iterator[Gauge]:
        """Return what is true just now, and all counts."""
        for held in self._serving:
            yield "site_plan", "The plan by which tasks are answered.", {"site": held.plan.site}, held.plan.number
            for peer in held.peers.values():
                labels = {"site": held.plan.site, "device": peer.member.name}
                circuit = peer.breaker.circuit
                said = "Whether another device of the site is asked: 0 it is, 1 it is tried, 2 it is not."
                yield "site_circuit", said, labels, list(Circuit).index(circuit)
                said = "Whether a device of the site is elsewhere than the plan says: 1 it is found by a hint."
                yield "site_moved", said, labels, int(peer.moved is not None)
                if peer.beat_s is not None:
                    yield "site_heartbeat_seconds", "Seconds of its last heartbeat.", labels, peer.beat_s
            for module in held.modules.values():
                labels = {"model": module.model, "release": str(module.release)}
                yield "site_waiting", "Requests that wait for a module of the site.", labels, len(module.queue)
        yield from self.meter.gauges()

    def away(self) -> Iterator[tuple[str, str]]:
        """Return the names of the devices that do not answer, and why."""
        for held in self._serving:
            for peer in held.peers.values():
                if peer.breaker.circuit is not Circuit.CLOSED:
                    yield peer.member.name, peer.breaker.away or "it failed several times in a row"

    def close(self) -> None:
        """Begin nothing any more."""
        self._serving = ()
        self._pool.shutdown(wait=False, cancel_futures=True)
