"""Which releases serve local applications, one for each model, swapped without dropping a request."""

import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from sprat_client.agent.meter import Meter
from sprat_client.runtime.ports import Array
from sprat_shared.errors import NotFound

if TYPE_CHECKING:  # numpy, which is loaded with the first model
    from sprat_client.agent.serve import Answer, Serving


class Servings:
    """The releases that serve, one for each model.

    Attributes:
        meter: counts requests and swaps.
    """

    def __init__(self) -> None:
        self._live: dict[str, Serving] = {}
        self.meter = Meter()
        self._lock = threading.Lock()
        self._under_way, self._ended = 0, time.monotonic()

    def swap(self, model: str, serving: "Serving | None") -> None:
        """Let `serving` answer from the next request on; None: nothing serves."""
        before, live = self._live.get(model), dict(self._live)
        live.pop(model, None)
        if serving is not None:
            live[model] = serving
        self._live = live  # one assignment: a reader sees the old table or the new one
        if serving is not None and serving is not before:
            self.meter.swapped(model)

    def answer(self, model: str, inputs: Array | Mapping[str, Array]) -> "Answer":
        """Let what serves `model` answer, and count it.

        Raises:
            NotFound: nothing serves it.
            InvalidInput: the inputs do not fit the model.
            InferenceFailed: the model failed, and no other release could answer.
        """
        serving = self.of(model)
        with self._lock:
            self._under_way += 1
        try:
            return serving.answer(inputs, self.meter)
        finally:
            with self._lock:
                self._under_way -= 1
                self._ended = time.monotonic()

    def idle_s(self) -> float:
        """Return for how long no model was asked anything, seconds; 0 while a request is under way."""
        with self._lock:
            return 0.0 if self._under_way else time.monotonic() - self._ended

    def report_error(self, model: str, text: str, release: int | None = None) -> int:
        """Count an error that an application found in an answer of `model`; return the release that it counts against.

        Args:
            model: its name.
            text: a short sentence, for logs and the report of a trial.
            release: that gave the answer; the one that serves when left out. It weighs where it is on trial.

        Raises:
            NotFound: nothing serves the model.
        """
        serving = self.of(model)
        if release in {None, serving.slot.release}:
            serving.report_error(text)
        counted = serving.slot.release if release is None else release
        self.meter.reported(model, counted)
        return counted

    def get(self, model: str) -> "Serving | None":
        """Return what serves `model`."""
        return self._live.get(model)

    def of(self, model: str) -> "Serving":
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
