"""Removes what no slot needs: releases, tensors, downloads, what cuts left half written. Checks the other slot."""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from sprat_client.agent.durable import is_temporary, remove
from sprat_client.agent.facts import FACTS_FILE
from sprat_client.agent.guarded import GUARD_FILE
from sprat_client.agent.machine import ModelMachine
from sprat_client.agent.room import code_of
from sprat_client.agent.states import BUILT
from sprat_client.agent.steps import Workshop
from sprat_shared.errors import SpratError

_log = logging.getLogger(__name__)
# Commands on site, and the guard's thread, may be writing them now.
_OF_OTHERS: Final = frozenset({f".{FACTS_FILE}.new", ".agent.json.new", f".{GUARD_FILE}.new"})


class Upkeep:
    """Keeps one agent's folder to what its slots need.

    Args:
        shop: what the agent works with.
        planned: returns the releases that plans of the site need, by model.
    """

    def __init__(self, shop: Workshop, planned: Callable[[], Mapping[str, set[str]]]) -> None:
        self._shop, self._planned = shop, planned
        self._tidied: Any = None  # how things stood when it was done last
        self._checked: set[str] = set()  # models whose other slot was looked at since the start

    def tidy(self, machines: Collection[ModelMachine]) -> None:
        """Tidy up, if anything changed and no model is at something that needs more than slots and a built release."""
        planned = self._planned()
        stands: Any = (
            planned,
            [
                (m.model, m.record.state, m.record.work and m.record.work.release_id, m.shelf.slots_or_none())
                for m in machines
            ],
        )
        if stands == self._tidied or not all(machine.is_settled for machine in machines):
            return
        try:
            for machine in machines:
                if machine.model not in self._checked:
                    machine.active.check_previous()
                    self._checked.add(machine.model)
            self._collect(machines, planned)
        except (SpratError, OSError, MemoryError) as bad:
            _log.warning("not cleaned up", extra={"code": code_of(bad), "detail": str(bad)})
            return
        self._tidied = stands

    def _collect(self, machines: Collection[ModelMachine], planned: Mapping[str, set[str]]) -> None:
        shop = self._shop
        wanted: set[bytes] = set()
        for machine in machines:
            for manifest in machine.shelf.collect(_kept(machine) | planned.get(machine.model, set())):
                wanted.update(manifest.files)
        shop.store.collect(wanted)
        shop.blobs = {}
        shop.reserve.give_back()
        for file in (*_files(shop.downloads), *self._left_by_cuts()):
            remove(shop.disk, file)

    def _left_by_cuts(self) -> Iterator[Path]:
        """Yield temporary files, which writes that were cut left; those in the store and of releases are gone."""
        folder = self._shop.settings.folder
        places = [
            folder,
            folder / "outbox",
            folder / "site",
            *(folder / "trust").glob("**/"),
            *(folder / "models").glob("*/"),
        ]
        for place in places:
            yield from (file for file in _files(place) if is_temporary(file.name) and file.name not in _OF_OTHERS)


def _kept(machine: ModelMachine) -> set[str]:
    """Return the release ids that must stay: of both slots, and of a release that lies whole beside them."""
    slots, record = machine.shelf.slots(), machine.record
    kept = {slot.release_id for slot in (slots.active, slots.previous) if slot is not None}
    if record.state in BUILT and record.work is not None and record.work.release_id is not None:
        kept.add(record.work.release_id)
    return kept


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
