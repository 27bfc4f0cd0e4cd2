"""The labelled samples that applications added, for each model (`holdout`)."""

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from sprat_client.agent.durable import Disk
from sprat_client.agent.settings import HoldoutSettings

if TYPE_CHECKING:
    from sprat_client.agent.holdout import KeptHoldout


class Holdouts:
    """The samples that applications added, by model.

    Args:
        folder: `holdout` in the agent folder.
        disk: where they are written.
        settings: bounds for each model.
    """

    def __init__(self, folder: Path, disk: Disk, settings: HoldoutSettings) -> None:
        self._folder, self._disk, self._settings = folder, disk, settings
        self._lock = threading.Lock()
        self._kept: dict[str, KeptHoldout] = {}

    def of(self, model: str) -> "KeptHoldout":
        """Return the samples of a model; they are found on the disk when they are first asked for."""
        from sprat_client.agent.holdout import KeptHoldout  # noqa: PLC0415  # numpy, which only a model needs

        with self._lock:
            if model not in self._kept:
                self._kept[model] = KeptHoldout(self._folder / model, self._disk, self._settings)
            return self._kept[model]

    def folder_of(self, model: str) -> Path:
        """Return where the samples of a model lie."""
        return self._folder / model
