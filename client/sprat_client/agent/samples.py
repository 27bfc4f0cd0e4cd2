"""Samples of this device, which never leave it: labelled ones to validate on, and inputs of any kind."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from sprat_client.runtime.ports import Array
from sprat_shared.errors import InvalidInput
from sprat_shared.wire.safetensors import SafetensorsFile

_log = logging.getLogger(__name__)
_SUFFIXES: Final = frozenset({".npz", ".safetensors"})
_INVALID: Final = "holdout.invalid"


@dataclass(frozen=True, slots=True)
class Holdout:
    """Labelled samples of this device.

    Attributes:
        inputs: (n, ...).
        labels: (n,) integers.
    """

    inputs: Array
    labels: Array


def load_holdout(path: Path) -> Holdout:
    """Read a holdout file, or all of a folder, in order of their names.

    Raises:
        InvalidInput: there is none, or it cannot be used.
    """
    read = [_labelled(file) for file in _files(path)]
    inputs = _together(path, [inputs for inputs, _ in read])
    labels = np.concatenate([labels for _, labels in read])
    if not len(labels):
        raise InvalidInput(f"{path}: no samples in it", code=_INVALID)
    return Holdout(inputs, labels)


def joined(owners: Holdout | None, kept: Holdout | None) -> Holdout | None:
    """Return the owner's samples and those that applications added, together; None: there are none.

    Where they do not fit together, the owner's count: what he gave is what he wants to be judged by.
    """
    if owners is None or kept is None:
        return owners or kept
    if owners.inputs.shape[1:] != kept.inputs.shape[1:]:
        _log.warning(
            "samples that applications added do not fit the holdout files, and are not used",
            extra={"files": owners.inputs.shape[1:], "added": kept.inputs.shape[1:]},
        )
        return owners
    return Holdout(np.concatenate([owners.inputs, kept.inputs]), np.concatenate([owners.labels, kept.labels]))


def load_inputs(path: Path) -> Array:
    """Read the inputs (n, ...) of a file or of all of a folder, in order of their names; labels are not looked at.

    Raises:
        InvalidInput: there is none, or it cannot be used.
    """
    return _together(path, [_arrays(file, ["inputs"])[0] for file in _files(path)])


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)
    if not files:
        raise InvalidInput(f"{path}: no .npz or .safetensors file in it", code=_INVALID)
    return files


def _together(path: Path, read: Sequence[Array]) -> Array:
    try:
        inputs = np.concatenate(read)
    except ValueError as bad:
        raise InvalidInput(f"{path}: its files do not fit together: {bad}", code=_INVALID) from bad
    if inputs.dtype.kind == "f" and not np.isfinite(inputs).all():
        raise InvalidInput(f"{path}: inputs hold NaN or Inf", code=_INVALID)
    return inputs


def _labelled(file: Path) -> tuple[Array, Array]:
    inputs, labels = _arrays(file, ["inputs", "labels"])
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or inputs.shape[:1] != labels.shape:
        raise InvalidInput(
            f"{file}: inputs {inputs.shape} and labels {labels.shape} of {labels.dtype}: labels must be one integer "
            "per sample",
            code=_INVALID,
        )
    return inputs, labels


def _arrays(file: Path, names: Sequence[str]) -> list[Array]:
    """Return the arrays of these names."""
    try:
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as arrays:
                return [arrays[name] for name in names]
        if file.suffix == ".safetensors":
            with SafetensorsFile(file) as tensors:
                return [np.array(tensors.read(tensors.table.index_of(name))) for name in names]
    except KeyError as bad:
        raise InvalidInput(f"{file}: has no array {bad}; {' and '.join(names)} are needed", code=_INVALID) from bad
    except (OSError, ValueError, EOFError) as bad:
        raise InvalidInput(f"{file}: cannot be read: {bad}", code=_INVALID) from bad
    raise InvalidInput(f"{file}: a file of samples is .npz or .safetensors", code=_INVALID)
