"""Labelled samples that applications add while they work: kept durably and bounded, the newest of each class.

    holdout/<model>/<first>-<last>.safetensors     inputs (n, ...), labels (n,), numbers (n,): of one or more calls
Samples are numbered in the order they came. Where there are too many, the oldest of the largest class goes, so that
what is kept follows a drift and a frequent class does not push a rare one out. Files are whole or not there: small ones
are merged, and a merged one covers the numbers of those that a cut left behind.
"""

import logging
import re
import threading
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from sprat_client.agent.durable import Disk, make_folder, remove, write_file
from sprat_client.agent.samples import Holdout
from sprat_client.agent.settings import HoldoutSettings
from sprat_client.runtime.ports import Array, PortSpec, fit_input
from sprat_client.runtime.tensor_bodies import decode_tensors, encode_tensors
from sprat_shared.errors import InvalidInput, SpratError

_log = logging.getLogger(__name__)
_NAME: Final = re.compile(r"(\d{15})-(\d{15})\.safetensors")
_INVALID: Final = "holdout.invalid"
_MERGED: Final = 8  # files of one size class become one: each sample is written about log8(n) times


@dataclass(slots=True)
class _File:
    """One file: its numbers span `first` to `last`; which of its samples still count."""

    path: Path
    first: int
    last: int
    rows: int
    nbytes: int  # of one sample
    live: set[int]

    @property
    def tier(self) -> int:
        return (self.rows.bit_length() - 1) // 3


class KeptHoldout:
    """The samples of one model.

    Args:
        folder: of this model's.
        disk: where it is written.
        settings: bounds.
    """

    def __init__(self, folder: Path, disk: Disk, settings: HoldoutSettings) -> None:
        self._folder, self._disk, self._settings = folder, disk, settings
        self._lock = threading.RLock()
        self._files: list[_File] = []
        self._classes: dict[int, deque[tuple[int, _File]]] = {}  # label to number and file, oldest first
        self._bytes = self._count = self._next = 0
        self._read()

    def __len__(self) -> int:
        return self._count

    @property
    def added(self) -> int:
        """How many were ever added."""
        return self._next

    @property
    def nbytes(self) -> int:
        """Bytes of the inputs that count; the files take up to about twice that."""
        return self._bytes

    def counts(self) -> Counter[int]:
        """Return how many samples each label has."""
        with self._lock:
            return Counter({label: len(kept) for label, kept in self._classes.items() if kept})

    def add(self, spec: PortSpec, inputs: Array, labels: Array | Sequence[int]) -> int:
        """Keep samples; once this returns, a power cut does not take them. Return how many are kept in all.

        Args:
            spec: the input of the model.
            inputs: (n, ...), as the model takes them.
            labels: (n,) whole numbers, not negative.

        Raises:
            InvalidInput: they do not fit, hold NaN or Inf, or are more at once than are ever kept.
            OSError: the disk failed; nothing was kept.
        """
        inputs = np.ascontiguousarray(fit_input(spec, np.asarray(inputs)))
        labels = np.asarray(labels)
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) != len(inputs) or not len(labels):
            raise InvalidInput(
                f"inputs {inputs.shape} and labels {labels.shape} of {labels.dtype}: there must be one whole number "
                "for each sample",
                code=_INVALID,
            )
        if labels.min() < 0:
            raise InvalidInput(f"label {labels.min()}: classes are counted from 0", code=_INVALID)
        if inputs.dtype.kind == "f" and not np.isfinite(inputs).all():
            raise InvalidInput("inputs hold NaN or Inf", code=_INVALID)
        if len(inputs) > self._settings.most_samples or inputs.nbytes > self._settings.most_bytes:
            raise InvalidInput(
                f"{len(inputs)} samples of {inputs.nbytes} bytes at once; at most {self._settings.most_samples} "
                f"samples and {self._settings.most_bytes} bytes are kept",
                code=_INVALID,
            )
        with self._lock:
            numbers = np.arange(self._next, self._next + len(inputs), dtype=np.int64)
            self._take(self._write(inputs, labels.astype(np.int64), numbers), labels, numbers)
            self._forget_oldest()
            self._merge()
            return self._count

    def load(self, spec: PortSpec) -> Holdout | None:
        """Return the samples that fit the model's input, oldest first; None: there are none."""
        inputs, labels, numbers = [], [], []
        with self._lock:
            for file in self._files:
                arrays = self._arrays_or_none(file.path)
                if arrays is None or arrays[0].dtype != spec.dtype or not _fits(spec, arrays[0]):
                    continue
                alive = np.isin(arrays[2], list(file.live))
                inputs.append(arrays[0][alive])
                labels.append(arrays[1][alive])
                numbers.append(arrays[2][alive])
        shapes = {array.shape[1:] for array in inputs}
        if not inputs or len(shapes) > 1 or not sum(map(len, labels)):
            return None
        order = np.argsort(np.concatenate(numbers))
        return Holdout(np.concatenate(inputs)[order], np.concatenate(labels)[order])

    # files -------------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        """Find what is kept; remove what a cut left behind of merging, and what cannot be read."""
        if not self._disk.exists(self._folder):
            return
        found = sorted(
            (int(match[1]), -int(match[2]), name)
            for name in self._disk.names(self._folder)
            if (match := _NAME.fullmatch(name))
        )
        covered = -1
        for first, last, name in found:
            try:
                arrays = None if -last <= covered else self._arrays(self._folder / name)
                if arrays is None:
                    remove(self._disk, self._folder / name)
                    continue
            except OSError as bad:  # the disk may do it at the next start
                _log.error("samples cannot be read now", extra={"file": name, "detail": str(bad)})
                continue
            covered = -last
            _, labels, numbers = arrays
            self._take(_file(self._folder / name, first, -last, arrays[0]), labels, numbers)
        self._next = covered + 1
        self._forget_oldest()

    def _arrays(self, path: Path) -> tuple[Array, npt.NDArray[np.int64], npt.NDArray[np.int64]] | None:
        """Return inputs, labels and numbers of a file; None where it is damaged. Raises OSError."""
        try:
            arrays = decode_tensors(self._disk.read(path))
            inputs, labels, numbers = arrays["inputs"], arrays["labels"], arrays["numbers"]
        except (SpratError, KeyError) as bad:
            _log.error("samples cannot be read", extra={"file": str(path), "detail": str(bad)})
            return None
        if not len(inputs) == len(labels) == len(numbers):
            return None
        return inputs, labels.astype(np.int64), numbers.astype(np.int64)

    def _arrays_or_none(self, path: Path) -> tuple[Array, npt.NDArray[np.int64], npt.NDArray[np.int64]] | None:
        try:
            return self._arrays(path)
        except OSError as bad:
            _log.error("samples cannot be read now", extra={"file": str(path), "detail": str(bad)})
            return None

    def _write(
        self,
        inputs: Array,
        labels: npt.NDArray[np.int64],
        numbers: npt.NDArray[np.int64],
        span: tuple[int, int] | None = None,
    ) -> _File:
        first, last = span or (int(numbers[0]), int(numbers[-1]))
        path = self._folder / f"{first:015d}-{last:015d}.safetensors"
        make_folder(self._disk, self._folder)
        write_file(self._disk, path, encode_tensors({"inputs": inputs, "labels": labels, "numbers": numbers}))
        return _file(path, first, last, inputs)

    def _take(self, file: _File, labels: Array, numbers: npt.NDArray[np.int64]) -> None:
        self._files.append(file)
        self._next = max(self._next, file.last + 1)
        for label, number in zip(labels.tolist(), numbers.tolist(), strict=True):
            self._classes.setdefault(label, deque()).append((number, file))
            file.live.add(number)
        self._count += len(labels)
        self._bytes += len(labels) * file.nbytes

    def _forget_oldest(self) -> None:
        """While there are too many, let the oldest of the largest class go, and a file of which nothing counts."""
        while self._count > self._settings.most_samples or self._bytes > self._settings.most_bytes:
            label = max(self._classes, key=self._rank)
            number, file = self._classes[label].popleft()
            file.live.remove(number)
            self._count -= 1
            self._bytes -= file.nbytes
            if not file.live:
                self._files.remove(file)
                self._remove(file)

    def _rank(self, label: int) -> tuple[int, int]:
        """Order classes by their size; of equal ones the one with the oldest sample is the larger."""
        kept = self._classes[label]
        return len(kept), -kept[0][0] if kept else 0

    def _remove(self, file: _File) -> None:
        try:
            remove(self._disk, file.path)
        except OSError as bad:  # the next start finds that nothing in it counts
            _log.warning("a file of samples is left behind", extra={"file": str(file.path), "detail": str(bad)})

    def _merge(self) -> None:
        """Merge the newest files where many are of one size, and write anew one of which most does not count."""
        for group in list(self._groups()):
            arrays = [(file, self._arrays_or_none(file.path)) for file in group]
            kept = [(file, one) for file, one in arrays if one is not None]
            if len(kept) < len(group) or len({(one[0].dtype, one[0].shape[1:]) for _, one in kept}) > 1:
                continue
            alive = [np.isin(one[2], list(file.live)) for file, one in kept]
            inputs, labels, numbers = (
                np.concatenate([one[at][mask] for (_, one), mask in zip(kept, alive, strict=True)]) for at in range(3)
            )
            span = (min(file.first for file in group), max(file.last for file in group))
            try:
                merged = self._write(inputs, labels, numbers, span)
            except OSError as bad:  # the samples are kept, in smaller files
                _log.warning("files of samples are not merged", extra={"detail": str(bad)})
                return
            merged.live = set(numbers.tolist())
            self._replace(group, merged)

    def _groups(self) -> Iterator[list[_File]]:
        for file in self._files:
            if 2 * len(file.live) < file.rows:
                yield [file]
                return
        newest = self._files[-_MERGED:]
        if len(newest) == _MERGED and len({file.tier for file in newest}) == 1:
            yield newest

    def _replace(self, group: list[_File], merged: _File) -> None:
        gone = {id(file) for file in group}
        for label, kept in self._classes.items():
            self._classes[label] = deque((number, merged if id(file) in gone else file) for number, file in kept)
        at = self._files.index(group[0])
        self._files[at : at + len(group)] = [merged]
        for file in group:
            if file.path != merged.path:
                self._remove(file)


def _file(path: Path, first: int, last: int, inputs: Array) -> _File:
    rows = len(inputs)
    return _File(path, first, last, rows, inputs.nbytes // max(1, rows), set())


def _fits(spec: PortSpec, inputs: Array) -> bool:
    try:
        fit_input(spec, inputs)
    except InvalidInput:
        return False
    return True
