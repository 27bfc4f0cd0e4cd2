"""A loaded release that answers applications, counted for its trial.

A request takes a reference to the release that serves and keeps it until it has its answer, so a swap (`servings`) is
one assignment and the old session goes when its last request is done. While a release is on trial the old one stays
loaded and answers where the new one fails: the failure ends the trial, and the application still gets its answer.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from sprat_client.agent.answers import check_finite
from sprat_client.agent.guarded import Guarded
from sprat_client.agent.meter import Meter
from sprat_client.agent.mirror import Mirror
from sprat_client.agent.releases import Manifest, Slot
from sprat_client.runtime.ports import Array, InferenceFailed, ModelHost, fit_input
from sprat_shared.errors import InvalidInput


@dataclass(slots=True)
class Serving:
    """One loaded release, and how it did.

    Attributes:
        slot: which release.
        manifest: what its folder holds.
        host: the loaded model.
        digest: recomputes the weights digest from the files the host has mapped.
        fallback: answers where this one fails; only during a trial; itself where there was no other release.
        mirror: gets the answered requests, and lets another release answer them, unserved; None: there is none.
        guard: gets some of them to compare later, where this release shares layers; None: it does not.
        answered: requests answered.
        failed: requests on which the model failed or gave NaN or Inf.
        last_failure: the newest one's message.
        reported: errors that applications reported of its answers.
        last_reported: the newest one's text.
    """

    slot: Slot
    manifest: Manifest
    host: ModelHost
    digest: Callable[[], str]
    fallback: "Serving | None" = None
    mirror: Mirror | None = None
    guard: Guarded | None = None
    answered: int = 0
    failed: int = 0
    last_failure: str = ""
    reported: int = 0
    last_reported: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, inputs: Array | Mapping[str, Array], meter: Meter | None = None) -> "Answer":
        """Return the outputs by name.

        Args:
            inputs: (batch, ...) array, or arrays by input name.
            meter: counts the request, if there is one.

        Raises:
            InvalidInput: the inputs do not fit the model.
            InferenceFailed: the model failed, and no other release could answer.
        """
        values, begun = self._fit(inputs), time.perf_counter()
        try:
            outputs = self.host.run(values)
            check_finite(outputs)
        except InferenceFailed as bad:
            fallback = self.fallback
            # Where the old release fails as well, the input is to blame, and nothing is counted against the new one.
            answer = None if fallback is None or fallback is self else fallback.answer(inputs, meter)
            with self._lock:
                self.failed += 1
                self.last_failure = str(bad)
            if meter is not None:
                meter.failed(self.manifest.model, self.slot.release)
            if answer is None:
                raise
            return answer
        took_s = time.perf_counter() - begun
        with self._lock:
            self.answered += 1
        if meter is not None:
            meter.answered(self.manifest.model, self.slot.release, took_s)
        if (mirror := self.mirror) is not None:
            mirror.offer(values, outputs)
        if (guard := self.guard) is not None:
            guard.samples.offer(values, outputs)
        names = [spec.name for spec in self.host.outputs]
        return Answer(release=self.slot.release, outputs=dict(zip(names, outputs, strict=True)))

    def report_error(self, text: str) -> None:
        """Count an error that an application found in an answer."""
        with self._lock:
            self.reported += 1
            self.last_reported = text

    def warm_up(self) -> None:
        """Let the runtime take its memory before the first request needs it. A failure shows in the trial."""
        shapes = {spec.name: [1 if n is None else n for n in spec.shape] for spec in self.host.inputs}
        try:
            self.host.run({spec.name: np.zeros(shapes[spec.name], spec.dtype) for spec in self.host.inputs})
        except InferenceFailed:
            return

    def _fit(self, inputs: Array | Mapping[str, Array]) -> dict[str, Array]:
        specs = self.host.inputs
        if not isinstance(inputs, Mapping):
            if len(specs) != 1:
                raise InvalidInput(f"the model has {len(specs)} inputs: name them: {', '.join(s.name for s in specs)}")
            inputs = {specs[0].name: inputs}
        if set(inputs) != {spec.name for spec in specs}:
            raise InvalidInput(
                f"the model takes {', '.join(s.name for s in specs)}; got {', '.join(map(str, inputs)) or 'none'}"
            )
        return {spec.name: fit_input(spec, inputs[spec.name]) for spec in specs}


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer: outputs by name, all from one release."""

    release: int
    outputs: dict[str, Array]
