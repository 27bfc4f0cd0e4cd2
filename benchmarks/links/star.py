"""Network namespaces around one hub, joined in user space: what one sends goes up its link and down another's.

As with `tun`, namespaces have no names outside and live as long as the threads and processes in them.
"""

import heapq
import os
import select
import socket
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, Self

from links.tun import Direction, Shape, join_new_network

_NETWORK: Final = "10.77.0."
_DESTINATION: Final = slice(16, 20)  # of an IPv4 header


@dataclass(slots=True)
class Place:
    """One namespace, and its link to the hub.

    Attributes:
        name: it.
        address: of it, for the others.
        up, down: what its link does to what it sends and gets; may be replaced at any time.
        out: nothing goes in or out.
        sent, got: counts.
        inside: a thread in the namespace; processes that it starts are there too.
    """

    name: str
    address: str
    up: Shape
    down: Shape
    inside: ThreadPoolExecutor
    descriptor: int
    out: bool = False
    sent: Direction = field(default_factory=Direction)
    got: Direction = field(default_factory=Direction)


class Star:
    """Carries packets between places in a thread, until closed.

    Args:
        shapes: up and down of each place, by name.

    Raises:
        OSError: privileges are missing.
    """

    def __init__(self, shapes: Mapping[str, tuple[Shape, Shape]]) -> None:
        self.places: dict[str, Place] = {}
        for number, (name, (up, down)) in enumerate(shapes.items(), 1):
            inside = ThreadPoolExecutor(1, thread_name_prefix=name)
            address = f"{_NETWORK}{number}"
            descriptor = inside.submit(join_new_network, address).result()
            self.places[name] = Place(name, address, up, down, inside, descriptor)
        self._at = {socket.inet_aton(place.address): place for place in self.places.values()}
        self._closed = False
        self._thread = threading.Thread(target=self._carry, name="hub", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self._thread.join()

    def _carry(self) -> None:
        waiting: list[tuple[float, int, Place | None, Place, bytes]] = []  # who has yet to get it down, if it is up
        by_descriptor = {place.descriptor: place for place in self.places.values()}
        number = 0
        while not self._closed:
            wait_s = min(0.1, max(0.0, waiting[0][0] - time.monotonic())) if waiting else 0.1
            for descriptor in select.select(list(by_descriptor), [], [], wait_s)[0]:
                source = by_descriptor[descriptor]
                for packet in _read(descriptor):
                    target = self._at.get(packet[_DESTINATION])
                    if target is not None and (at := _through(source, source.up, source.sent, packet)) is not None:
                        number += 1
                        heapq.heappush(waiting, (at, number, target, target, packet))
            while waiting and waiting[0][0] <= time.monotonic():
                _, _, below, target, packet = heapq.heappop(waiting)
                if below is None:
                    os.write(target.descriptor, packet)
                elif (at := _through(below, below.down, below.got, packet)) is not None:
                    number += 1
                    heapq.heappush(waiting, (at, number, None, target, packet))


def _read(descriptor: int) -> list[bytes]:
    found: list[bytes] = []
    while len(found) < 64:  # noqa: PLR2004 - then the others have a turn
        try:
            found.append(os.read(descriptor, 65536))
        except BlockingIOError:
            break
    return found


def _through(place: Place, shape: Shape, counts: Direction, packet: bytes) -> float | None:
    """Return when a packet is through one direction of a link; None: never."""
    now = time.monotonic()
    counts.packets += 1
    backlog = max(0.0, counts.busy_until - now) * shape.bytes_per_s
    if place.out or backlog + len(packet) > shape.queue_bytes:
        counts.dropped += 1
        return None
    counts.sent_bytes += len(packet)
    counts.busy_until = max(now, counts.busy_until) + len(packet) / shape.bytes_per_s
    return counts.busy_until + shape.delay_s
