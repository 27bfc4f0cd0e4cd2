"""Some of the requests that a release answered, kept in memory for a comparison later: never in a request's way."""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from sprat_client.agent.settings import GuardSettings
from sprat_client.runtime.ports import Array


@dataclass(frozen=True, slots=True)
class Sampled:
    """One request that was answered.

    Attributes:
        inputs: by name, as the model took them.
        outputs: what was served, in the order of the model's outputs.
        nbytes: of both.
        since: when it was kept, on a clock that nobody sets.
    """

    inputs: dict[str, Array]
    outputs: list[Array]
    nbytes: int
    since: float


class Samples:
    """A bounded queue of requests, each of which got in with the same chance. May be used from several threads.

    A request is handed over by copy and never waits. Where the queue is full, or there is no memory for a copy, it is
    dropped and counted: whatever is in the queue was chosen by chance and room, and not by what was answered.

    Args:
        settings: which share of the requests, and how many are kept.
        draw: makes the choice.
        came: told of each one that was kept; must not block.
    """

    def __init__(self, settings: GuardSettings, draw: Random, came: Callable[[], object]) -> None:
        self._settings, self._draw, self._came = settings, draw, came
        self._lock = threading.Lock()
        self._waiting: deque[Sampled] = deque()
        self._reserved = self._bytes = 0  # requests and bytes, those that are being copied included
        self._closed = threading.Event()
        self.dropped = 0

    def __len__(self) -> int:
        """Return how many requests wait."""
        return len(self._waiting)

    @property
    def oldest(self) -> float | None:
        """Since when the oldest one waits, on a clock that nobody sets; None: none does."""
        with self._lock:
            return self._waiting[0].since if self._waiting else None

    def offer(self, inputs: Mapping[str, Array], outputs: Sequence[Array]) -> None:
        """Keep a copy of a request that was answered, if it is drawn and there is room."""
        if self._closed.is_set() or self._draw.random() * self._settings.every >= 1.0:
            return
        size = sum(array.nbytes for array in (*inputs.values(), *outputs))
        with self._lock:
            fits = self._reserved < self._settings.most_requests and self._bytes + size <= self._settings.most_bytes
            if not fits:
                self.dropped += 1
                return
            self._reserved += 1
            self._bytes += size
        try:
            copied = {name: array.copy() for name, array in inputs.items()}, [array.copy() for array in outputs]
        except MemoryError:
            with self._lock:
                self._let_go(size)
                self.dropped += 1
            return
        with self._lock:
            if self._closed.is_set():
                return
            self._waiting.append(Sampled(*copied, size, time.monotonic()))
        self._came()

    def take(self) -> Sampled | None:
        """Return the oldest request, which waits no more; None: there is none."""
        with self._lock:
            if not self._waiting:
                return None
            taken = self._waiting.popleft()
            self._let_go(taken.nbytes)
            return taken

    def close(self) -> None:
        """Keep nothing any more, and forget what waits."""
        with self._lock:
            self._closed.set()
            self._waiting.clear()

    def _let_go(self, size: int) -> None:
        self._reserved -= 1
        self._bytes -= size
