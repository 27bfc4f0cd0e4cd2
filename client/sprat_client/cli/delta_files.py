"""Update files and safetensors files on disk: mapped and walked through, written beside their place and renamed."""

import errno
import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

from sprat_shared.apply import apply_update, check_arithmetic
from sprat_shared.errors import BaseMismatch, InvalidInput, TryLater
from sprat_shared.ids import parse_digest
from sprat_shared.wire.patch import patch_between
from sprat_shared.wire.records import (
    Coded,
    Dense,
    Drawn,
    Exact,
    Held,
    Identity,
    Lossless,
    LowRank,
    Record,
    Rows,
    Side,
    Subspace,
    ThreeFactors,
)
from sprat_shared.wire.records.held import PREFIX_BYTES
from sprat_shared.wire.safetensors import SafetensorsFile, safetensors_header
from sprat_shared.wire.scales import STEPS
from sprat_shared.wire.tensors import Array, TensorTable, digest_of, raw_bytes
from sprat_shared.wire.update import Flag, UpdateReader, read_header

_FULL_DISK: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
_NAMES: Final[Mapping[type[Record], str]] = {
    LowRank: "low-rank",
    Dense: "dense",
    Lossless: "lossless",
    Rows: "rows",
    ThreeFactors: "three-factors",
    Subspace: "subspace",
    Coded: "coded",
    Held: "held",
}


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write that takes the place of `path` at the end, and is gone after an error.

    Raises:
        InvalidInput: there is no such folder, or it may not be written.
        TryLater: the disk is full.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("xb") as file:
            yield file
        partial.replace(path)
    except OSError as bad:
        kind = TryLater if bad.errno in _FULL_DISK else InvalidInput
        raise kind(f"{path} cannot be written ({bad.strerror or bad})") from bad
    finally:
        partial.unlink(missing_ok=True)


class MappedUpdate:
    """An update file, mapped. Use it as a context manager.

    Args:
        path: the file.

    Raises:
        InvalidInput: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                empty = not os.fstat(file.fileno()).st_size
                self._map = None if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as bad:
            raise InvalidInput(f"{path}: cannot be read ({bad.strerror or bad})") from bad
        self.data = memoryview(self._map or b"")

    def release_pages(self) -> None:
        """Let the kernel drop what was read so far."""
        if self._map is not None:
            self._map.madvise(mmap.MADV_DONTNEED)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, bad: BaseException | None, tb: TracebackType | None) -> None:
        """Leave the map to the last view of it."""
        del self.data, self._map


class _FileSink:
    """Writes the new release as a canonical safetensors file while it is rebuilt (`apply.TensorSink`)."""

    def __init__(self, file: BinaryIO, base: SafetensorsFile | None, update: MappedUpdate) -> None:
        self._file, self._base, self._update = file, base, update
        self.tensors = self.changed = 0

    def begin(self, table: TensorTable) -> None:
        """Write the header."""
        self._table = table
        self._file.write(safetensors_header(table, self._base.metadata if self._base is not None else None))

    def keep(self, index: int, sha256: bytes) -> None:
        """Copy a tensor of the base."""
        del sha256
        if self._base is None:
            raise BaseMismatch(f"tensor {index} is to be kept from a base, and there is none")
        self._write(self._base.read(self._base.table.index_of(self._table[index].name)))

    def put(self, index: int, array: Array, sha256: bytes) -> None:
        """Write a rebuilt tensor."""
        del index, sha256
        self.changed += 1
        self._write(array)

    def _write(self, array: Array) -> None:
        self._file.write(raw_bytes(array))
        self.tensors += 1
        self._update.release_pages()
        if self._base is not None:
            self._base.release_pages()


def apply_file(base: Path, update: Path, output: Path, expected: str | None) -> dict[str, Any]:
    """Rebuild the release that the file `update` makes of the file `base` and write it to `output`.

    Returns what to print. Peak memory: about the base's largest tensors and three times the largest of them.

    Raises:
        UnsafeArithmetic: this process would compute other bits.
        UpdateRejected: the update is malformed, for another base, or gives other weights than promised.
        InvalidInput: a file cannot be used.
    """
    check_arithmetic()
    if expected is not None:
        parse_digest(expected)
    with MappedUpdate(update) as mapped:
        full = Flag.FULL in read_header(mapped.data).flags
        source = None if full else SafetensorsFile(base)
        with replacing(output) as file:
            sink = _FileSink(file, source, mapped)
            weights = apply_update(mapped.data, source, sink, expected=expected)
            written = file.tell()
        update_bytes = len(mapped.data)
    if source is not None:
        source.close()
    return {
        "file": str(output),
        "bytes": written,
        "update_bytes": update_bytes,
        "weights": weights,
        "tensors": sink.tensors,
        "tensors_changed": sink.changed,
    }


def inspect_file(update: Path, base: Path | None) -> dict[str, Any]:
    """Return header and records of an update file; `records` is None where they need a base that is not given.

    Raises:
        UpdateRejected: the file is malformed or made for another base.
        InvalidInput: a file cannot be read.
    """
    with MappedUpdate(update) as mapped:
        reader, header, changes = UpdateReader(mapped.data, None), read_header(mapped.data), None
        if base is not None and Flag.FULL not in header.flags:
            with SafetensorsFile(base) as held:
                if not parse_digest(has := digest_of(held)).startswith(header.base):
                    raise BaseMismatch(
                        f"{update} was made for weights sha256:{header.base.hex()}…, {base} has {has[:23]}…"
                    )
                reader = UpdateReader(mapped.data, held.table)
                changes = None if reader.table is None else table_changes(held.table, reader.table)
        result: dict[str, Any] = {
            "file": str(update),
            "bytes": len(mapped.data),
            "flags": [flag.name for flag in header.flags],
            "lanes": 1 << header.log2_lanes,
            "base": None if Flag.FULL in header.flags else header.base.hex(),
            "result": header.result,
            "integer_bytes": reader.integer_bytes,
            "table": changes,
            "records": None if reader.table is None else list(_rows(reader, reader.table)),
        }
    return result


def table_changes(base: TensorTable, new: TensorTable) -> str | None:
    """Return what an update does to the tensor table, as text; None where it leaves it as it is."""
    if base == new:
        return None
    patch, old = patch_between(base, new), [*(spec.name for spec in base), *base.aliases]
    parts = [f"- {old[position]}" for position in patch.removed]
    parts += [
        f"{base[index].name} {list(base[index].shape)} -> {list(new[new.index_of(base[index].name)].shape)}"
        for index, _ in patch.reshaped
    ]
    parts += [f"+ {spec.name} {list(spec.shape)}" for spec in patch.added]
    parts += [f"+ {alias} = {name}" for alias, name in patch.aliases.items()]
    return ", ".join(parts)


def _rows(reader: UpdateReader, table: TensorTable) -> Iterator[dict[str, Any]]:
    read = reader.integer_bytes_read
    for record in reader.records():
        scale = None if isinstance(record, Held | Exact) else record.scale
        frame = len(record.frame) if isinstance(record, Exact) else PREFIX_BYTES * isinstance(record, Held)
        now = reader.integer_bytes_read
        yield {
            "index": record.index,
            "tensor": table[record.index].name,
            "kind": _NAMES[type(record)],
            "rank": record.u.shape[1] if isinstance(record, LowRank) else None,
            "scale": scale,
            "step": None if scale is None else float(STEPS[scale]),
            "bytes": now - read + frame,
            "detail": _detail(record),
        }
        read = now


def _detail(record: Record) -> str | None:
    match record:
        case Rows():
            return f"{record.rows.size} rows"
        case ThreeFactors():
            core = " x ".join(map(str, record.core.shape))
            return f"core {core}, sides {_side(record.u)} and {_side(record.v)}"
        case Held():
            return f"sha256 {record.prefix.hex()}…"
        case Subspace():
            return f"{record.q.size} coefficients, seed {record.seed}"
        case _:
            return None


def _side(side: Side) -> str:
    return "drawn" if isinstance(side, Drawn) else "left out" if isinstance(side, Identity) else "sent"
