"""Counts of tasks: how requests ended, and where their time went."""

import threading
from collections import Counter
from collections.abc import Iterator

from sprat_client.agent.metrics import Gauge
from sprat_client.agent.site.task_answer import TaskAnswer


class TaskMeter:
    """Counts what happens; may be called from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended: Counter[tuple[str, str]] = Counter()
        self._seconds: dict[str, float] = {}
        self._steps: Counter[tuple[str, str, str]] = Counter()
        self._step_seconds: dict[tuple[str, str, str], float] = {}
        self._hedged: Counter[str] = Counter()
        self._retried: Counter[str] = Counter()

    def answered(self, answer: TaskAnswer) -> None:
        """Count an answer."""
        with self._lock:
            self._ended[answer.task, "fallback" if answer.fallback else "answered"] += 1
            self._seconds[answer.task] = self._seconds.get(answer.task, 0.0) + answer.seconds
            for hop in answer.steps:
                key = (answer.task, hop.step, "local" if hop.local else "peer")
                self._steps[key] += 1
                self._step_seconds[key] = self._step_seconds.get(key, 0.0) + hop.seconds
                self._retried[answer.task] += hop.tries - 1

    def failed(self, task: str, code: str) -> None:
        """Count a request that ended with an error."""
        with self._lock:
            self._ended[task, code] += 1

    def hedged(self, task: str) -> None:
        """Count a second request for the same."""
        with self._lock:
            self._hedged[task] += 1

    def gauges(self) -> Iterator[Gauge]:
        """Return all counts."""
        with self._lock:
            ended, seconds, steps = dict(self._ended), dict(self._seconds), dict(self._steps)
            step_seconds, hedged, retried = dict(self._step_seconds), dict(self._hedged), dict(self._retried)
        for (task, outcome), count in sorted(ended.items()):
            said = "Requests of tasks: answered, answered by the fallback, or the code of the error."
            yield "tasks_total", said, {"task": task, "outcome": outcome}, count
        for task, value in sorted(seconds.items()):
            yield "task_seconds_total", "Seconds of all answers of a task together.", {"task": task}, value
        for (task, step, route), count in sorted(steps.items()):
            labels = {"task": task, "step": step, "route": route}
            yield "task_steps_total", "Steps answered, on this device or on another.", labels, count
        for (task, step, route), value in sorted(step_seconds.items()):
            labels = {"task": task, "step": step, "route": route}
            yield "task_step_seconds_total", "Seconds of these steps together.", labels, value
        for task, count in sorted(hedged.items()):
            yield "task_hedges_total", "Steps asked of a second device as well.", {"task": task}, count
        for task, count in sorted(retried.items()):
            yield "task_retries_total", "Steps asked of another device after one had failed.", {"task": task}, count
