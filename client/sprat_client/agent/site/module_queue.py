"""One loaded module and the requests that wait for it: one thread runs what fits together in one go.

A request says until when its answer is of use; one that cannot be answered by then is dropped before anything is
computed, so that a device that is asked for too much answers what it can.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from sprat_client.agent.answers import check_finite
from sprat_client.agent.site.failures import Busy, NotHeld, TooLate
from sprat_client.agent.site.pace import Pace
from sprat_client.runtime.ports import Array, InferenceFailed, ModelHost, fit_input
from sprat_shared.errors import InvalidInput, SpratError


@dataclass(frozen=True, slots=True)
class Ran:
    """One answer of a module.

    Attributes:
        outputs: by name.
        waited_s: in the queue, and
        ran_s: in the runtime, with those that ran in the same go.
        together: how many requests that were.
    """

    outputs: Mapping[str, Array]
    waited_s: float
    ran_s: float
    together: int


@dataclass(slots=True)
class _Waiting:
    values: dict[str, Array]
    until: float  # on the monotonic clock
    since: float = field(default_factory=time.monotonic)
    future: "Future[Ran]" = field(default_factory=Future)

    @property
    def kind(self) -> tuple[object, ...]:
        """What must be the same for two to run together: all shapes but for the first axis."""
        return tuple((name, value.shape[1:]) for name, value in sorted(self.values.items()))

    @property
    def rows(self) -> int | None:
        """How many rows it brings, along the first axis of every input; None: that differs, and it runs alone."""
        lengths = {value.shape[:1] for value in self.values.values()}
        return lengths.pop()[0] if len(lengths) == 1 and () not in lengths else None


class ModuleQueue:
    """Runs a module for whoever asks: this device's tasks, and other members.

    Args:
        host: the loaded model. It may answer others at the same time.
        name: `model@release`, for messages.
        together: its answer for several requests in one array is that for each of them.
        most_waiting: requests; further ones are turned away.
        most_rows: along the first axis, in one go.
        pace: what is known of how long it takes.
        ran: told of each go: how many requests it answered, of how many rows together, and seconds.
    """

    def __init__(
        self,
        host: ModelHost,
        name: str,
        *,
        together: bool,
        most_waiting: int,
        most_rows: int,
        pace: Pace,
        ran: Callable[[int, int, float], None] = lambda _requests, _rows, _seconds: None,
    ) -> None:
        self._host, self._name, self._together, self._ran = host, name, together, ran
        self._most_waiting, self._most_rows, self._pace = most_waiting, most_rows, pace
        self._has_rows = any(port.shape[:1] == (None,) for port in host.inputs)
        self._waiting: deque[_Waiting] = deque()
        self._came, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._work, name=f"site-{name}", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return len(self._waiting)

    def ask(self, inputs: Mapping[str, Array], until: float) -> "Future[Ran]":
        """Queue a request; what goes wrong later is in the future.

        Args:
            inputs: by name.
            until: when the answer is of no use any more, on the monotonic clock.

        Raises:
            InvalidInput: they do not fit the module.
            Busy: too many wait.
            NotHeld: the module was let go.
        """
        request = _Waiting(self._fit(inputs), until)
        with self._came:
            if self._closed:
                raise NotHeld(f"{self._name} is not held here any more")
            if len(self._waiting) >= self._most_waiting:
                raise Busy(f"{self._name}: {len(self._waiting)} requests wait already; ask again in a second")
            self._waiting.append(request)
            self._came.notify()
        return request.future

    def close(self) -> None:
        """Take nothing any more; what waits is answered, then the thread ends."""
        with self._came:
            self._closed = True
            self._came.notify()

    def join(self, timeout_s: float) -> None:
        """Wait until the thread has ended, at most so long."""
        self._thread.join(timeout_s)

    def _fit(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        ports = {port.name: port for port in self._host.inputs}
        if inputs.keys() != ports.keys():
            got = ", ".join(str(name)[:100] for name in list(inputs)[:32]) or "none"
            raise InvalidInput(f"{self._name} takes {', '.join(ports)}; got {got}")
        values = {name: fit_input(port, inputs[name]) for name, port in ports.items()}
        for name, value in values.items():
            if 0 in value.shape:
                raise InvalidInput(f"{self._name}: input {name!r} has no values: its shape is {value.shape}")
        return values

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            if taken:
                self._run(taken)

    def _take(self) -> list[_Waiting] | None:
        """Wait for requests and return those that run in one go; None: there will be none any more."""
        with self._came:
            while not self._waiting and not self._closed:
                self._came.wait()
            if not self._waiting:
                return None
            now, taken, left, room = time.monotonic(), list[_Waiting](), deque[_Waiting](), 0
            for request in self._waiting:
                rows = request.rows if self._together else None
                if request.future.cancelled() or request.until < now + self._pace.seconds(rows or 1):
                    self._drop(request, now)
                elif not taken:
                    taken.append(request)
                    room = 0 if rows is None or not self._pace.pays() else self._most_rows - rows
                    until = request.until
                elif rows is not None and rows <= room and request.kind == taken[0].kind:
                    together = self._most_rows - room + rows
                    if min(until, request.until) < now + self._pace.seconds(together):
                        room = 0  # those that wait longest would be late for the others' sake
                        left.append(request)
                        continue
                    taken.append(request)
                    room, until = room - rows, min(until, request.until)
                else:
                    left.append(request)
            self._waiting = left
        return [request for request in taken if request.future.set_running_or_notify_cancel()]

    def _drop(self, request: _Waiting, now: float) -> None:
        if request.future.set_running_or_notify_cancel():
            waited_ms, left_ms = 1000 * (now - request.since), 1000 * (request.until - now)
            why = "the deadline was over" if left_ms <= 0 else f"only {left_ms:.0f} ms were left"
            request.future.set_exception(TooLate(f"{self._name}: {why} after {waited_ms:.0f} ms in the queue"))

    def _run(self, taken: Sequence[_Waiting]) -> None:
        begun = time.monotonic()
        try:
            answers = self._answers(taken)
        except InferenceFailed as bad:
            if len(taken) == 1:
                taken[0].future.set_exception(bad)
                return
            for request in taken:  # one of them is to blame, and the others are not
                self._run([request])
            return
        except Exception as bug:  # noqa: BLE001  # whatever it is, somebody waits for an answer
            for request in taken:
                request.future.set_exception(
                    bug if isinstance(bug, SpratError) else InferenceFailed(f"{self._name}: {bug!r:.200}")
                )
            return
        ran_s = time.monotonic() - begun
        rows = sum(request.rows or 1 for request in taken) if self._has_rows else len(taken)
        self._pace.ran(rows, ran_s)
        self._ran(len(taken), rows, ran_s)
        for request, outputs in zip(taken, answers, strict=True):
            request.future.set_result(Ran(outputs, begun - request.since, ran_s, len(taken)))

    def _answers(self, taken: Sequence[_Waiting]) -> list[dict[str, Array]]:
        names = [port.name for port in self._host.outputs]
        if len(taken) == 1:
            outputs = self._host.run(taken[0].values)
            check_finite(outputs)
            return [dict(zip(names, outputs, strict=True))]
        joined = {name: np.concatenate([one.values[name] for one in taken]) for name in taken[0].values}
        outputs = self._host.run(joined)
        ends = np.cumsum([one.rows or 0 for one in taken])
        if any(output.shape[:1] != (ends[-1],) for output in outputs):
            raise InferenceFailed(f"{self._name}: {ends[-1]} rows went in, and others came out")
        check_finite(outputs)  # of one request: found out when each runs by itself
        pieces = [np.split(output, ends[:-1]) for output in outputs]
        return [dict(zip(names, answer, strict=True)) for answer in zip(*pieces, strict=True)]
