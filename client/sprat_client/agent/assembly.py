"""Puts together what one agent works with: every part made once, from its settings and its folder."""

from typing import TYPE_CHECKING

from sprat_client.agent.budget import BUDGET_FILE, ByteBudget
from sprat_client.agent.durable import Disk
from sprat_client.agent.estimator import Estimator, SubprocessEstimator
from sprat_client.agent.events import EventLog
from sprat_client.agent.facts import DeviceFacts
from sprat_client.agent.holdouts import Holdouts
from sprat_client.agent.hooks import Hooks
from sprat_client.agent.identity import Identity, load_key
from sprat_client.agent.journal import Journal
from sprat_client.agent.permits import Permits
from sprat_client.agent.rebuilder import Rebuilder, SubprocessRebuilder
from sprat_client.agent.reports import Outbox
from sprat_client.agent.servings import Servings
from sprat_client.agent.settings import AgentSettings
from sprat_client.agent.steps import Workshop
from sprat_client.agent.store import TensorStore
from sprat_client.agent.transfer import Link, NoNetwork
from sprat_client.agent.trust.clock import Clock
from sprat_client.agent.trust.store import TrustStore
from sprat_client.runtime.onnxruntime_host import OnnxRuntime
from sprat_client.runtime.ports import Runtime
from sprat_shared.trust.assignments import DIRECTOR_REPOSITORY

if TYPE_CHECKING:
    from sprat_client.agent.serve import Serving


class _NotedServings(Servings):
    """What serves; each swap is noted as an event."""

    def __init__(self, events: EventLog) -> None:
        super().__init__()
        self._events = events

    def swap(self, model: str, serving: "Serving | None") -> None:
        before, after = self.get(model), None if serving is None else serving.slot.release
        super().swap(model, serving)
        if (None if before is None else before.slot.release) != after:
            self._events.note("serves", model=model, release=after)


def assemble(
    settings: AgentSettings,
    identity: Identity,
    disk: Disk,
    *,
    rebuilder: Rebuilder | None,
    estimator: Estimator | None,
    runtime: Runtime | None,
    clock: Clock | None,
    offline: bool,
) -> Workshop:
    """Return the parts; see `loop.Agent` for the arguments. Nothing is written.

    Raises:
        JournalUnreadable, NewerFormat: the folder is damaged, or a newer agent's.
    """
    folder = settings.folder
    key = load_key(folder)
    journal = Journal(folder / "journal.json", disk)
    clock = clock or Clock()
    if (latest := journal.marks(DIRECTOR_REPOSITORY).time) is not None:
        clock.know(latest)
    budget, events = ByteBudget(folder / BUDGET_FILE, disk, clock.now), EventLog(folder, disk)
    return Workshop(
        settings=settings,
        device=identity.device,
        disk=disk,
        journal=journal,
        outbox=Outbox(folder / "outbox", disk, key),
        trust=TrustStore(folder / "trust", disk, identity=identity, keeper=journal, clock=clock),
        clock=clock,
        store=TensorStore(folder / "store", disk),
        link=Link.of(identity, key, settings.link, transport=NoNetwork() if offline else None, counted=budget.count),
        rebuilder=rebuilder or SubprocessRebuilder(settings.rebuild_timeout_s),
        estimator=estimator or SubprocessEstimator(),
        runtime=runtime if runtime is not None else OnnxRuntime(),
        servings=_NotedServings(events),
        hooks=Hooks(settings.hooks, settings.hook_timeout_s),
        permits=Permits(DeviceFacts(folder), journal, clock.now),
        budget=budget,
        events=events,
        holdouts=Holdouts(folder / "holdout", disk, settings.kept),
    )
