"""Many played devices at once: they join, then poll in turn from a few threads until they are told to end."""

import heapq
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from random import Random
from types import TracebackType
from typing import Final, Self

import httpx

from sprat_client.simulate.behaviour import PROFILES, Trouble
from sprat_client.simulate.device import PlayedDevice
from sprat_shared.errors import SpratError, TryLater

_WAIT_S: Final = 0.25
_LONGEST_WAIT_S: Final = 5.0
_JITTER: Final = (0.9, 1.1)
_PATIENCE_S: Final = 60.0


class PlayedFleet:
    """Devices of one model, and the threads that play them.

    Args:
        server_url: `http(s)://host:port`.
        model: that they run.
        names: of the devices.
        seed: of everything that is left to chance.
        troubles: what is wrong with which release.
        interval_s: between two polls of a device.
        threads: that poll.

    Attributes:
        devices: in the order of the names; profiles take turns.
        failed: what ended a device, by its name: a defect of the server, or of the simulation.
    """

    def __init__(
        self,
        server_url: str,
        model: str,
        names: Sequence[str],
        *,
        seed: int,
        troubles: Mapping[int, Trouble],
        interval_s: float = 2.0,
        threads: int = 8,
    ) -> None:
        self.devices = [
            PlayedDevice(name, model, PROFILES[at % len(PROFILES)], Random(f"{seed} {at}"), troubles)  # noqa: S311 - played
            for at, name in enumerate(names)
        ]
        self.failed: dict[str, SpratError] = {}
        self._interval_s, self._threads = interval_s, threads
        self._jitter = Random(seed)  # noqa: S311 - apart from the devices' draws, which the pace of polls must not move
        limits = httpx.Limits(max_connections=threads, max_keepalive_connections=threads)
        self._client = httpx.Client(base_url=server_url, timeout=30.0, limits=limits)
        self._due: list[tuple[float, int]] = []
        self._changed = threading.Condition()
        self._ending = False
        self._workers: list[threading.Thread] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, bad: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        for worker in self._workers:
            worker.join()
        self._client.close()

    def join(self, token_of: Callable[[int], str]) -> None:
        """Enrol all devices.

        Args:
            token_of: enrolment token for the device at an index.

        Raises:
            TryLater: the server did not answer for a minute.
            InvalidInput: it refuses a device.
        """

        def one(at: int) -> None:
            until = time.monotonic() + _PATIENCE_S
            while True:
                try:
                    self.devices[at].join(self._client, token_of(at))
                except TryLater:
                    if time.monotonic() > until:
                        raise
                    time.sleep(_WAIT_S)
                else:
                    return

        with ThreadPoolExecutor(self._threads) as pool:
            list(pool.map(one, range(len(self.devices))))

    def start(self) -> None:
        """Begin to poll."""
        now = time.monotonic()
        self._due = [(now + self._jitter.uniform(0, self._interval_s), at) for at in range(len(self.devices))]
        heapq.heapify(self._due)
        self._workers = [threading.Thread(target=self._work, daemon=True) for _ in range(self._threads)]
        for worker in self._workers:
            worker.start()

    def serving(self) -> dict[int | None, int]:
        """Return how many devices serve which release, silent ones left out."""
        counts: dict[int | None, int] = {}
        for device in self.devices:
            if not device.is_silent:
                number = None if device.active is None else device.active.release
                counts[number] = counts.get(number, 0) + 1
        return counts

    def _work(self) -> None:
        while (at := self._next()) is not None:
            device = self.devices[at]
            try:
                device.turn(self._client)
            except TryLater:
                wait_s = self._jitter.uniform(0, min(_LONGEST_WAIT_S, 2 * self._interval_s))
            except SpratError as bad:
                self.failed[device.name] = bad
                continue
            else:
                wait_s = self._interval_s * self._jitter.uniform(*_JITTER)
            if not device.is_silent:
                with self._changed:
                    heapq.heappush(self._due, (time.monotonic() + wait_s, at))
                    self._changed.notify()

    def _next(self) -> int | None:
        """Return the index of the next device that is due, and wait for it; None at the end."""
        with self._changed:
            while not self._ending:
                wait_s = self._due[0][0] - time.monotonic() if self._due else None
                if wait_s is not None and wait_s <= 0:
                    return heapq.heappop(self._due)[1]
                self._changed.wait(wait_s)
        return None
