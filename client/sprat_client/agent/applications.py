"""What applications on the device may ask of an agent, from its own process or over loopback."""

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from sprat_client.agent.holdouts import Holdouts
from sprat_client.agent.metrics import render
from sprat_client.agent.overview import Overview
from sprat_client.agent.servings import Servings
from sprat_client.agent.site.plans import SitePlans
from sprat_client.runtime.ports import Array
from sprat_shared.errors import InvalidInput, TryLater

if TYPE_CHECKING:
    from sprat_client.agent.serve import Answer
    from sprat_client.agent.site.task_answer import TaskAnswer

_log = logging.getLogger(__name__)
LONGEST_TEXT: Final = 500


class TooMany(TryLater):
    """Applications ask for more writes than the device's disk and its trial can bear."""

    code = "endpoint.too-many"


class Rate:
    """So many at once, then so many a second. May be asked from several threads."""

    def __init__(self, burst: int, per_s: float) -> None:
        self._burst, self._per_s = burst, per_s
        self._left, self._at = float(burst), time.monotonic()
        self._lock = threading.Lock()

    def take(self, what: str) -> None:
        """Take one, or raise TooMany."""
        with self._lock:
            now = time.monotonic()
            self._left = min(float(self._burst), self._left + (now - self._at) * self._per_s)
            self._at = now
            if self._left < 1:
                raise TooMany(f"{what}: {self._burst} at once and {self._per_s:g} a second are taken; wait a second")
            self._left -= 1


class Applications:
    """The calls of applications.

    Args:
        servings: what answers.
        holdouts: where labelled samples are kept.
        overview: says what is wrong, and numbers.
        site: answers tasks.
    """

    def __init__(self, servings: Servings, holdouts: Holdouts, overview: Overview, site: SitePlans) -> None:
        self.servings, self._holdouts, self._overview, self._site = servings, holdouts, overview, site

    def infer(self, model: str, inputs: Array | Mapping[str, Array]) -> "Answer":
        """Ask a model. See `Agent.infer`."""
        return self.servings.answer(model, inputs)

    def infer_task(
        self,
        task: str,
        inputs: Mapping[str, Array],
        *,
        deadline_s: float | None = None,
        trace: str | None = None,
        request: str | None = None,
    ) -> "TaskAnswer":
        """Let a task answer. See `Agent.infer_task`; `trace` is a `traceparent`, `request` an id for logs."""
        return self._site.infer_task(task, inputs, deadline_s=deadline_s, trace=trace, request=request)

    def tasks(self) -> list[dict[str, Any]]:
        """Return the tasks that can be asked for."""
        return self._site.tasks()

    def report_error(self, model: str, text: str, release: int | None = None) -> int:
        """Count an error that an application found. See `Agent.report_error`."""
        if not text.strip() or len(text) > LONGEST_TEXT:
            raise InvalidInput(f"the text of an error takes 1 to {LONGEST_TEXT} characters, not {len(text)}")
        if release is not None and release < 1:
            raise InvalidInput(f"release {release}: say the number that came with the answer, or none")
        counted = self.servings.report_error(model, text, release)
        _log.warning("an application reports an error", extra={"model": model, "release": counted, "detail": text})
        return counted

    def add_labelled(self, model: str, inputs: Array, labels: Array | Sequence[int]) -> int:
        """Keep labelled samples. See `Agent.add_labelled`."""
        specs = self.servings.of(model).host.inputs
        if len(specs) != 1:
            raise InvalidInput(
                f"model {model!r} has {len(specs)} inputs; labelled samples are kept for models of one",
                code="holdout.invalid",
            )
        return self._holdouts.of(model).add(specs[0], inputs, labels)

    def health(self) -> tuple[bool, dict[str, Any]]:
        """Return whether all that should serve does, and what is wrong."""
        wrong = self._overview.wrong()
        failing = any(one.failing for one in wrong)
        status = "failing" if failing else "degraded" if wrong else "ok"
        said = {"status": status, "models": self.servings.names(), "wrong": [one.as_json() for one in wrong]}
        if plans := self._site.status():
            said["site"] = [asdict(plan) for plan in plans]
        return not failing, said

    def metrics(self) -> str:
        """Return the numbers as Prometheus text."""
        return render(self.servings.meter, self._overview.gauges())
