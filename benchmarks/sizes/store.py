"""States of the module that take long to make, kept in the cache folder under the digest of the code that made them."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor


class Store:
    """The folder of one problem. Files are written beside their name and renamed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def scratch(self, name: str) -> Path:
        """Return a folder for a method's own files."""
        path = self._folder / name
        path.mkdir(exist_ok=True)
        return path

    def state(self, name: str, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return a state of the module, made only once."""
        path = self._folder / f"{name}.pt"
        if not path.exists():
            beside = self._folder / f"{name}.{os.getpid()}"
            torch.save(dict(make()), beside)
            beside.replace(path)
        state: dict[str, Tensor] = torch.load(path, weights_only=True)
        return state
