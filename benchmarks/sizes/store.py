"""What was computed, kept in the cache folder: states and points, under the digest of the code that made them."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from sprat_server.training.evaluate import Share


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One method with one setting on one problem.

    Attributes:
        setting: in words.
        bytes: of the payload.
        validation: share of the full retrain's gain on the validation split; choices are made on this one.
        error: standard error of that share.
        test: the same on the test split; None where the full retrain gained nothing there.
        seconds: that making and judging it took.
    """

    setting: str
    bytes: int
    validation: float
    error: float
    test: float | None
    seconds: float

    def keeps(self, share: float) -> bool:
        """Say whether the validation split is proof enough of a share, by the rule of a retrain (`Share.keeps`)."""
        return Share(self.validation, self.error).keeps(share)


def source_digest(*files: Path) -> str:
    """Return eight hex digits that change with the files' contents."""
    whole = hashlib.sha256()
    for file in files:
        whole.update(file.read_bytes())
    return whole.hexdigest()[:8]


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

    def points(self, method: str) -> dict[str, Point]:
        """Return the points of a method by setting."""
        path = self._folder / f"{method}.json"
        rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        return {row["setting"]: Point(**row) for row in rows}

    def keep(self, method: str, points: Mapping[str, Point]) -> None:
        """Write the points of a method."""
        path, beside = self._folder / f"{method}.json", self._folder / f"{method}.{os.getpid()}"
        beside.write_text(json.dumps([asdict(point) for point in points.values()], indent=1) + "\n", encoding="utf-8")
        beside.replace(path)
