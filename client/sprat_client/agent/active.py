"""What of the slots serves: the active release, where it is damaged the one beside it. Nothing damaged is loaded."""

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from sprat_client.agent import steps
from sprat_client.agent.releases import Shelf, Slot, Slots
from sprat_client.agent.repair import mend
from sprat_client.agent.steps import Workshop
from sprat_client.agent.store import StoreCorrupted
from sprat_client.runtime.ports import ModelHost, ModelNotLoadable

if TYPE_CHECKING:
    from sprat_client.agent.serve import Serving

_log = logging.getLogger(__name__)


class ActiveRelease:
    """Loads one model's releases and lets them answer.

    Args:
        model: its name.
        shop: what the agent works with.
        shelf: the model's releases and slots.
    """

    def __init__(self, model: str, shop: Workshop, shelf: Shelf) -> None:
        self._model, self._shop, self._shelf = model, shop, shelf

    def fulfils(self, release_id: str, *, at_hand: bool) -> bool:
        """Return whether this release is the active one, or, where it need only be at hand, lies in the other slot."""
        slots = self.slots()
        if slots.active is not None and slots.active.release_id == release_id:
            return True
        other = slots.previous
        return at_hand and other is not None and other.release_id == release_id and self.is_intact(other)

    def is_intact(self, slot: Slot) -> bool:
        """Return whether every file of a slot's release has its bytes."""
        try:
            self._shelf.check(self._shelf.manifest(slot.release_id))
        except StoreCorrupted as bad:
            _log.error("the other slot is damaged", extra={"model": self._model, "detail": str(bad)})
            return False
        return True

    def load(self, slot: Slot, host: ModelHost | None = None) -> "Serving":
        """Load a release, or take it as it was loaded before.

        Raises:
            StoreCorrupted: a file does not have its bytes.
            ModelNotLoadable: the runtime refuses it.
        """
        from sprat_client.agent.serve import Serving  # noqa: PLC0415  # numpy, which only a model needs

        manifest = self._shelf.manifest(slot.release_id)
        loaded = host or steps.load_once(self._shop, self._shelf, manifest)
        self._shop.hosts[slot.release_id] = loaded
        return Serving(slot, manifest, loaded, lambda: self._shelf.digest_of_files(manifest))

    def load_or_none(self, slot: Slot) -> "Serving | None":
        """Load a release, mended where that is needed and can be done here; None where it cannot be served.

        Raises:
            OSError: the disk or the system fails just now, which says nothing of the release.
        """
        try:
            try:
                return self.load(slot)
            except StoreCorrupted as bad:
                self._say(slot, bad)
                others = [one for one in self._shelf.found() if one.release_id != slot.release_id]
                if not mend(self._shelf, self._shop.store, slot, others, self._shop.downloads):
                    return None
                return self.load(slot)
        except (StoreCorrupted, ModelNotLoadable) as bad:
            self._say(slot, bad)
        return None

    def serve(self, *, at_rest: bool, untried: str | None = None) -> None:
        """Let what the slots say answer; where it is damaged beyond mending, the release in the other slot.

        Args:
            at_rest: no update is under way, so the slots may be changed to what is left.
            untried: release id that never served, and must not because slots cannot be read.
        """
        slots = self.slots(untried)
        live = self._shop.servings.get(self._model)
        if live is not None and slots.active is not None and live.fallback is not None:
            live = live.fallback
        if live is not None and slots.active is not None and live.slot.release_id == slots.active.release_id:
            live.slot, live.fallback = slots.active, None
            self._shop.servings.swap(self._model, live)
            return
        for slot in (slots.active, slots.previous):
            if slot is None:
                continue
            if (serving := self.load_or_none(slot)) is not None:
                serving.warm_up()
                self._shop.servings.swap(self._model, serving)
                if slot == slots.previous and at_rest:
                    self._shelf.point(Slots(active=slot, previous=None))
                return
        self._shop.servings.swap(self._model, None)
        if slots.active is not None and at_rest:
            self._shelf.point(Slots())

    def fall_back(self) -> None:
        """Let the release that serves beside a trial answer in its place, at once; nothing durable is changed."""
        live = self._shop.servings.get(self._model)
        if live is not None and live.fallback is not None and live.fallback is not live:
            self._shop.servings.swap(self._model, live.fallback)

    def check_previous(self) -> None:
        """Look at the release in the other slot; one that is damaged beyond mending is dropped, and that is said."""
        slots = self._shelf.slots()
        other = slots.previous
        if other is None or self.is_intact(other):
            return
        if mend(
            self._shelf, self._shop.store, other, [] if slots.active is None else [slots.active], self._shop.downloads
        ):
            return
        _log.error(
            "the other slot is dropped: there is no release to go back to",
            extra={"model": self._model, "release": other.release, "code": StoreCorrupted.code},
        )
        self._shelf.point(replace(slots, previous=None))

    def slots(self, untried: str | None = None) -> Slots:
        """Return the slots; where they cannot be read, what the release folders say but for one that is `untried`."""
        try:
            return self._shelf.slots()
        except StoreCorrupted as bad:
            held = [slot for slot in self._shelf.found() if slot.release_id != untried and self.is_intact(slot)]
            active, previous = (*held, None, None)[:2]
            _log.error(
                "the slots cannot be read; the newest release that is whole serves",
                extra={"model": self._model, "detail": str(bad), "release": None if active is None else active.release},
            )
            slots = Slots(active=active, previous=previous)
            self._shelf.point(slots)
            return slots

    def _say(self, slot: Slot, bad: StoreCorrupted | ModelNotLoadable) -> None:
        _log.error(  # the message says it all
            "a release cannot be served",
            extra={"model": self._model, "release": slot.release, "code": bad.code, "detail": str(bad)},
        )
