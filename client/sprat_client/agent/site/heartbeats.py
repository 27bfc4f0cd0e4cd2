"""Asks other members, several times a second, whether they are there: one that is dead or hangs costs one second."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from sprat_client.agent.settings import SiteSettings
from sprat_client.agent.site.held_plan import HeldPlan
from sprat_client.agent.site.peer import Peer
from sprat_client.agent.site.whereabouts import Hints, Whereabouts
from sprat_shared.errors import SpratError

_log = logging.getLogger(__name__)
_MEMBERS: Final = 30  # of a site; with more, each is asked less often, so that one that all need has time for more


class Heartbeats:
    """A thread for each member that this device needs, under one plan, until it is closed.

    Args:
        held: the plan.
        settings: how often, and how long.
        changed: called where a member is found to be there, or away.
        hints: say where members may have moved; None: they are looked for at the plan's addresses alone.
    """

    def __init__(
        self, held: HeldPlan, settings: SiteSettings, changed: Callable[[], object], hints: Hints | None = None
    ) -> None:
        self._held, self._settings, self._changed, self._hints = held, settings, changed, hints
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._watch, args=(peer,), name=f"site-{peer.member.name}", daemon=True)
            for peer in held.peers.values()
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Ask no more."""
        self._stopping.set()

    def join(self) -> None:
        """Wait until the threads have ended."""
        for thread in self._threads:
            thread.join(3 * self._settings.heartbeat_timeout_s)

    def _watch(self, peer: Peer) -> None:
        every_s = self._settings.heartbeat_s * max(1.0, len(self._held.plan.members) / _MEMBERS)
        whereabouts = Whereabouts(peer, self._settings.heartbeat_timeout_s, self._hints)
        while not self._stopping.is_set():
            begun = time.monotonic()
            self._look_at(peer, whereabouts)
            self._stopping.wait(max(0.0, every_s - (time.monotonic() - begun)))

    def _look_at(self, peer: Peer, whereabouts: Whereabouts) -> None:
        before, known = peer.breaker.away, len(peer.signatures)
        try:
            peer.beat_s = whereabouts.beat()
            for module in self._held.plan.modules_of(peer.member.device):
                if module.model in self._held.needed() and module.model not in peer.signatures:
                    peer.signatures[module.model] = peer.describe(module, self._settings.heartbeat_timeout_s)
        except SpratError as bad:
            peer.breaker.beat(f"does not answer: {bad}")
            if not before:
                _log.warning("a device of the site is away", extra={"device": peer.said, "detail": str(bad)})
                peer.drop(f"it is away: {bad}")
        except Exception:  # noqa: BLE001  # a bug here must not end the thread
            peer.breaker.beat("cannot be asked")
            _log.exception("a device of the site cannot be asked", extra={"device": peer.said})
        else:
            peer.breaker.beat()
        if bool(before) != bool(peer.breaker.away) or known != len(peer.signatures):
            self._changed()
