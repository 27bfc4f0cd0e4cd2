"""Two network namespaces joined in user space: every packet passes through this process, which may lose or delay it.

Namespaces and interfaces have no names outside and live as long as the threads and processes in them, so there is
nothing to clean up, whatever ends them.
"""

import ctypes
import fcntl
import heapq
import os
import random
import select
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, Self

_TUNSETIFF: Final = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_SIOCSIFADDR, _SIOCSIFNETMASK, _SIOCSIFMTU, _SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8916, 0x891C, 0x8922, 0x8913, 0x8914
_IFF_UP: Final = 0x1
_CLONE_NEWNET: Final = 0x40000000
_MTU: Final = 1500
SERVER, DEVICE = "10.77.0.1", "10.77.0.2"


def unshare(flags: int) -> None:
    """Give the calling thread namespaces of its own (unshare(2)).

    Raises:
        OSError: it may not.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flags):
        raise OSError(ctypes.get_errno(), f"unshare: {os.strerror(ctypes.get_errno())}")


def _up(name: str, address: str | None = None) -> None:
    """Configure an interface of this thread's namespace (netdevice(7)) and bring it up."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:

        def call(request: int, more: bytes) -> bytes:
            return fcntl.ioctl(s, request, struct.pack("16s24s", name.encode(), more))

        if address is not None:
            call(_SIOCSIFADDR, struct.pack("HH4s16x", socket.AF_INET, 0, socket.inet_aton(address)))
            call(_SIOCSIFNETMASK, struct.pack("HH4s16x", socket.AF_INET, 0, socket.inet_aton("255.255.255.0")))
            call(_SIOCSIFMTU, struct.pack("i20x", _MTU))
        flags = struct.unpack("16sH", call(_SIOCGIFFLAGS, b"")[:18])[1]
        call(_SIOCSIFFLAGS, struct.pack("H22x", flags | _IFF_UP))


def join_new_network(address: str) -> int:
    """Move the calling thread into a new network namespace with one TUN interface; return its descriptor.

    Raises:
        OSError: it may not, or there is no /dev/net/tun.
    """
    unshare(_CLONE_NEWNET)
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", b"link0", _IFF_TUN | _IFF_NO_PI))
    _up("lo")
    _up("link0", address)
    return descriptor


@dataclass(slots=True)
class Shape:
    """What a link does to each direction.

    Attributes:
        delay_s: one way, after a packet was sent.
        loss: probability that a packet is lost.
        bytes_per_s: its rate.
        queue_bytes: a packet that finds so many bytes waiting is dropped.
    """

    delay_s: float = 0.0
    loss: float = 0.0
    bytes_per_s: float = 10e6
    queue_bytes: int = 1 << 20


@dataclass(slots=True)
class Direction:
    """Counts of one direction, in IP packets and bytes that were handed to the link."""

    packets: int = 0
    sent_bytes: int = 0
    lost: int = 0
    dropped: int = 0
    busy_until: float = 0.0


@dataclass
class Link:
    """Carries packets between two TUN descriptors in a thread, until closed.

    Attributes:
        shape: what it does; may be replaced at any time.
        down: an outage: everything is lost.
        up, down_: counts, from the device and to it.
    """

    server: int
    device: int
    seed: int
    shape: Shape = field(default_factory=Shape)
    out: bool = False
    to_device: Direction = field(default_factory=Direction)
    to_server: Direction = field(default_factory=Direction)
    _closed: bool = False
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._carry, name="link", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        if self._thread is not None:
            self._thread.join()

    def _carry(self) -> None:
        draw = random.Random(self.seed)
        waiting: list[tuple[float, int, int, bytes]] = []
        ways = {self.server: (self.device, self.to_device), self.device: (self.server, self.to_server)}
        number = 0
        while not self._closed:
            wait_s = min(0.1, max(0.0, waiting[0][0] - time.monotonic())) if waiting else 0.1
            for descriptor in select.select(list(ways), [], [], wait_s)[0]:
                to, counts = ways[descriptor]
                try:
                    packet = os.read(descriptor, 65536)
                except BlockingIOError:
                    continue
                arrives = self._send(packet, counts, draw)
                if arrives is not None:
                    number += 1
                    heapq.heappush(waiting, (arrives, number, to, packet))
            while waiting and waiting[0][0] <= time.monotonic():
                _, _, to, packet = heapq.heappop(waiting)
                os.write(to, packet)

    def _send(self, packet: bytes, counts: Direction, draw: random.Random) -> float | None:
        """Return when a packet arrives; None: never."""
        now, shape = time.monotonic(), self.shape
        counts.packets += 1
        backlog = max(0.0, counts.busy_until - now) * shape.bytes_per_s
        if backlog + len(packet) > shape.queue_bytes:
            counts.dropped += 1
            return None
        counts.sent_bytes += len(packet)
        counts.busy_until = max(now, counts.busy_until) + len(packet) / shape.bytes_per_s
        if self.out or draw.random() < shape.loss:
            counts.lost += 1
            return None
        return counts.busy_until + shape.delay_s


def joined_networks(seed: int) -> tuple[Link, ThreadPoolExecutor]:
    """Move this thread into the server's network; return the link, and a thread in the device's.

    Processes that a thread starts are in its network.

    Raises:
        OSError: privileges are missing.
    """
    server = join_new_network(SERVER)
    there = ThreadPoolExecutor(1, thread_name_prefix="device")
    device = there.submit(join_new_network, DEVICE).result()
    return Link(server, device, seed), there
