"""One member of a site without the rest of an agent: it loads its modules from a folder and answers; also as a process.

python site_member.py FOLDER DEVICE PORT      FOLDER holds device.key, <number>.plan and <model>@<release>/graph.onnx
"""

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from sprat_client.agent.settings import SiteSettings
from sprat_client.agent.site.binding import bind
from sprat_client.agent.site.heartbeats import Heartbeats
from sprat_client.agent.site.held_plan import HeldPlan
from sprat_client.agent.site.listener import PeerListener
from sprat_client.agent.site.mdns import MdnsHints
from sprat_client.agent.site.module_queue import ModuleQueue
from sprat_client.agent.site.modules import LoadedModule, signature_of, tried
from sprat_client.agent.site.peer import Peer
from sprat_client.agent.site.router import Router
from sprat_client.agent.site.site_meter import SiteMeter
from sprat_client.agent.site.tls import client_context, server_context
from sprat_client.agent.site.whereabouts import Hints
from sprat_client.runtime.onnxruntime_host import OnnxRuntime
from sprat_shared.protocol.site_plan import PlannedModule, SitePlan


def now() -> datetime:
    return datetime.now(UTC)


class SiteMember:
    """What `running.Running` puts together of an agent, from a folder of plain files."""

    def __init__(self, folder: Path, device: UUID, listen: str | None, settings: SiteSettings | None = None) -> None:
        self.folder, self.device, self.settings = folder, device, settings or SiteSettings()
        self.address = ""
        self.listener = self.mdns = None
        if listen is not None:
            sock, self.address = bind(listen, None)
            self.listener = PeerListener(sock, self.settings)
            if self.settings.mdns:
                self.mdns = MdnsHints(device, sock.getsockname()[:2])
        self.router = Router(self.settings)
        self.held: dict[int, HeldPlan] = {}
        self.beats: list[Heartbeats] = []
        self.loaded: dict[str, LoadedModule] = {}
        self.measured = SiteMeter()

    def hold(self, plan: SitePlan, clock: Callable[[], datetime] = now) -> HeldPlan:
        own, key = plan.member[self.device], self.folder / "device.key"
        context = client_context(plan, own, key)
        used = {host for module in plan.modules.values() for host in module.hosts} - {self.device}
        peers = {
            host: Peer(
                plan.member[host],
                title=plan.title,
                server_name=plan.server_name,
                context=context,
                most_bytes=self.settings.most_body_bytes,
                measured=self.measured,
            )
            for host in used
        }
        held = HeldPlan(
            plan=plan,
            device=self.device,
            modules={one.model: self._load(one) for one in plan.modules_of(self.device)},
            peers=peers,
            context=server_context(plan, own, key),
            now=clock,
        )
        self.held[plan.number] = held
        if self.listener is not None:
            self.listener.hold(held)
        if self.mdns is not None:
            self.mdns.announce()
        return held

    def _load(self, module: PlannedModule) -> LoadedModule:
        name = f"{module.model}@{module.release}"
        if name not in self.loaded:
            host = OnnxRuntime().load(self.folder / name)
            together, alone_s, pace = tried(host)
            queue = ModuleQueue(
                host,
                name,
                together=together,
                most_waiting=self.settings.most_waiting,
                most_rows=self.settings.most_rows,
                pace=pace,
                ran=lambda _requests, rows, seconds: self.measured.module(module.release_id).ran(rows, seconds),
            )
            self.loaded[name] = LoadedModule(module.model, module.release, host, queue, signature_of(host), alone_s)
        return self.loaded[name]

    def serve(self, number: int, *, beating: bool = True, hints: Hints | None = None) -> HeldPlan:
        held = self.held[number]
        self.router.serve((held,))
        if beating:
            self.beats.append(Heartbeats(held, self.settings, lambda: None, hints or self.mdns))
        return held

    def let_go(self, number: int) -> None:
        held = self.held.pop(number)
        held.over = True
        if self.listener is not None:
            self.listener.let_go(held)
        for peer in held.peers.values():
            peer.close("the plan is held no more")

    def close(self) -> None:
        self.router.close()
        for beats in self.beats:
            beats.close()
        for beats in self.beats:
            beats.join()
        if self.mdns is not None:
            self.mdns.close()
        if self.listener is not None:
            self.listener.close()
        for module in self.loaded.values():
            module.queue.close()
            module.queue.join(5.0)
        for held in self.held.values():
            for peer in held.peers.values():
                peer.close("the test is over")


@contextmanager
def member_in_this_process(
    folder: Path, device: UUID, listen: str | None = None, **changes: float
) -> Iterator[SiteMember]:
    member = SiteMember(folder, device, listen, replace(SiteSettings(), **changes))  # type: ignore[arg-type]
    try:
        yield member
    finally:
        member.close()


def main(arguments: Sequence[str]) -> None:
    """Hold every plan of the folder, answer, and end with the standard input."""
    folder, device, port = Path(arguments[0]), UUID(arguments[1]), arguments[2]
    member = SiteMember(folder, device, f"127.0.0.1:{port}")
    for file in sorted(folder.glob("*.plan")):
        member.hold(SitePlan.from_bytes(file.read_bytes()))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    threading.Thread(target=lambda: None).start()
    sys.stdin.read()
    member.close()


if __name__ == "__main__":
    main(sys.argv[1:])
