"""Arrays as the bytes of a safetensors file, in memory: bodies of the local endpoint, and files of samples."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np

from sprat_client.runtime.ports import Array
from sprat_shared.errors import InvalidInput
from sprat_shared.wire.safetensors import SafetensorsFile, safetensors_header
from sprat_shared.wire.tensors import DTYPES, TensorSpec, TensorTable, raw_bytes

_NUMPY: Final[Mapping[str, str]] = {  # numpy dtype to safetensors code
    TensorSpec("x", code, ()).storage: code for code in DTYPES if code not in {"BF16", "F8_E4M3", "F8_E5M2"}
}


def decode_tensors(body: bytes) -> dict[str, Array]:
    """Read a safetensors body.

    Raises:
        InvalidInput: it is not one.
    """
    descriptor = os.memfd_create("request", os.MFD_CLOEXEC)
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(body)
        with SafetensorsFile(Path(f"/proc/self/fd/{descriptor}")) as tensors:
            return {spec.name: np.array(tensors.read(index)) for index, spec in enumerate(tensors.table)}
    finally:
        os.close(descriptor)


def encode_tensors(arrays: Mapping[str, Array]) -> bytes:
    """Return a safetensors body.

    Raises:
        InvalidInput: an array is of a kind that the format does not have.
    """
    for name, array in arrays.items():
        if array.dtype.str not in _NUMPY:
            raise InvalidInput(f"{name!r} is of {array.dtype}; send numbers or booleans, little-endian")
    table = TensorTable(TensorSpec(name, _NUMPY[array.dtype.str], array.shape) for name, array in arrays.items())
    return b"".join([safetensors_header(table), *(bytes(raw_bytes(arrays[spec.name])) for spec in table)])
