"""A new release beside the old one: compared, in the shadow, on trial. The machine acts on what comes out."""

from dataclasses import replace
from typing import TYPE_CHECKING

from sprat_client.agent.active import ActiveRelease
from sprat_client.agent.journal import Work
from sprat_client.agent.judgement import NOTHING_SEEN
from sprat_client.agent.releases import Shelf, Slot, Slots
from sprat_client.agent.steps import Workshop
from sprat_client.agent.trial import Healthy, Verdict
from sprat_client.agent.watching import Watching
from sprat_client.runtime.background import giving_way
from sprat_client.runtime.ports import ModelHost
from sprat_shared.protocol.report import Evidence

if TYPE_CHECKING:
    from sprat_client.agent.serve import Serving
    from sprat_client.agent.validate import Validation


class Tryout:
    """Holds the new release of one model while it is looked at.

    Args:
        model: its name.
        shop: what the agent works with.
        shelf: the model's releases and slots.
        active: lets releases answer.
    """

    def __init__(self, model: str, shop: Workshop, shelf: Shelf, active: ActiveRelease) -> None:
        self._model, self._shop, self._shelf, self._active = model, shop, shelf, active
        self._candidate: ModelHost | None = None
        self._watching: Watching | None = None

    def compare(self, work: Work) -> "Validation":
        """Load the new release, and compare it with the one that serves. Raises as `comparing.compare`."""
        from sprat_client.agent.comparing import compare  # noqa: PLC0415  # numpy, which only a model needs

        self._candidate, validation = giving_way(lambda: compare(self._shop, self._shelf, work))
        return validation

    def wants_shadow(self, work: Work) -> bool:
        """Return whether the new release is to answer in the shadow, and there is something that answers."""
        return self._shop.settings.under(work.wish.policy).shadow_s > 0 and self._serving is not None

    def shadow(self, work: Work) -> tuple[Verdict, Work]:
        """Let the new release answer beside the old one; return what that showed so far.

        Raises:
            ValidationRefused: it does not load any more.
            StoreCorrupted: it was damaged.
        """
        serving = self._serving
        if serving is None:
            return Healthy(), work
        if self._watching is None or self._watching.serving is not serving:
            self.watch_no_more()
            self._candidate = self._candidate or self._load_new(work)
            self._watching = Watching.shadow(serving, self._candidate, _evidence(work).shadow)
        verdict = self._watching.judge_shadow(self._shop.settings.under(work.wish.policy))
        return verdict, self.seen(work, on_trial=False)

    def _load_new(self, work: Work) -> ModelHost:
        from sprat_client.agent.comparing import load_new  # noqa: PLC0415  # as above

        return load_new(self._shop, self._shelf, work)

    def trial(self, work: Work) -> tuple[Verdict, Work]:
        """Let the new release serve; return what that showed so far."""
        serving = self._serving
        if serving is None or serving.slot.release_id != work.release_id or serving.fallback is None:
            serving = self._begin_trial(serving, work)
        if self._watching is None or self._watching.serving is not serving:
            self.watch_no_more()
            self._watching = Watching.trial(serving, _evidence(work).trial)
        verdict = self._watching.judge_trial(self._shop.settings.under(work.wish.policy))
        return verdict, self.seen(work, on_trial=True)

    def commit(self) -> None:
        """Let the new release serve alone."""
        if (serving := self._serving) is not None:
            serving.fallback = None

    def must_be_kept(self) -> bool:
        """Return whether to make durable what was seen so far."""
        return self._watching is not None and self._watching.must_be_kept()

    def seen(self, work: Work, *, on_trial: bool) -> Work:
        """Return the work with what was seen so far."""
        if self._watching is None:
            return work
        told = self._watching.told()
        before = _evidence(work)
        return replace(work, evidence=replace(before, trial=told) if on_trial else replace(before, shadow=told))

    def watch_no_more(self) -> None:
        """Compare nothing any more; the new release stays loaded."""
        if self._watching is not None:
            self._watching.close()
            self._watching = None

    def drop(self) -> None:
        """Let go of the new release."""
        self.watch_no_more()
        self._candidate = None

    @property
    def _serving(self) -> "Serving | None":
        return self._shop.servings.get(self._model)

    def _begin_trial(self, old: "Serving | None", work: Work) -> "Serving":
        """Point the slots at the new release and let it answer; what must be read is read before anything changes."""
        slots = self._shelf.slots()
        if work.release_id is None:
            raise AssertionError("TRIAL follows VERIFYING, which sets the release id")
        slot = Slot(release=work.wish.release, release_id=work.release_id, weights=work.wish.weights)
        if old is not None and old.slot.release_id == work.release_id:  # a restart in the trial loaded it already
            serving = old
        else:
            serving = self._active.load(slot, self._candidate)
            serving.warm_up()
        self._candidate = None
        if slots.active is None or slots.active.release_id != work.release_id:
            self._shelf.point(Slots(active=slot, previous=slots.active))
        else:
            old = None if slots.previous is None else self._active.load_or_none(slots.previous)
        serving.fallback = old or serving
        self._shop.servings.swap(self._model, serving)
        return serving


def _evidence(work: Work) -> Evidence:
    return work.evidence or NOTHING_SEEN
