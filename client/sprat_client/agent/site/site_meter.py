"""What modules and links of the site take, measured in what is done anyway: bounded windows, read seldom."""

import threading
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final
from uuid import UUID

from sprat_shared.protocol.measures_report import LinkFigures, ModuleFigures, Spread

if TYPE_CHECKING:  # what a device without a plan spares
    from sprat_shared.protocol.site_plan import PlannedModule

_KEPT: Final = 256  # newest values of one thing
_LEAST_RUNS: Final = 10  # before a spread says anything
_LEAST_BEATS: Final = 10
_LEAST_TRANSFERS: Final = 5
_LARGE_BYTES: Final = 64 << 10  # what is smaller takes no longer than its round trip may differ by
_ONE_WAY: Final = 8  # times as many bytes as go the other way, so that they took the time


class Window:
    """The newest values of one thing; may be used from several threads.

    Args:
        least: with fewer values there is no spread.
    """

    def __init__(self, least: int) -> None:
        self._least, self._count, self._lock = least, 0, threading.Lock()
        self._values: deque[float] = deque(maxlen=_KEPT)

    def add(self, value: float) -> None:
        """Note a value; what a clock made negative is 0."""
        with self._lock:
            self._count += 1
            self._values.append(max(0.0, value))

    def spread(self) -> Spread | None:
        """Return how many there were, and percentiles of the newest ones; None while there are too few."""
        with self._lock:
            count, values = self._count, sorted(self._values)
        if count < self._least:
            return None
        p10, median, p90 = (values[round(share * (len(values) - 1))] for share in (0.1, 0.5, 0.9))
        return Spread(count=count, p10=p10, median=median, p90=p90)


class ModuleMeter:
    """One release on this device.

    Attributes:
        memory_bytes: see `ModuleFigures`; None: it was not, or could not be, measured.
        tried_s: likewise.
        runs: seconds of runs of one row.
    """

    def __init__(self) -> None:
        self.memory_bytes: int | None = None
        self.tried_s: float | None = None
        self.runs = Window(_LEAST_RUNS)

    def ran(self, rows: int, seconds: float) -> None:
        """Note a run; one of several rows says nothing of one."""
        if rows == 1:
            self.runs.add(seconds)


class LinkMeter:
    """The way to one other device.

    Attributes:
        round_trip: seconds.
        sent: seconds per byte from here to there, and
        received: from there to here.
    """

    def __init__(self) -> None:
        self.round_trip = Window(_LEAST_BEATS)
        self.sent, self.received = Window(_LEAST_TRANSFERS), Window(_LEAST_TRANSFERS)

    def exchanged(self, sent_bytes: int, received_bytes: int, seconds: float) -> None:
        """Note a request that nothing else of this device went beside.

        Args:
            sent_bytes: of its body.
            received_bytes: of the answer's.
            seconds: from its first byte to the answer's last, less what the other device waited and computed.
        """
        if (there_and_back := self.round_trip.spread()) is None:
            return
        carried_s = seconds - there_and_back.median
        if sent_bytes >= max(_LARGE_BYTES, _ONE_WAY * received_bytes):
            self.sent.add(carried_s / sent_bytes)
        elif received_bytes >= max(_LARGE_BYTES, _ONE_WAY * sent_bytes):
            self.received.add(carried_s / received_bytes)


class SiteMeter:
    """All that one agent measures of its sites. May be used from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._modules: dict[str, ModuleMeter] = {}  # by release id: two models may have the same release, loaded once
        self._links: dict[UUID, LinkMeter] = {}
        self._exchanges, self._begun = 0, 0

    def module(self, release_id: str) -> ModuleMeter:
        """Return the meter of a release."""
        with self._lock:
            return self._modules.setdefault(release_id, ModuleMeter())

    def link(self, device: UUID) -> LinkMeter:
        """Return the meter of the way to a device."""
        with self._lock:
            return self._links.setdefault(device, LinkMeter())

    @contextmanager
    def exchange(self) -> Iterator["Exchange"]:
        """Watch a request to another device."""
        with self._lock:
            self._exchanges += 1
            self._begun += 1
            watched = Exchange(self, self._begun, beside=self._exchanges > 1)
        try:
            yield watched
        finally:
            with self._lock:
                self._exchanges -= 1

    @property
    def begun(self) -> int:
        """Return how many requests to other devices were begun."""
        return self._begun

    def forget_but(self, release_ids: Collection[str], devices: Collection[UUID]) -> None:
        """Forget what is of no plan that is held any more."""
        with self._lock:
            self._modules = {release_id: one for release_id, one in self._modules.items() if release_id in release_ids}
            self._links = {device: one for device, one in self._links.items() if device in devices}

    def modules(self, planned: "Iterable[PlannedModule]") -> tuple[ModuleFigures, ...]:
        """Return what is known of modules that plans name, in their order."""
        with self._lock:
            known = [(one, self._modules[one.release_id]) for one in planned if one.release_id in self._modules]
        found = [
            ModuleFigures(
                model=one.model,
                release=one.release,
                memory_bytes=meter.memory_bytes,
                tried_s=meter.tried_s,
                runs=meter.runs.spread(),
            )
            for one, meter in known
        ]
        return tuple(one for one in found if (one.memory_bytes, one.tried_s, one.runs) != (None, None, None))

    def links(self) -> tuple[LinkFigures, ...]:
        """Return what is known of links, in one order."""
        with self._lock:
            known = sorted(self._links.items())
        found = [
            LinkFigures(
                device=device,
                round_trip=one.round_trip.spread(),
                sent=one.sent.spread(),
                received=one.received.spread(),
            )
            for device, one in known
        ]
        return tuple(one for one in found if one.round_trip is not None)


class Exchange:
    """One request to another device, as it goes on."""

    def __init__(self, meter: SiteMeter, number: int, *, beside: bool) -> None:
        self._meter, self._number, self._beside = meter, number, beside

    @property
    def alone(self) -> bool:
        """Whether no other request to another device was under way since it began: they share this device's link."""
        return not self._beside and self._meter.begun == self._number
