"""Lets the other members in: TLS in a thread of its own, for nobody without a certificate of a plan that is held here.

A stranger gets no further than the handshake: that has a time, and so many of them may go on at once.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
import threading
from collections import Counter
from typing import Any, Final

from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from sprat_client.agent.settings import SiteSettings
from sprat_client.agent.site.held_plan import HeldPlan
from sprat_client.agent.site.peer_server import PeerRoutes
from sprat_client.agent.site.tls import choosing_context

_log = logging.getLogger(__name__)
_HANDSHAKE_S: Final = 5.0
_HANDSHAKES: Final = 128  # at once, and
_HANDSHAKES_OF_ONE: Final = 32  # from one address: a stranger must not keep members out
_KEEP_ALIVE_S: Final = 75  # longer than members keep idle connections
_PAUSE_S: Final = 0.1  # where no connection can be taken: the process has no descriptors left
_STOP_S: Final = 10.0
_CLOSING_S: Final = 0.05
_BACKLOG: Final = 64


class _Member(H11Protocol):
    """A connection; which plan it is under, each of its requests finds in the ASGI scope's state."""

    plans: "PeerListener"

    def connection_made(self, transport: Any) -> None:
        """Take a connection whose handshake is done; end it where it is no member's."""
        secure: ssl.SSLObject = transport.get_extra_info("ssl_object")
        held = self.plans.plan_of(secure.context)
        shown = secure.getpeercert(binary_form=True)
        super().connection_made(transport)
        if held is None or shown not in {member.certificate for member in held.plan.members}:
            transport.abort()
            return
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.app_state = {**self.app_state, "held": held}


class PeerListener:
    """Answers the members of the plans that are held.

    Args:
        sock: bound (`binding`); closed with this.
        settings: bounds.
    """

    def __init__(self, sock: socket.socket, settings: SiteSettings) -> None:
        self._sock = sock
        self._plans: dict[str, HeldPlan] = {}  # by TLS name; replaced as a whole: another thread reads it
        self._routes = PeerRoutes(settings)
        self._context = choosing_context(self._choose)
        self._state, self._loop = ServerState(), asyncio.new_event_loop()
        protocol = type("Member", (_Member,), {"plans": self})
        self._config = Config(
            self._routes,
            http=protocol,
            lifespan="off",
            log_config=None,
            access_log=False,
            ws="none",
            interface="asgi3",
            timeout_keep_alive=_KEEP_ALIVE_S,
            limit_concurrency=settings.most_connections,
        )
        self._config.load()
        self._protocol = protocol
        self._shaking: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._run, name="site-peers", daemon=True)
        sock.listen(_BACKLOG)
        sock.setblocking(False)
        self._thread.start()

    def hold(self, held: HeldPlan) -> None:
        """Answer under a plan from now on."""
        self._plans = {**self._plans, held.plan.server_name: held}

    def let_go(self, held: HeldPlan) -> None:
        """Take no connection under a plan any more; what is under way goes on."""
        self._plans = {name: one for name, one in self._plans.items() if one is not held}

    def plan_of(self, context: ssl.SSLContext) -> HeldPlan | None:
        """Return the plan under which a connection of this context is; None: none, any more."""
        return next((held for held in self._plans.values() if held.context is context), None)

    def close(self) -> None:
        """Answer what is under way, then end."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_STOP_S)
        self._routes.close()
        self._sock.close()

    def _choose(self, name: str) -> ssl.SSLContext | None:
        held = self._plans.get(name)
        return None if held is None else held.context

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.set_exception_handler(_say)
        accepting = self._loop.create_task(self._accept())
        self._loop.run_forever()
        accepting.cancel()
        self._loop.run_until_complete(self._end())
        self._loop.close()

    async def _accept(self) -> None:
        while True:
            try:
                sock, address = await self._loop.sock_accept(self._sock)
            except OSError as bad:
                _log.warning("no connection of a member can be taken", extra={"detail": str(bad)})
                await asyncio.sleep(_PAUSE_S)
                continue
            one = str(address[0])
            if self._shaking[one] >= _HANDSHAKES_OF_ONE or self._shaking.total() >= _HANDSHAKES:
                sock.close()
                continue
            self._shaking[one] += 1
            task = self._loop.create_task(self._shake_hands(sock, one))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _shake_hands(self, sock: socket.socket, one: str) -> None:
        sock.setblocking(False)
        try:
            await self._loop.connect_accepted_socket(
                lambda: self._protocol(self._config, self._state, {}),
                sock,
                ssl=self._context,
                ssl_handshake_timeout=_HANDSHAKE_S,
            )
        except (OSError, ssl.SSLError) as bad:
            _log.debug("no member", extra={"address": one, "detail": str(bad)})
        finally:
            self._shaking[one] -= 1
            if not self._shaking[one]:
                del self._shaking[one]

    async def _end(self) -> None:
        """Let what is under way be answered, and close."""
        for connection in list(self._state.connections):
            connection.shutdown()
        if self._state.tasks:
            await asyncio.wait(set(self._state.tasks), timeout=_STOP_S / 2)
        for task in [*self._tasks, *self._state.tasks]:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._state.tasks, return_exceptions=True)
        for connection in list(self._state.connections):
            with contextlib.suppress(AttributeError):  # asyncio before Python 3.11.3, of one that was closed twice
                connection.transport.abort()
        await asyncio.sleep(_CLOSING_S)  # transports close in turns of the loop


def _say(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what asyncio has to say: of a stranger's handshake that is nothing to wonder at."""
    bad = context.get("exception")
    level = logging.DEBUG if isinstance(bad, OSError) else logging.ERROR
    _log.log(level, "a connection of a member", extra={"detail": f"{context.get('message')}: {bad!r}"})
