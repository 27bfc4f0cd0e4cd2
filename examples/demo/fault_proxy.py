"""A bad link on loopback: a TCP proxy that is slow, late and cut at chosen bytes. Used by the demo and by tests."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

_PIECE_BYTES: Final = 4096


@dataclass(slots=True)
class LinkLog:
    """What went over the link so far."""

    connections: int = 0
    cuts: int = 0
    bytes_up: int = 0
    bytes_down: int = 0


@dataclass(slots=True)
class FaultProxy:
    """Forward TCP from a loopback port to a server over a link with faults; runs in a thread of its own.

    A cut resets the connection on which the byte in question arrives (RST, as a NAT that forgot it would), so the
    receiver sees a transfer broken in the middle.

    Args:
        target: host and port of the server.
        bytes_per_s: of all connections together, each direction; None: as fast as it goes.
        latency_s: one way, per piece of up to 4 KiB.
        cuts_at: cumulative counts of downstream bytes at which the connection of the moment is cut.
    """

    target: tuple[str, int]
    bytes_per_s: float | None = None
    latency_s: float = 0.0
    cuts_at: Iterable[int] = ()
    log: LinkLog = field(default_factory=LinkLog, init=False)
    port: int = field(default=0, init=False)
    _cuts: list[int] = field(default_factory=list, init=False)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)
    _busy_until: dict[bool, float] = field(default_factory=dict, init=False)
    _open: set[asyncio.StreamWriter] = field(default_factory=set, init=False)
    _down: bool = field(default=False, init=False)

    def __enter__(self) -> Self:
        self._cuts = sorted(self.cuts_at)
        listening: list[asyncio.Server] = []
        ready = threading.Event()

        def serve() -> None:
            asyncio.set_event_loop(self._loop)
            listening.append(self._loop.run_until_complete(asyncio.start_server(self._link, "127.0.0.1", 0)))
            ready.set()
            self._loop.run_forever()
            self._loop.run_until_complete(self._shut(listening[0]))
            self._loop.close()

        self._thread = threading.Thread(target=serve, name="fault-proxy", daemon=True)
        self._thread.start()
        ready.wait()
        self.port = listening[0].sockets[0].getsockname()[1]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        if self._thread is not None:
            self._thread.join()

    @property
    def url(self) -> str:
        """The proxy's end of the link."""
        return f"http://127.0.0.1:{self.port}"

    def cut_after(self, *more_bytes: int) -> None:
        """Plan cuts after so many more downstream bytes, counted from now."""
        self._on_loop(lambda: self._plan(more_bytes))

    def cut_now(self) -> None:
        """Reset every connection that is open."""
        self._on_loop(self._cut_all)

    def set_down(self, *, down: bool) -> None:
        """Take the link down (new connections are reset at once, old ones cut) or up again."""

        def switch() -> None:
            self._down = down
            if down:
                self._cut_all()

        self._on_loop(switch)

    def _on_loop(self, call: Callable[[], None]) -> None:
        done = threading.Event()

        def run() -> None:
            call()
            done.set()

        self._loop.call_soon_threadsafe(run)
        done.wait()

    def _plan(self, more_bytes: Iterable[int]) -> None:
        self._cuts = sorted([*self._cuts, *(self.log.bytes_down + more for more in more_bytes)])

    def _cut_all(self) -> None:
        for writer in tuple(self._open):
            _reset(writer)
            self.log.cuts += 1

    async def _link(self, near_reader: asyncio.StreamReader, near_writer: asyncio.StreamWriter) -> None:
        """Carry one connection until either end closes it or it is cut."""
        self.log.connections += 1
        if self._down:
            _reset(near_writer)
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(*self.target)
        except OSError:
            _reset(near_writer)
            return
        self._open.add(near_writer)
        up = asyncio.create_task(self._carry(near_reader, far_writer, down=False, near=near_writer))
        down = asyncio.create_task(self._carry(far_reader, near_writer, down=True, near=near_writer))
        try:
            await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
            if up.done() and not down.done() and not near_writer.is_closing():
                await down  # the device said its last word; the answer may still be on its way
        finally:
            for task in (up, down):
                task.cancel()
            self._open.discard(near_writer)
            for writer in (near_writer, far_writer):
                writer.close()

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, down: bool, near: asyncio.StreamWriter
    ) -> None:
        """Carry one direction of a connection, at the link's pace."""
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(_PIECE_BYTES):
                await self._pace(len(piece), down=down)
                if down and self._cuts and self.log.bytes_down + len(piece) >= self._cuts[0]:
                    kept = piece[: max(0, self._cuts.pop(0) - self.log.bytes_down)]
                    self.log.bytes_down += len(kept)
                    self.log.cuts += 1
                    writer.write(kept)
                    await writer.drain()
                    await asyncio.sleep(0.01)  # what was sent before the cut arrives
                    _reset(near)
                    return
                if down:
                    self.log.bytes_down += len(piece)
                else:
                    self.log.bytes_up += len(piece)
                writer.write(piece)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()

    async def _pace(self, count: int, *, down: bool) -> None:
        """Wait until the link has carried `count` bytes; connections share its rate."""
        now = self._loop.time()
        wait_s = self.latency_s
        if self.bytes_per_s is not None:
            end = max(now, self._busy_until.get(down, 0.0)) + count / self.bytes_per_s
            self._busy_until[down] = end
            wait_s += end - now
        if wait_s > 0:
            await asyncio.sleep(wait_s)

    async def _shut(self, server: asyncio.Server) -> None:
        server.close()
        for writer in tuple(self._open):
            _reset(writer)
        tasks = [task for task in asyncio.all_tasks(self._loop) if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection with RST instead of FIN: linger for zero seconds, then abort."""
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    writer.transport.abort()
