"""Inputs of a task from files that somebody names on the command line."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sprat_client.runtime.ports import Array
from sprat_client.runtime.tensor_bodies import decode_tensors
from sprat_shared.errors import InvalidInput


def read_inputs(named: Sequence[str]) -> dict[str, Array]:
    """Return arrays by name.

    Args:
        named: `NAME=FILE`, each a .npy file, or a .safetensors file with one tensor.

    Raises:
        InvalidInput: one is not of that form, or cannot be read.
    """
    inputs: dict[str, Array] = {}
    for text in named:
        name, equals, file = text.partition("=")
        if not equals or not name or not file or name in inputs:
            raise InvalidInput(f"--input {text}: write NAME=FILE, each name once")
        inputs[name] = _read(text, Path(file))
    return inputs


def _read(text: str, file: Path) -> Array:
    try:
        if file.suffix == ".safetensors":
            tensors = decode_tensors(file.read_bytes())
            if len(tensors) != 1:
                raise InvalidInput(f"--input {text}: the file holds {len(tensors)} tensors, not one")
            return next(iter(tensors.values()))
        array = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as bad:
        raise InvalidInput(f"--input {text}: {bad}") from bad
    if not isinstance(array, np.ndarray):
        raise InvalidInput(f"--input {text}: an .npy file is needed")
    return array
