"""Lets a second release answer the requests that another one serves, and compares: in the shadow, and on trial.

A request that was answered is handed over by copy and never waits: where the queue is full it is dropped and counted.
The comparing thread yields to everything else of the process, where the system lets a thread be nice.
"""

import logging
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from sprat_client.agent.answers import check_finite, top
from sprat_client.agent.comparison import Comparison
from sprat_client.runtime.background import give_way
from sprat_client.runtime.ports import Array, InferenceFailed, ModelHost

_log = logging.getLogger(__name__)
_WAITING: Final = 8  # requests,
_WAITING_BYTES: Final = 64 << 20  # and bytes of them, that wait for their comparison
_TIMED: Final = 400  # requests that both releases are timed on

_Offered = tuple[dict[str, Array], list[Array], int]  # inputs, served outputs, their bytes


class Mirror:
    """Compares an old and a new release on the requests that one of them serves.

    Args:
        old: the old release.
        new: the new one.
        served: the one of the two whose answers are offered.
        most: compare no more than so many requests; None: all.
    """

    def __init__(self, old: ModelHost, new: ModelHost, *, served: ModelHost, most: int | None = None) -> None:
        self._old, self._new, self._served, self._most = old, new, served, most
        self._queue: queue.Queue[_Offered | None] = queue.Queue(_WAITING)
        self._lock = threading.Lock()
        self._waiting_bytes = self._offered = 0
        self._requests = self._failed = self._dropped = self._compared = self._agreed = 0
        self._sure = [0.0, 0.0]  # sums of top probabilities, old and new
        self._fall_squares = 0.0
        self._last_failure = ""
        self._times: tuple[list[float], list[float]] = ([], [])
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
        self._thread.start()

    def offer(self, inputs: Mapping[str, Array], outputs: Sequence[Array]) -> None:
        """Hand over a request that was answered; takes a copy, and never waits."""
        size = sum(array.nbytes for array in (*inputs.values(), *outputs))
        with self._lock:
            if self._closed or (self._most is not None and self._offered >= self._most):
                return
            if self._queue.full() or (self._waiting_bytes and self._waiting_bytes + size > _WAITING_BYTES):
                self._dropped += 1
                return
            self._waiting_bytes += size
            self._offered += 1
        copied = {name: array.copy() for name, array in inputs.items()}
        try:
            self._queue.put_nowait((copied, [array.copy() for array in outputs], size))
        except queue.Full:
            with self._lock:
                self._waiting_bytes -= size
                self._offered -= 1
                self._dropped += 1

    def seen(self) -> Comparison:
        """Return what was compared so far."""
        with self._lock:
            many = max(1, self._compared)
            fall = (self._sure[0] - self._sure[1]) / many
            return Comparison(
                requests=self._requests,
                failed=self._failed,
                last_failure=self._last_failure,
                dropped=self._dropped,
                compared=self._compared,
                agreed=self._agreed,
                old_confidence=self._sure[0] / many,
                new_confidence=self._sure[1] / many,
                fall_deviation=max(0.0, self._fall_squares / many - fall**2) ** 0.5,
                old_times=tuple(self._times[0]),
                new_times=tuple(self._times[1]),
            )

    def close(self) -> None:
        """End; what waits is dropped, the comparison under way is finished."""
        with self._lock:
            self._closed = True
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        give_way()
        while (offered := self._queue.get()) is not None:
            inputs, outputs, size = offered
            if not self._closed:
                try:
                    self._compare(inputs, outputs)
                except Exception:  # noqa: BLE001  # a bug here must not end what serves
                    _log.exception("answers could not be compared")
            with self._lock:
                self._waiting_bytes -= size

    def _compare(self, inputs: Mapping[str, Array], served: Sequence[Array]) -> None:
        """Ask the release that does not serve; where it fails alone, that is counted against it."""
        other = self._new if self._served is self._old else self._old
        timed = len(self._times[0]) < _TIMED
        again = 0.0
        try:
            if timed and self._requests % 2:  # here as well, so that both times are of the same thread, each first
                again = _timed(self._served, inputs)[1]
            answered, took = _timed(other, inputs)
            check_finite(answered)
            if timed and not again:
                again = _timed(self._served, inputs)[1]
        except InferenceFailed as bad:
            with self._lock:
                self._requests += 1
                self._failed += 1
                self._last_failure = str(bad)
            return
        tops = top(served), top(answered)
        with self._lock:
            self._requests += 1
            if timed:
                self._times[0].append(again if self._served is self._old else took)
                self._times[1].append(took if self._served is self._old else again)
            old_top, new_top = tops if self._served is self._old else tops[::-1]
            if old_top is None or new_top is None or len(old_top[0]) != len(new_top[0]):
                return
            (old_classes, old_sure), (new_classes, new_sure) = old_top, new_top
            self._compared += len(old_classes)
            self._agreed += int((old_classes == new_classes).sum())
            self._sure[0] += float(old_sure.sum())
            self._sure[1] += float(new_sure.sum())
            self._fall_squares += float(np.square(old_sure - new_sure).sum())


def _timed(host: ModelHost, inputs: Mapping[str, Array]) -> tuple[list[Array], float]:
    start = time.perf_counter()
    outputs = host.run(inputs)
    return outputs, time.perf_counter() - start
