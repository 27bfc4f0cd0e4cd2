"""What a retrain has finished, kept on disk so that a second attempt goes on from there."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Final

import torch
from torch import Tensor

from sprat_server.compress import updates
from sprat_server.compress.updates import Updated
from sprat_shared.errors import UpdateRejected
from sprat_shared.wire.tensors import TensorSource

_log: Final = logging.getLogger(__name__)


class Checkpoints:
    """What a retrain has finished, in a folder of its own; None keeps nothing.

    Files are written beside their name and renamed. One that a power cut tore is as if it were not there.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        if folder is not None:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def teacher(self) -> dict[str, Tensor] | None:
        """Return the state of the full retrain if an earlier attempt finished it."""
        if self._folder is None or not (path := self._folder / "teacher.pt").exists():
            return None
        try:
            state: dict[str, Tensor] = torch.load(path, weights_only=True)
        except (RuntimeError, EOFError, UnpicklingError, OSError) as e:
            _log.warning("the full retrain of an earlier attempt cannot be read; it is done again: %s", e)
            return None
        return state

    def keep_teacher(self, state: Mapping[str, Tensor]) -> None:
        """Keep the full retrain's state."""
        if self._folder is not None:
            beside = self._folder / f"teacher.{os.getpid()}"
            torch.save(dict(state), beside)
            beside.replace(self._folder / "teacher.pt")

    def candidate(self, name: str, base: TensorSource) -> Updated | None:
        """Return a candidate if an earlier attempt finished it."""
        if self._folder is None or not (path := self._folder / f"{name}.update").exists():
            return None
        try:
            return updates.decode(path.read_bytes(), base)
        except (UpdateRejected, OSError) as e:
            _log.warning("candidate %s of an earlier attempt cannot be read; it is done again: %s", name, e)
            return None

    def keep_candidate(self, name: str, data: bytes) -> None:
        """Keep the update file of a candidate."""
        if self._folder is not None:
            beside = self._folder / f"{name}.{os.getpid()}"
            beside.write_bytes(data)
            beside.replace(self._folder / f"{name}.update")
