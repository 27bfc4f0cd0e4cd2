"""A bounded reader and a canonical writer of safetensors files (the format's own page: u64 length, JSON header, data).

The published numpy binding cannot hold bfloat16, so the two are our own. Reading maps the file; nothing is trusted:
the header is bounded, offsets must tile the data exactly, and names, shapes and types are checked before use.
"""

import json
import mmap
import os
import struct
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np

from sprat_shared.errors import InvalidInput
from sprat_shared.wire.tensors import Array, TensorSource, TensorSpec, TensorTable, raw_bytes, tensor_sha256

ALIASES_KEY: Final = "sprat.aliases"  # metadata key: JSON object, tied name to the name that is in the file
MAX_HEADER_BYTES: Final = 100 << 20  # the format's own bound
_LENGTH: Final = struct.Struct("<Q")


class SafetensorsFile:
    """The tensors of a safetensors file, mapped read-only. Use it as a context manager, or close it.

    Args:
        path: the file.

    Raises:
        InvalidInput: it cannot be read, or is not a well-formed safetensors file; the message names the tensor.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        try:
            with self._path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < _LENGTH.size:
                    raise InvalidInput(f"{path}: {size} bytes are too few for a safetensors file")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as bad:
            raise InvalidInput(f"{path}: cannot be read ({bad.strerror or bad})") from bad
        (length,) = _LENGTH.unpack_from(self._map)
        self._start = _LENGTH.size + length
        if length > MAX_HEADER_BYTES or self._start > size:
            raise InvalidInput(f"{path}: not a safetensors file (its header would take {length} bytes of {size})")
        self.metadata, entries = self._header(self._map[_LENGTH.size : self._start])
        self.table = TensorTable((spec for spec, _ in entries), self._aliases())
        at = {spec.name: begin for spec, begin in entries}
        self._offsets = [at[spec.name] for spec in self.table]
        self._check_layout(entries, size - self._start)

    def _header(self, text: bytes) -> tuple[dict[str, str], list[tuple[TensorSpec, int]]]:
        try:
            header = json.loads(text, object_pairs_hook=self._unique)
            metadata = header.pop("__metadata__", {})
            if not isinstance(metadata, dict):
                raise InvalidInput(f"{self._path}: __metadata__ must be an object")
            return metadata, [self._entry(name, said) for name, said in header.items()]
        except (ValueError, TypeError, AttributeError, RecursionError) as bad:
            raise InvalidInput(f"{self._path}: its safetensors header is not readable ({bad})") from None

    def _aliases(self) -> dict[str, str]:
        try:
            aliases = json.loads(self.metadata.get(ALIASES_KEY, "{}"))
        except (ValueError, TypeError, RecursionError):
            aliases = None
        if not isinstance(aliases, dict) or not all(isinstance(name, str) for name in aliases.values()):
            raise InvalidInput(f"{self._path}: metadata {ALIASES_KEY} must map tensor names to tensor names")
        return aliases

    def _unique(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise InvalidInput(f"{self._path}: a name stands twice in the safetensors header")
        return dict(pairs)

    def _entry(self, name: str, said: Any) -> tuple[TensorSpec, int]:
        match said:
            case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
                if not all(isinstance(d, int) and not isinstance(d, bool) for d in shape):
                    raise InvalidInput(f"{self._path}: tensor {name!r}: shape {shape!r:.80} is not a list of integers")
                spec = TensorSpec(name, dtype, tuple(shape))
                if end - begin != spec.nbytes or begin < 0:
                    raise InvalidInput(
                        f"{self._path}: tensor {name!r}: {spec.dtype} {spec.shape} takes {spec.nbytes} bytes, "
                        f"its offsets give {end - begin}"
                    )
                return spec, begin
            case _:
                raise InvalidInput(f"{self._path}: tensor {name!r}: dtype, shape and data_offsets are expected")

    def _check_layout(self, entries: list[tuple[TensorSpec, int]], size: int) -> None:
        order = sorted((begin, begin + spec.nbytes) for spec, begin in entries)
        if any(a[1] != b[0] for a, b in pairwise([(0, 0), *order, (size, size)])):
            raise InvalidInput(f"{self._path}: the tensors do not fill its {size} data bytes exactly; it may be cut")

    def read(self, index: int) -> Array:
        """Return tensor `index` as a read-only view of the file, in its storage dtype and shape."""
        spec: TensorSpec = self.table[index]
        if not spec.size:
            return np.empty(spec.shape, spec.storage)
        flat = np.frombuffer(self._map, spec.storage, spec.size, self._start + self._offsets[index])
        return flat.reshape(spec.shape)

    def sha256(self, index: int) -> bytes:
        """Return the SHA-256 of the tensor's raw bytes; its pages are not kept in memory."""
        digest = tensor_sha256(self.read(index))
        self.release_pages()
        return digest

    def release_pages(self) -> None:
        """Let the kernel drop what was read so far: memory stays flat while a large file is walked through."""
        self._map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Unmap the file. Views of it that are still in use keep it mapped until they go."""
        try:
            self._map.close()
        except BufferError:
            return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, bad: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def safetensors_header(table: TensorTable, metadata: Mapping[str, str] | None = None) -> bytes:
    """Return length and header of the canonical file for `table`: names in table order, padded to 8 bytes.

    Args:
        table: the tensors.
        metadata: further entries of `__metadata__`, such as the `format` that some loaders want.
    """
    header: dict[str, Any] = {}
    entries = {key: value for key, value in (metadata or {}).items() if key != ALIASES_KEY}
    if table.aliases:
        entries[ALIASES_KEY] = json.dumps(table.aliases, separators=(",", ":"))
    if entries:
        header["__metadata__"] = dict(sorted(entries.items()))
    at = 0
    for spec in table:
        header[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [at, at + spec.nbytes]}
        at += spec.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return _LENGTH.pack(len(text)) + text


def write_safetensors(path: Path | str, source: TensorSource) -> None:
    """Write the canonical safetensors file of `source`: table order, no gaps; equal tensors give equal bytes.

    Args:
        path: the file to make or replace. Writing is plain; durability is the caller's.
        source: the tensors; one is read at a time.
    """
    with Path(path).open("wb") as file:
        file.write(safetensors_header(source.table))
        file.writelines(raw_bytes(source.read(index)) for index in range(len(source.table)))
