"""Read a dataset file: inputs, labels, and which sample is in which split. Numpy only, checked before use."""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from sprat_shared.errors import InvalidInput
from sprat_shared.wire.safetensors import SafetensorsFile

Format = Literal["npz", "safetensors"]
Split = Literal["train", "validation", "test"]

SPLITS: Final[tuple[Split, ...]] = ("train", "validation", "test")  # a split's position is its number in the file
MAX_UNPACKED_BYTES: Final = 8 << 30
MAX_CLASSES: Final = 1_000_000
UNLABELLED: Final = -1
"""The label of a training sample that nobody labelled: a retrain learns from it by distillation alone."""

_ARRAYS: Final = frozenset({"inputs", "labels", "split"})
_SHARES: Final = (0.70, 0.15)  # train, validation; the rest is the test split
_ZIP_MAGIC: Final = b"PK\x03\x04"

Array = npt.NDArray[Any]


class DatasetInvalid(InvalidInput):
    """The file is no dataset; the message says what is wrong with it and what to do."""

    code = "dataset.invalid"


@dataclass(frozen=True, slots=True)
class LabelledSamples:
    """Labelled samples and their split.

    Attributes:
        inputs: (n, ...), a finite float or integer dtype; a view of the file where it can be mapped.
        labels: (n,) int64, 0 to classes - 1; `UNLABELLED` only where `split` says train.
        split: (n,) uint8, 0 train | 1 validation | 2 test.
        given_split: the file names the split; else it was made by the rule of `seeded_split`.
        format: of the file.
    """

    inputs: Array
    labels: npt.NDArray[np.int64]
    split: npt.NDArray[np.uint8]
    given_split: bool
    format: Format

    @property
    def classes(self) -> int:
        """Return the number of classes: the largest label + 1."""
        return int(self.labels.max()) + 1

    def indices(self, name: Split) -> npt.NDArray[np.int64]:
        """Return the positions of a split's samples in the file, rising."""
        return np.flatnonzero(self.split == SPLITS.index(name)).astype(np.int64)


def seeded_split(samples: int) -> npt.NDArray[np.uint8]:
    """Return the split of a file that names none: about 70/15/15, (n,) uint8, the same on every machine.

    Samples are ordered by the SplitMix64 hash (Steele et al., 2014) of their position; the first 70 % train.
    """
    x = np.arange(1, samples + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    order = np.argsort(x ^ (x >> np.uint64(31)), kind="stable")
    train, validation = (round(share * samples) for share in _SHARES)
    split = np.full(samples, 2, np.uint8)
    split[order[:train]] = 0
    split[order[train : train + validation]] = 1
    return split


def read_samples(path: Path) -> LabelledSamples:
    """Read and check a dataset file, `.npz` or safetensors (told apart by content).

    Raises:
        DatasetInvalid: an array is missing, unknown, of another shape or dtype, holds NaN or Inf, a label is out of
            range, or a split is empty.
    """
    with path.open("rb") as file:
        form: Format = "npz" if file.read(4) == _ZIP_MAGIC else "safetensors"
    arrays = _read_npz(path) if form == "npz" else _read_safetensors(path)
    unknown = sorted(set(arrays) - _ARRAYS)
    if unknown:
        raise DatasetInvalid(f"array {unknown[0]!r} is not expected; a dataset has inputs, labels and maybe split")
    for name in ("inputs", "labels"):
        if name not in arrays:
            raise DatasetInvalid(f"array {name!r} is missing; a dataset has inputs (n, ...) and labels (n,)")
    inputs = _checked_inputs(arrays["inputs"])
    labels = _checked_labels(arrays["labels"], len(inputs))
    given, labelled = arrays.get("split"), labels != UNLABELLED
    if given is None:
        split = np.zeros(len(inputs), np.uint8)  # what has no label can only be trained on
        split[labelled] = seeded_split(int(labelled.sum()))
    else:
        split = _checked_split(given, len(inputs))
    for number, name in enumerate(SPLITS):
        unknown_here = np.flatnonzero((split == number) & ~labelled)
        if number and unknown_here.size:
            raise DatasetInvalid(
                f"sample {unknown_here[0]} of the {name} split has no label ({UNLABELLED}); only training samples may "
                "go without one"
            )
        if not ((split == number) & labelled).any():
            raise DatasetInvalid(
                f"the {name} split has no labelled sample; give more samples, or an array 'split' with 0 (train), "
                "1 (validation) and 2 (test)"
            )
    return LabelledSamples(inputs, labels, split, given is not None, form)


def _read_npz(path: Path) -> dict[str, Array]:
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > MAX_UNPACKED_BYTES:
            raise DatasetInvalid(f"the file unpacks to {unpacked} bytes, at most {MAX_UNPACKED_BYTES} are read")
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (zipfile.BadZipFile, ValueError, OSError, EOFError) as bad:
        raise DatasetInvalid(
            f"the .npz file cannot be read ({bad}); write it with numpy.savez, without objects"
        ) from bad


def _read_safetensors(path: Path) -> dict[str, Array]:
    try:
        file = SafetensorsFile(path)
    except InvalidInput as bad:
        raise DatasetInvalid(
            f"the file is neither .npz nor safetensors ({str(bad).removeprefix(f'{path}: ')})"
        ) from bad
    for spec in file.table:
        if spec.dtype.startswith(("BF16", "F8")):
            raise DatasetInvalid(f"array {spec.name!r} is {spec.dtype}; store it as F32 or an integer type")
    return {spec.name: file.read(index) for index, spec in enumerate(file.table)}


def _checked_inputs(inputs: Array) -> Array:
    if inputs.dtype.kind not in "fiub" or inputs.dtype.itemsize > 8:  # noqa: PLR2004 - bytes of the widest type taken
        raise DatasetInvalid(f"inputs have dtype {inputs.dtype}; store numbers (float16 to float64, or integers)")
    if inputs.ndim < 2 or inputs.size == 0:  # noqa: PLR2004 - samples, and at least one axis of features
        raise DatasetInvalid(
            f"inputs have shape {inputs.shape}; (samples, ...) with at least one value each is expected"
        )
    if inputs.dtype.kind == "f":
        for first in range(0, len(inputs), 1024):
            chunk = inputs[first : first + 1024]
            finite = np.isfinite(chunk).reshape(len(chunk), -1).all(axis=1)
            if not finite.all():
                raise DatasetInvalid(f"sample {first + int(np.argmin(finite))} of inputs holds NaN or Inf; remove it")
    return inputs


def _checked_labels(labels: Array, samples: int) -> npt.NDArray[np.int64]:
    if labels.shape != (samples,):
        raise DatasetInvalid(f"labels have shape {labels.shape}; ({samples},) is expected, one for each input")
    if labels.dtype.kind not in "iu":
        raise DatasetInvalid(f"labels have dtype {labels.dtype}; integers from 0 are expected")
    smallest, largest = int(labels.min()), int(labels.max())
    if smallest < UNLABELLED or largest >= MAX_CLASSES:
        where = int(np.argmin(labels) if smallest < UNLABELLED else np.argmax(labels))
        raise DatasetInvalid(
            f"label {labels[where]} of sample {where} is not in 0 to {MAX_CLASSES - 1}, nor {UNLABELLED} (no label)"
        )
    if largest <= 0:
        raise DatasetInvalid("every label is 0 or missing; at least two classes are needed")
    return labels.astype(np.int64)


def _checked_split(split: Array, samples: int) -> npt.NDArray[np.uint8]:
    if split.shape != (samples,) or split.dtype.kind not in "iu":
        raise DatasetInvalid(
            f"split has shape {split.shape} and dtype {split.dtype}; ({samples},) integers are expected"
        )
    wrong = np.flatnonzero((split < 0) | (split > 2))  # noqa: PLR2004 - 0, 1, 2 as in SPLITS
    if len(wrong):
        raise DatasetInvalid(
            f"split of sample {wrong[0]} is {split[wrong[0]]}; write 0 (train), 1 (validation) or 2 (test)"
        )
    return split.astype(np.uint8)
