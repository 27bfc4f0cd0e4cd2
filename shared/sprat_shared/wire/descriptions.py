"""Descriptions of tensors and aliases as one zstd frame: the table of a full update, what a patched one adds.

docs/wire-format.md, sections 2 and 4: u32 number of tensors, their descriptions, the aliases' descriptions.
"""

import io
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import zstandard

from sprat_shared.errors import InvalidInput, LimitExceeded, MalformedUpdate
from sprat_shared.wire.planes import stated_bytes, unpack_frame
from sprat_shared.wire.tensors import ALIAS_MARK, DTYPES, TensorSpec, TensorTable, describe

MAX_TABLE_BYTES: Final = 1 << 25
_WHAT: Final = "the tensor table"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a reader accepts before it takes memory.

    Attributes:
        max_tensors: tensors in the table of a full or a patched update.
        max_bytes: of all its tensors together.
    """

    max_tensors: int = 1 << 16
    max_bytes: int = 64 << 30

    def check(self, table: TensorTable) -> None:
        """Raise LimitExceeded where an update declares more."""
        if len(table) > self.max_tensors:
            raise LimitExceeded(f"the update declares {len(table)} tensors, at most {self.max_tensors} are read")
        if table.nbytes > self.max_bytes:
            raise LimitExceeded(
                f"the update declares {table.nbytes} bytes of tensors, at most {self.max_bytes} are read"
            )


def pack_descriptions(specs: Sequence[TensorSpec], aliases: Mapping[str, str]) -> bytes:
    """Return the frame.

    Args:
        specs: in byte order of their names.
        aliases: each to its tensor's name, in byte order of the alias.

    Raises:
        InvalidInput: it is more than a reader takes.
    """
    plain = struct.pack("<I", len(specs)) + b"".join(map(describe, specs))
    for names in aliases.items():
        plain += ALIAS_MARK + b"".join(struct.pack("<H", len(name.encode())) + name.encode() for name in names)
    if len(specs) > Limits().max_tensors or len(plain) > MAX_TABLE_BYTES:
        raise InvalidInput(f"{len(specs)} tensors to describe, {len(plain)} bytes of names, are more than is read")
    return zstandard.ZstdCompressor(level=19).compress(plain)


def unpack_descriptions(frame: memoryview, limits: Limits) -> tuple[list[TensorSpec], dict[str, str]]:
    """Return the tensors and the aliases that a frame describes, both in byte order of their names.

    Raises:
        MalformedUpdate: it is no such frame, or not in order.
        LimitExceeded: it describes more than `limits`.
    """
    if (size := stated_bytes(frame, _WHAT)) > MAX_TABLE_BYTES:
        raise LimitExceeded(f"{_WHAT} takes {size} bytes, at most {MAX_TABLE_BYTES} are read")
    cursor = io.BytesIO(unpack_frame(frame, _WHAT))
    try:
        (count,) = struct.unpack("<I", cursor.read(4))
        if count > limits.max_tensors:
            raise LimitExceeded(f"the update declares {count} tensors, at most {limits.max_tensors} are read")
        specs = [_read_spec(cursor) for _ in range(count)]
        aliases = list(_read_aliases(cursor))
    except (struct.error, UnicodeDecodeError, IndexError, InvalidInput) as bad:
        raise MalformedUpdate(f"{_WHAT} cannot be read ({bad})") from None
    for names in ([spec.name for spec in specs], [alias for alias, _ in aliases]):
        if sorted(set(names), key=str.encode) != names:
            raise MalformedUpdate(f"{_WHAT} is not sorted by name")
    return specs, dict(aliases)


def _read_name(cursor: io.BytesIO) -> str:
    (length,) = struct.unpack("<H", cursor.read(2))
    name = cursor.read(length)
    if len(name) != length:
        raise struct.error(f"a name of {length} bytes is cut")
    return name.decode()


def _read_spec(cursor: io.BytesIO) -> TensorSpec:
    name = _read_name(cursor)
    dtype, dims = struct.unpack("<BB", cursor.read(2))
    return TensorSpec(name, DTYPES[dtype], struct.unpack(f"<{dims}Q", cursor.read(8 * dims)))


def _read_aliases(cursor: io.BytesIO) -> Iterator[tuple[str, str]]:
    while mark := cursor.read(2):
        if mark != ALIAS_MARK:
            raise struct.error("bytes after the last tensor")
        yield _read_name(cursor), _read_name(cursor)
