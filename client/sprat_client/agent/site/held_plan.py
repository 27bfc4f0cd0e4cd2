"""A plan that this device holds ready: its modules are loaded, and it can ask and be asked under it."""

import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from sprat_client.agent.site.failures import NotHeld, PlanExpired
from sprat_client.agent.site.modules import LoadedModule
from sprat_client.agent.site.peer import Peer
from sprat_shared.errors import InvalidInput
from sprat_shared.protocol.site_plan import PlannedTask, SitePlan
from sprat_shared.tasks.graph import TaskGraph
from sprat_shared.tasks.types import Signature


@dataclass(slots=True, kw_only=True)
class HeldPlan:
    """A plan with what this device needs to run by it.

    Attributes:
        plan: it.
        device: this device.
        modules: that this device holds, by model.
        peers: the other members that hold modules of its tasks, by device.
        context: by which others are answered.
        now: the agent's trusted time.
        over: it is signed for this device no more; nothing is begun or answered by it.
    """

    plan: SitePlan
    device: UUID
    modules: Mapping[str, LoadedModule]
    peers: Mapping[UUID, Peer]
    context: ssl.SSLContext
    now: Callable[[], datetime]
    over: bool = False
    _under_way: int = 0
    _begun: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def expired(self) -> bool:
        """Whether nothing may be begun or answered by it any more."""
        return self.now() >= self.plan.expires_at

    def require_fresh(self) -> None:
        """Raise NotHeld where it is held no more, PlanExpired where its time is over."""
        if self.over:
            raise NotHeld(f"plan {self.plan.title} is not held here any more")
        if self.expired:
            raise PlanExpired(
                f"plan {self.plan.title} ended at {self.plan.expires_at.isoformat()}; "
                "the site needs a newer one: is the server reached?"
            )

    @contextmanager
    def in_use(self, *, begun_here: bool = False) -> Iterator[None]:
        """Hold it while a request is under way, another member's or one that this device began."""
        with self._lock:
            self._under_way += 1
            self._begun += begun_here
        try:
            yield
        finally:
            with self._lock:
                self._under_way -= 1
                self._begun -= begun_here

    @property
    def idle(self) -> bool:
        """Whether no request is under way under it."""
        return self._under_way == 0

    @property
    def finished(self) -> bool:
        """Whether nothing that this device began is under way: others may let go of it."""
        return self._begun == 0

    def runs_here(self, graph: TaskGraph) -> bool:
        """Return whether this device holds all modules of a graph."""
        return graph.models <= self.modules.keys()

    def fallback_of(self, task: PlannedTask) -> TaskGraph | None:
        """Return the fallback that this device can run by itself; None: there is none."""
        return task.fallback if task.fallback is not None and self.runs_here(task.fallback) else None

    def unreached(self) -> dict[str, list[Peer]]:
        """Return the members whose modules did not say yet what they take and give, by model."""
        left: dict[str, list[Peer]] = {}
        for model in self.needed():
            left[model] = [
                self.peers[host]
                for host in self.plan.modules[model].hosts
                if host in self.peers and model not in self.peers[host].signatures
            ]
        return {model: peers for model, peers in left.items() if peers}

    def needed(self) -> list[str]:
        """Return the models that this device's tasks use and that others hold."""
        used = {model for task in self.plan.tasks.values() for model in task.graph.models}
        return sorted(used - self.modules.keys())

    def check_types(self) -> None:
        """Check each task along its edges, as far as what its modules take and give is known.

        Raises:
            InvalidInput: something does not fit; the message names task and edge.
        """
        known: dict[str, Signature] = {}
        for peer in self.peers.values():
            known |= peer.signatures
        known |= {model: module.signature for model, module in self.modules.items()}
        for name, task in self.plan.tasks.items():
            for graph in (task.graph, *([] if task.fallback is None else [task.fallback])):
                if graph.models <= known.keys():
                    try:
                        graph.types(known)
                    except InvalidInput as bad:
                        raise InvalidInput(f"task {name}: {bad}", code=bad.code) from None
