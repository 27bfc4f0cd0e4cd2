"""What is wrong with the agent, and its numbers, for whoever asks the local endpoint."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sprat_client.agent.metrics import Gauge
from sprat_client.agent.releases import Shelf
from sprat_client.agent.site.plans import SitePlans
from sprat_client.agent.steps import Workshop
from sprat_client.agent.store import StoreCorrupted
from sprat_client.runtime.memory import private_bytes, proportional_bytes, resident_bytes

if TYPE_CHECKING:
    from sprat_client.agent.serve import Serving


@dataclass(frozen=True, slots=True)
class Wrong:
    """One thing that is not as it should be.

    Attributes:
        code: public code.
        detail: the sentence for people.
        model: that it concerns; None: the agent.
        failing: a model or a task that should be served is not.
    """

    code: str
    detail: str
    model: str | None = None
    failing: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        said = {"code": self.code, "detail": self.detail}
        return said if self.model is None else {**said, "model": self.model}


class Overview:
    """Looks at an agent from another thread.

    Args:
        shop: what the agent works with.
        site: the plans of its site.
    """

    def __init__(self, shop: Workshop, site: SitePlans) -> None:
        self._shop, self._site = shop, site

    def wrong(self) -> list[Wrong]:
        """Return everything that is wrong: nothing, where the agent serves what it should and believes its server."""
        return [
            *self._wrong_agent(),
            *(wrong for model in sorted(self._shop.journal.models) for wrong in self._wrong_of(model)),
        ]

    def _wrong_agent(self) -> Iterator[Wrong]:
        trust = self._shop.journal.trust
        if trust.trouble is not None:
            yield Wrong(trust.trouble.code, trust.trouble.detail)
        if trust.clock_ahead_s is not None:
            yield Wrong(
                "clock.suspect", f"the device's clock is {trust.clock_ahead_s:.0f} s off the time that is signed"
            )

        for code, detail, failing in self._site.wrong():
            yield Wrong(code, detail, failing=failing)

    def _wrong_of(self, model: str) -> Iterator[Wrong]:
        record, settings = self._shop.journal.record(model), self._shop.settings
        try:
            active = Shelf(model, settings.folder / "models" / model, self._shop.store, self._shop.disk).slots().active
        except (StoreCorrupted, OSError) as bad:
            yield Wrong("store.corrupted", str(bad), model, failing=True)
            return
        serving = self._shop.servings.get(model)
        if active is not None and serving is None:
            yield Wrong(
                "model.not-served", f"release {active.release} is active, and does not answer", model, failing=True
            )
        if serving is not None and serving.guard is not None and (drift := serving.guard.verdict) is not None:
            yield Wrong(drift.code, f"release {serving.slot.release} still serves: {drift.why}", model)
        newest = record.refused[-1] if record.refused else None
        if newest is not None and newest.assignment == record.highest_assignment and record.work is None:
            yield Wrong(newest.code, f"release {newest.release} was assigned, and does not serve", model)

    def gauges(self) -> Iterator[Gauge]:
        """Return what is true just now."""
        shop = self._shop
        yield "resident_bytes", "Resident memory of the agent.", {}, resident_bytes()
        yield "private_bytes", "The part of it that no file is behind.", {}, private_bytes()
        said = "The same as resident, but a page that is mapped more than once, as shared layers are, counts once."
        yield "proportional_bytes", said, {}, proportional_bytes()
        yield "reports_waiting", "Reports that are not delivered yet.", {}, len(shop.outbox.waiting())
        yield "wrong", "How many things are wrong; /healthz says which.", {}, len(self.wrong())
        for model, record in sorted(shop.journal.models.items()):
            labels = {"model": model}
            yield "state", "What the agent does for a model.", {**labels, "state": record.state}, 1
            received = 0 if record.work is None else record.work.received_bytes
            yield "update_received_bytes", "Body bytes read for the update under way.", labels, received
            kept = shop.holdouts.of(model)
            yield "holdout_samples", "Labelled samples that applications added.", labels, len(kept)
            yield "holdout_bytes", "Bytes of their inputs.", labels, kept.nbytes
        yield from self._site.gauges()
        for model in shop.servings.names():
            if (serving := shop.servings.get(model)) is None:
                continue
            labels = {"model": model}
            yield "release", "The release that serves.", labels, serving.slot.release
            yield "on_trial", "1 while it is on trial.", labels, int(serving.fallback is not None)
            yield from _guard(serving, labels)
            if (mirror := serving.mirror) is None:
                continue
            seen, phase = mirror.seen(), "shadow" if serving.fallback is None else "trial"
            for what in ("requests", "failed", "dropped", "compared", "agreed"):
                said = "Requests and samples that old and new release both answered, in the shadow or on trial."
                yield "watched", said, {**labels, "phase": phase, "what": what}, getattr(seen, what)


def _guard(serving: "Serving", labels: Mapping[str, object]) -> Iterator[Gauge]:
    """Yield how a release that shares layers does in service; nothing of one that shares none, or is on trial."""
    if serving.manifest.shares is None or serving.fallback is not None:
        return
    guard = serving.guard
    blind = guard is None or guard.record.blind is not None
    yield "guard_blind", "1 where a release that shares layers cannot be compared just now.", labels, int(blind)
    if guard is None:
        return
    record, samples = guard.record, guard.samples
    counts = {
        "requests": record.requests,
        "compared": record.compared,
        "disagreed": record.disagreed,
        "skipped": record.skipped,
        "waiting": len(samples),
        "dropped": samples.dropped,
    }
    for what, count in counts.items():
        said = "Requests compared with the release that shares nothing, and samples in them; dropped since the start."
        yield "guard", said, {**labels, "what": what}, count
    yield (
        "guard_e_value",
        "Evidence that more answers differ than may; at 1 / alpha it goes back.",
        labels,
        guard.e_value,
    )
    yield "guard_budget", "Share of answers that may differ.", labels, guard.shares.budget
