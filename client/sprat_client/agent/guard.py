"""Watches releases that share layers while they serve: in idle time, by the release that each was made from.

Some requests are kept as they are answered (`sampled`). When the applications are idle, a thread loads the release that
shares nothing from the other slot, lets it answer them, notes how many answers differ (`guarded`) and lets go of it:
between two such times it takes no memory. When the evidence suffices, the agent's own thread goes back to it.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from random import Random
from typing import TYPE_CHECKING, Final

from sprat_client.agent import steps
from sprat_client.agent.durable import remove
from sprat_client.agent.guarded import GUARD_FILE, Guarded, base_slot, read_record
from sprat_client.agent.machine import ModelMachine
from sprat_client.agent.room import code_of, require_memory
from sprat_client.agent.sampled import Sampled, Samples
from sprat_client.agent.steps import Workshop
from sprat_client.agent.store import StoreCorrupted
from sprat_client.runtime.background import give_way
from sprat_client.runtime.memory import return_memory
from sprat_client.runtime.ports import InferenceFailed, ModelHost
from sprat_shared.errors import Conflict, SpratError

if TYPE_CHECKING:
    from sprat_client.agent.serve import Serving

_log = logging.getLogger(__name__)
_RESTS_WHEN_BLIND: Final = 10  # what keeps the other release from being loaded seldom goes away within a minute


class Guard:
    """Guards the models of one agent.

    Args:
        shop: what the agent works with.
        machines: of each model; the agent adds to it.
        wake: wakes the agent's thread, because a release has to go; called from another one.
        draw: chooses the requests.
    """

    def __init__(
        self,
        shop: Workshop,
        machines: Mapping[str, ModelMachine],
        wake: Callable[[], object],
        draw: Random | None = None,
    ) -> None:
        self._shop, self._machines, self._wake = shop, machines, wake
        self._settings, self._draw = shop.settings.guard, draw or Random()  # noqa: S311  # a sample, and no secret
        self._guarded: dict[str, Guarded] = {}  # replaced as a whole: the other thread reads it
        self._cannot_go: set[str] = set()  # release ids: there is nothing to go back to
        self._came, self._stopping = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    # on the agent's thread -----------------------------------------------------------------------------------------

    def look(self) -> None:
        """Guard what serves now, and go back from what has to. What goes wrong is logged, and tried again later."""
        for model in list(self._machines):
            try:
                self._look_at(model)
            except (SpratError, OSError, MemoryError) as bad:
                said = {"model": model, "code": code_of(bad), "detail": str(bad)}
                _log.warning("a release that shares layers is not guarded just now", extra=said)

    @property
    def is_due(self) -> bool:
        """Whether a release has to go, and can."""
        return any(self._has_to_go(model, guarded) for model, guarded in self._guarded.items())

    def close(self) -> None:
        """Compare nothing any more; the comparison under way is finished and kept."""
        self._stopping.set()
        self._came.set()
        if self._thread is not None:
            self._thread.join()
        for guarded in self._guarded.values():
            guarded.samples.close()

    def _look_at(self, model: str) -> None:
        guarded, serving = self._guarded.get(model), self._shop.servings.get(model)
        if guarded is not None and self._has_to_go(model, guarded):
            self._go_back(model, guarded)
            serving = self._shop.servings.get(model)
        if guarded is not None and not (serving is not None and self._is_guarded_by(serving, guarded)):
            self._let_go(model, guarded)
        if serving is not None and serving.fallback is None and serving.guard is None:
            if serving.manifest.shares is not None and self._settings.every:
                self._take(model, serving)
            else:
                self._forget_drift(model)

    def _is_guarded_by(self, serving: "Serving", guarded: Guarded) -> bool:
        has_base = base_slot(guarded.shelf.slots_or_none(), guarded.shares) is not None
        return serving.guard is guarded and serving.fallback is None and has_base

    def _take(self, model: str, serving: "Serving") -> None:
        """Guard a release from now on, if the one that it was made from lies in the other slot."""
        shelf, shares = self._machines[model].shelf, serving.manifest.shares
        if shares is None or base_slot(shelf.slots_or_none(), shares) is None:
            return
        samples = Samples(self._settings, self._draw, self._came.set)
        guarded = Guarded(serving.manifest, shelf, self._shop.disk, alpha=self._settings.alpha, samples=samples)
        self._guarded = {**self._guarded, model: guarded}
        serving.guard = guarded
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="guard", daemon=True)
            self._thread.start()
        if guarded.verdict is not None:
            self._wake()  # a kill came before it could go
        _log.info("guarded", extra={"model": model, "release": serving.slot.release, "donor": shares.donor})

    def _let_go(self, model: str, guarded: Guarded) -> None:
        self._guarded = {name: other for name, other in self._guarded.items() if name != model}
        guarded.samples.close()
        serving = self._shop.servings.get(model)
        for one in (serving, None if serving is None else serving.fallback):
            if one is not None and one.guard is guarded:
                one.guard = None

    def _has_to_go(self, model: str, guarded: Guarded) -> bool:
        """Return whether to go back now. What is under way goes first: it was assigned later, and ends this as well."""
        machine, release_id = self._machines[model], guarded.manifest.release_id
        return guarded.verdict is not None and machine.idle and release_id not in self._cannot_go

    def _go_back(self, model: str, guarded: Guarded) -> None:
        verdict, active = guarded.verdict, guarded.shelf.slots().active
        if verdict is None or active is None or active.release_id != guarded.manifest.release_id:
            return
        said = {"model": model, "release": active.release, "detail": verdict.why}
        try:
            self._machines[model].roll_back((verdict.code, verdict.why))
        except Conflict as bad:
            self._cannot_go.add(active.release_id)
            _log.error("cannot go back", extra={**said, "code": bad.code})  # the message says it all
            return
        self._shop.events.note(verdict.code, **said)
        self._forget_drift(model)

    def _forget_drift(self, model: str) -> None:
        """Let the release that went back begin anew, should it be assigned again."""
        shelf, disk = self._machines[model].shelf, self._shop.disk
        record = read_record(shelf, disk)
        if record is not None and record.drifted:
            remove(disk, shelf.folder / GUARD_FILE)

    # on the guard's thread -----------------------------------------------------------------------------------------

    def _work(self) -> None:
        give_way()
        while not self._stopping.is_set():
            self._came.wait()
            self._came.clear()
            while not self._stopping.is_set() and (waiting := self._waiting()):
                if not self._wait_until_idle():
                    break
                compared = [self._compare(guarded) for guarded in waiting]
                self._stopping.wait(self._settings.rest_s * (1 if all(compared) else _RESTS_WHEN_BLIND))

    def _waiting(self) -> list[Guarded]:
        return [one for one in self._guarded.values() if len(one.samples) and one.verdict is None]

    def _wait_until_idle(self) -> bool:
        """Wait until there is time to compare; return whether there is something to compare then."""
        settings, servings = self._settings, self._shop.servings
        while waiting := self._waiting():
            left_s = settings.idle_s - servings.idle_s()
            if left_s <= 0 or self._is_overdue(waiting):
                return True
            if self._stopping.wait(left_s):
                return False
        return False

    def _is_overdue(self, waiting: list[Guarded]) -> bool:
        patience_s = self._settings.patience_s
        since = [oldest for one in waiting if (oldest := one.samples.oldest) is not None]
        return patience_s is not None and bool(since) and time.monotonic() - min(since) >= patience_s

    def _compare(self, guarded: Guarded) -> bool:
        """Compare what waits until a request comes, and make durable what that showed; return whether it could be."""
        blind, before = None, guarded.record
        overdue, begun = self._is_overdue([guarded]), time.monotonic()
        try:
            base: ModelHost | None = self._load_base(guarded)
            while base is not None and guarded.verdict is None and not self._stopping.is_set():
                if not overdue and self._shop.servings.idle_s() < time.monotonic() - begun:
                    break
                if (sampled := guarded.samples.take()) is None:
                    break
                guarded.play(*_differing(base, sampled))
        except (SpratError, OSError, MemoryError) as bad:
            blind = f"{code_of(bad)}: {bad}"
            _log.warning("cannot be compared", extra={"model": guarded.manifest.model, "detail": blind})
        except Exception as bug:  # noqa: BLE001  # a bug here must not end what serves
            blind = f"bug: {bug!r:.200}"
            _log.exception("cannot be compared", extra={"model": guarded.manifest.model})
        base = None
        return_memory()
        try:
            if guarded.record != before or blind != before.blind:
                guarded.keep(blind=blind)
        except (OSError, MemoryError) as bad:
            _log.warning("what was compared is not kept yet", extra={"code": code_of(bad), "detail": str(bad)})
        if guarded.verdict is not None:
            guarded.samples.close()
            self._wake()
        return blind is None

    def _load_base(self, guarded: Guarded) -> ModelHost:
        """Load the release that shares nothing from the other slot.

        Raises:
            StoreCorrupted: it is not there, or a file does not have its bytes.
            MemoryShort: there is no room for both; nothing was loaded.
            ModelNotLoadable: the runtime refuses it.
        """
        shelf, shares, model = guarded.shelf, guarded.shares, guarded.manifest.model
        slot = base_slot(shelf.slots_or_none(), shares)
        if slot is None:
            raise StoreCorrupted(f"{model}@{shares.base}, which shares nothing, is not in the other slot")
        manifest = shelf.manifest(slot.release_id)
        if manifest.weights_of(manifest.sha256s) != shares.weights:
            raise StoreCorrupted(f"{model}@{shares.base} has other tensors than its digest says")
        require_memory(manifest.mapped_bytes, f"loading {model}@{shares.base} beside the release that shares layers")
        return steps.load(self._shop, shelf, manifest)


def _differing(base: ModelHost, sampled: Sampled) -> tuple[int, int]:
    """Return of how many samples of a request the two releases name different classes, of how many; 0: unknown."""
    from sprat_client.agent.answers import check_finite, top  # noqa: PLC0415  # numpy, which came with the model

    try:
        outputs = base.run(sampled.inputs)
        check_finite(outputs)
    except InferenceFailed:
        return 0, 0
    ours, served = top(outputs), top(sampled.outputs)
    if ours is None or served is None or len(ours[0]) != len(served[0]):
        return 0, 0
    return int((ours[0] != served[0]).sum()), len(ours[0])
