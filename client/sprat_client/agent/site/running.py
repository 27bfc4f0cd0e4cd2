"""What runs while this device holds plans: modules, listener, heartbeats, router. Loaded with the first plan."""

import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from socket import socket
from typing import TYPE_CHECKING, Final
from uuid import UUID

from sprat_client.agent.releases import Shelf
from sprat_client.agent.site.heartbeats import Heartbeats
from sprat_client.agent.site.held_plan import HeldPlan
from sprat_client.agent.site.listener import PeerListener
from sprat_client.agent.site.modules import Modules
from sprat_client.agent.site.peer import Peer
from sprat_client.agent.site.router import Router
from sprat_client.agent.site.site_meter import SiteMeter
from sprat_client.agent.site.tls import client_context, server_context
from sprat_client.agent.steps import Workshop
from sprat_shared.protocol.site_plan import SitePlan

if TYPE_CHECKING:
    from sprat_client.agent.site.mdns import MdnsHints

_log = logging.getLogger(__name__)
_STOP_S: Final = 10.0


class Running:
    """Used by the agent's own thread; `router` by those of applications.

    Args:
        shop: what the agent works with.
        sock: bound, where other members reach this device; None: they do not.
        changed: called from other threads where something was found out.
        measured: takes what modules and links take.
    """

    def __init__(self, shop: Workshop, sock: socket | None, changed: Callable[[], object], measured: SiteMeter) -> None:
        self._shop, self._changed, self._measured = shop, changed, measured
        self._settings = shop.settings.site
        self._modules = Modules(shop, measured)
        self.router = Router(self._settings)
        self._listener = None if sock is None else PeerListener(sock, self._settings)
        self._hints = _mdns(shop.device, sock) if self._settings.mdns else None
        self._held: dict[str, HeldPlan] = {}  # by the digest of its file
        self._beats: dict[int, Heartbeats] = {}  # by the identity of the plan that is held
        self._retiring: list[HeldPlan] = []

    def of(self, sha256: str) -> HeldPlan | None:
        """Return a plan that is held; None: it is not."""
        return self._held.get(sha256)

    @property
    def retiring(self) -> bool:
        """Whether something is under way under a plan that was let go."""
        return bool(self._retiring)

    def hold(self, sha256: str, plan: SitePlan, shelves: Mapping[str, Shelf]) -> HeldPlan:
        """Load what a plan wants of this device, and answer others under it from now on.

        Args:
            sha256: digest of the plan's file, hex.
            plan: checked.
            shelves: where the releases of its models are.

        Raises:
            StoreCorrupted, ModelNotLoadable, MemoryShort: a module cannot be loaded; nothing is held.
        """
        own, key_file = plan.member[self._shop.device], self._shop.settings.folder / "device.key"
        modules = {}
        try:
            for planned in plan.modules_of(self._shop.device):
                modules[planned.model] = self._modules.take(planned, shelves[planned.model])
            peers = self._peers(plan, key_file)
            context = server_context(plan, own, key_file)
        except BaseException:
            for module in modules.values():
                self._modules.let_go(module)
            raise
        held = HeldPlan(
            plan=plan,
            device=self._shop.device,
            modules=modules,
            peers=peers,
            context=context,
            now=self._shop.clock.now,
        )
        self._held[sha256] = held
        if self._listener is not None:
            self._listener.hold(held)
            if self._hints is not None:
                self._hints.announce()  # not before: who comes must be answered
        return held

    def _peers(self, plan: SitePlan, key_file: Path) -> dict[UUID, Peer]:
        used = {model for task in plan.tasks.values() for model in task.graph.models}
        hosts = {host for model in used for host in plan.modules[model].hosts} - {self._shop.device}
        if not hosts:
            return {}
        context = client_context(plan, plan.member[self._shop.device], key_file)
        return {
            host: Peer(
                plan.member[host],
                title=plan.title,
                server_name=plan.server_name,
                context=context,
                most_bytes=self._settings.most_body_bytes,
                measured=self._measured,
            )
            for host in sorted(hosts)
        }

    def listen_to(self, plans: Collection[HeldPlan]) -> None:
        """Ask the members of these plans whether they are there, and those of no others."""
        wanted = {id(held): held for held in plans if held.peers}
        for one in self._beats.keys() - wanted.keys():
            self._beats.pop(one).close()
        for one in wanted.keys() - self._beats.keys():
            self._beats[one] = Heartbeats(wanted[one], self._settings, self._changed, self._hints)

    def keep_only(self, plans: Collection[str]) -> None:
        """Let go of all but these: take nothing under them any more, and unload when what is under way is done."""
        for sha256 in self._held.keys() - set(plans):
            held = self._held.pop(sha256)
            held.over = True
            if self._listener is not None:
                self._listener.let_go(held)
            self._retiring.append(held)
            _log.info("a plan of the site is let go", extra={"plan": held.plan.title})
        for held in [one for one in self._retiring if one.idle]:
            self._retiring.remove(held)
            for peer in held.peers.values():
                peer.close("the plan is held no more")
            for module in held.modules.values():
                self._modules.let_go(module)

    def close(self) -> None:
        """End everything; what is under way is answered first."""
        self.router.close()
        for beats in self._beats.values():
            beats.close()
        if self._listener is not None:
            self._listener.close()
        for beats in self._beats.values():
            beats.join()
        if self._hints is not None:
            self._hints.close()
        self._modules.close(_STOP_S)
        for held in [*self._held.values(), *self._retiring]:
            held.over = True
            for peer in held.peers.values():
                peer.close("this device ends")


def _mdns(device: UUID, sock: socket | None) -> "MdnsHints":
    from sprat_client.agent.site.mdns import MdnsHints  # noqa: PLC0415  # an extra

    return MdnsHints(device, None if sock is None else sock.getsockname()[:2])
