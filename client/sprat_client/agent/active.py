"""What of the slots serves: the active release, where it is damaged the one beside it. Nothing damaged is loaded."""

import logging

from sprat_client.agent import steps
from sprat_client.agent.releases import Shelf, Slot, Slots
from sprat_client.agent.serve import Serving
from sprat_client.agent.steps import Workshop
from sprat_client.agent.store import StoreCorrupted
from sprat_client.runtime.ports import ModelHost, ModelNotLoadable

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

    def runs(self, release_id: str) -> bool:
        """Return whether this release is the active one."""
        active = self._shelf.slots().active
        return active is not None and active.release_id == release_id

    def is_intact(self, slot: Slot) -> bool:
        """Return whether every file of a slot's release has its bytes."""
        try:
            self._shelf.check(self._shelf.manifest(slot.release_id))
        except StoreCorrupted as bad:
            _log.error("the other slot is damaged", extra={"model": self._model, "detail": str(bad)})
            return False
        return True

    def load(self, slot: Slot, host: ModelHost | None = None) -> Serving:
        """Load a release, or take it as it was loaded before.

        Raises:
            StoreCorrupted: a file does not have its bytes.
            ModelNotLoadable: the runtime refuses it.
        """
        manifest = self._shelf.manifest(slot.release_id)
        loaded = host or steps.load(self._shop, self._shelf, manifest)
        return Serving(slot, manifest, loaded, lambda: self._shelf.digest_of_files(manifest))

    def load_or_none(self, slot: Slot) -> Serving | None:
        """Load a release; None where it is damaged."""
        try:
            return self.load(slot)
        except (StoreCorrupted, ModelNotLoadable) as bad:
            _log.error(  # the message says it all
                "a release cannot be served",
                extra={"model": self._model, "release": slot.release, "code": bad.code, "detail": str(bad)},
            )
        return None

    def serve(self, *, at_rest: bool) -> None:
        """Let what the slots say answer; where it is damaged, the release in the other slot.

        Args:
            at_rest: no update is under way, so the slots may be changed to what is left.
        """
        slots = self._shelf.slots()
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
