"""Serves local applications: which release answers, counted for its trial, swapped without dropping a request.

A request takes a reference to the release that serves and keeps it until it has its answer, so a swap is one
assignment and the old session goes when its last request is done. While a release is on trial the old one stays loaded
and answers where the new one fails: the failure ends the trial, and the application still gets its answer.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from sprat_client.agent.releases import Manifest, Slot
from sprat_client.runtime.ports import Array, InferenceFailed, ModelHost, fit_input
from sprat_shared.errors import InvalidInput, NotFound


@dataclass(slots=True)
class Serving:
    """One loaded release, and how it did.

    Attributes:
        slot: which release.
        manifest: what its folder holds.
        host: the loaded model.
        digest: recomputes the weights digest from the files the host has mapped.
        fallback: answers where this one fails; only during a trial; itself where there was no other release.
        answered: requests answered.
        failed: requests on which the model failed or gave NaN or Inf.
        last_failure: the newest one's message.
        since: when it began to serve, on the monotonic clock.
    """

    slot: Slot
    manifest: Manifest
    host: ModelHost
    digest: Callable[[], str]
    fallback: "Serving | None" = None
    answered: int = 0
    failed: int = 0
    last_failure: str = ""
    since: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, inputs: Array | Mapping[str, Array]) -> "Answer":
        """Return the outputs by name.

        Raises:
            InvalidInput: the inputs do not fit the model.
            InferenceFailed: the model failed, and no other release could answer.
        """
        values = self._fit(inputs)
        try:
            outputs = self.host.run(values)
            _check_finite(outputs)
        except InferenceFailed as bad:
            fallback = self.fallback
            # Where the old release fails as well, the input is to blame, and nothing is counted against the new one.
            answer = None if fallback is None or fallback is self else fallback.answer(inputs)
            with self._lock:
                self.failed += 1
                self.last_failure = str(bad)
            if answer is None:
                raise
            return answer
        with self._lock:
            self.answered += 1
        names = [spec.name for spec in self.host.outputs]
        return Answer(release=self.slot.release, outputs=dict(zip(names, outputs, strict=True)))

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


class Servings:
    """The releases that serve, one for each model."""

    def __init__(self) -> None:
        self._live: dict[str, Serving] = {}

    def swap(self, model: str, serving: Serving | None) -> None:
        """Let `serving` answer from the next request on; None: nothing serves."""
        live = dict(self._live)
        live.pop(model, None)
        if serving is not None:
            live[model] = serving
        self._live = live  # one assignment: a reader sees the old table or the new one

    def get(self, model: str) -> Serving | None:
        """Return what serves `model`."""
        return self._live.get(model)

    def of(self, model: str) -> Serving:
        """Return what serves `model`.

        Raises:
            NotFound: nothing does.
        """
        serving = self._live.get(model)
        if serving is None:
            raise NotFound(f"model {model!r} is not served here; served: {', '.join(self.names()) or 'none'}")
        return serving

    def names(self) -> list[str]:
        """Return the served models."""
        return sorted(self._live)


def _check_finite(outputs: list[Array]) -> None:
    for output in outputs:
        if output.dtype.kind == "f" and not np.isfinite(output).all():
            raise InferenceFailed("the answer holds NaN or Inf")
