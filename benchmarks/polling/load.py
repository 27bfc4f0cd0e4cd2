"""Kept connections that ask as fast as they are answered, from one thread; how long every answer took."""

import selectors
import socket
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rate:
    """What came of asking for a while.

    Attributes:
        per_s: answers a second.
        p50_ms: median of the time from a request to its answer, milliseconds, and
        p99_ms: the 99th percentile.
        statuses: how many answers had which status.
    """

    per_s: float
    p50_ms: float
    p99_ms: float
    statuses: dict[int, int]


def load(port: int, requests: Sequence[bytes], *, connections: int, seconds: float) -> Rate:
    """Ask on so many connections at once, each next request on the one that was answered.

    Args:
        port: on the loopback.
        requests: whole requests without a body, asked in turn; each must be answered without a body.
        connections: kept open.
        seconds: for how long.
    """
    selector = selectors.DefaultSelector()
    statuses: dict[int, int] = {}
    took: list[float] = []
    at = 0

    def ask(link: socket.socket) -> float:
        nonlocal at
        link.sendall(requests[at % len(requests)])
        at += 1
        return time.perf_counter()

    links = []
    for _ in range(connections):
        link = socket.create_connection(("127.0.0.1", port))
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        links.append(link)
        selector.register(link, selectors.EVENT_READ, link)
    asked = {link: ask(link) for link in links}
    begun = time.perf_counter()
    while (now := time.perf_counter()) - begun < seconds:
        for key, _ in selector.select(1.0):
            link = key.data
            answer = link.recv(4096)
            if not answer.endswith(b"\r\n\r\n"):
                raise SystemExit(f"an answer that is not a bare head: {answer[:200]!r}")
            took.append(time.perf_counter() - asked[link])
            status = int(answer[9:12])
            statuses[status] = statuses.get(status, 0) + 1
            asked[link] = ask(link)
    for link in links:
        link.close()
    took.sort()
    return Rate(
        per_s=len(took) / (now - begun),
        p50_ms=1000 * statistics.median(took),
        p99_ms=1000 * took[int(0.99 * len(took))],
        statuses=statuses,
    )
