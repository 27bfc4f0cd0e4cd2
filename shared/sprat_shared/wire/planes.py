"""Frames of lossless records: differences of bits, as byte planes, packed with zstd (docs/wire-format.md, section 6).

Values near each other should have differences near zero in every byte. A float's bits, read as an integer, are first
made to grow with the value; the difference is folded so that small negative ones are small too; then all lowest bytes
come first, all highest last, where zstd finds long runs.
"""

from typing import Final

import numpy as np
import numpy.typing as npt
import zstandard

from sprat_shared.errors import MalformedUpdate
from sprat_shared.wire.tensors import Array, TensorSpec

_FLOATS: Final = frozenset({"F32", "F16", "BF16", "F64"})
_WINDOW: Final = 1 << 23  # bytes of history that a decoder must keep; bounded so that a file cannot ask for more
_CHUNK: Final = 1 << 16  # values worked on at a time: they stay in the processor's cache
Bits = npt.NDArray[np.unsignedinteger]


def encode_planes(spec: TensorSpec, old: Array, new: Array, *, level: int = 19) -> bytes:
    """Return the frame that turns `old` into `new`, both in storage dtype and of the spec's shape."""
    width = spec.itemsize
    planes = np.empty((width, spec.size), np.uint8)
    for at in range(0, spec.size, _CHUNK):
        folded = _fold(_ordered(spec, _bits(new, at)) - _ordered(spec, _bits(old, at)))
        planes[:, at : at + _CHUNK] = folded.astype(folded.dtype.newbyteorder("<")).view(np.uint8).reshape(-1, width).T
    params = zstandard.ZstdCompressionParameters.from_level(level, source_size=spec.nbytes, window_log=23)
    return zstandard.ZstdCompressor(compression_params=params).compress(planes.tobytes())


def decode_planes(spec: TensorSpec, old: Array, frame: bytes | memoryview) -> Array:
    """Return the new tensor, storage dtype, spec's shape.

    Memory: the planes and the result, twice the tensor.

    Raises:
        MalformedUpdate: the frame does not unpack to exactly the tensor's bytes.
    """
    width = spec.itemsize
    said = stated_bytes(frame, f"tensor {spec.name!r}: its frame")
    if said != spec.nbytes:
        raise MalformedUpdate(f"tensor {spec.name!r}: its frame gives {said} bytes, it has {spec.nbytes}")
    plain = unpack_frame(frame, f"tensor {spec.name!r}: its frame")
    planes = np.frombuffer(plain, np.uint8).reshape(width, spec.size)
    out = np.empty(spec.shape, spec.storage)
    flat = out.reshape(-1).view(f"<u{width}")
    for at in range(0, spec.size, _CHUNK):
        part = planes[:, at : at + _CHUNK]
        items = np.empty((part.shape[1], width), np.uint8)
        for place in range(width):
            items[:, place] = part[place]
        folded = items.view(f"<u{width}").reshape(-1)
        flat[at : at + _CHUNK] = _unordered(spec, _ordered(spec, _bits(old, at)) + _unfold(folded))
    return out


def stated_bytes(frame: bytes | memoryview, subject: str) -> int:
    """Return how many bytes a zstd frame says that it unpacks to, at least 1; nothing is unpacked.

    Args:
        frame: the whole frame.
        subject: begins the sentence of an error.

    Raises:
        MalformedUpdate: it is no zstd frame, says no size, or asks for a window above 8 MiB.
    """
    try:
        said = zstandard.get_frame_parameters(frame)
    except zstandard.ZstdError as bad:
        raise MalformedUpdate(f"{subject} is no zstd frame ({bad})") from None
    if said.content_size in {0, zstandard.CONTENTSIZE_UNKNOWN} or said.window_size > _WINDOW or said.dict_id:
        raise MalformedUpdate(f"{subject} must state its size and keep to a window of {_WINDOW} bytes, no dictionary")
    return int(said.content_size)


def unpack_frame(frame: bytes | memoryview, subject: str) -> bytes:
    """Return what one zstd frame holds; check `stated_bytes` first, that much memory is taken.

    Raises:
        MalformedUpdate: it is cut, corrupted, or followed by further bytes.
    """
    try:
        return zstandard.ZstdDecompressor(max_window_size=_WINDOW).decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as bad:
        raise MalformedUpdate(f"{subject} does not unpack ({bad})") from None


def _bits(array: Array, at: int) -> Bits:
    """Return the bits of up to `_CHUNK` values as unsigned integers."""
    flat = array.reshape(-1)[at : at + _CHUNK]
    return flat.view(f"<u{flat.dtype.itemsize}")


def _ordered(spec: TensorSpec, bits: Bits) -> Bits:
    if spec.dtype not in _FLOATS:
        return bits
    return bits ^ (_sign(bits) | _top(bits))  # all bits of a negative number, the top bit of others


def _unordered(spec: TensorSpec, ordered: Bits) -> Bits:
    if spec.dtype not in _FLOATS:
        return ordered
    return ordered ^ (~_sign(ordered) | _top(ordered))


def _sign(bits: Bits) -> Bits:
    """Return all ones where the top bit is set, else zero."""
    width = bits.dtype.itemsize
    return (bits.view(f"<i{width}") >> (8 * width - 1)).view(bits.dtype)


def _top(bits: Bits) -> np.unsignedinteger:
    return bits.dtype.type(1 << (8 * bits.dtype.itemsize - 1))


def _fold(difference: Bits) -> Bits:
    """Map 0, -1, 1, -2 and so on to 0, 1, 2, 3 and so on."""
    return (difference << difference.dtype.type(1)) ^ _sign(difference)


def _unfold(folded: Bits) -> Bits:
    one = folded.dtype.type(1)
    return (folded >> one) ^ (~(folded & one) + one)
