"""Tensors by name and position, and the digest over all of them (docs/wire-format.md, sections 2 and 3)."""

import hashlib
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from sprat_shared.errors import InvalidInput, LimitExceeded
from sprat_shared.ids import digest_text, parse_digest

if TYPE_CHECKING:
    import numpy.typing as npt

    Array: TypeAlias = npt.NDArray[Any]
else:
    Array = Any  # an agent without a model reads tables, and holds no arrays: numpy is not loaded for their type

DTYPES: Final = (
    *("F32", "F16", "BF16", "F64", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL", "F8_E4M3", "F8_E5M2"),
)  # a code's position is its u8 in the weights digest and in full updates; append only
_STORAGE: Final[Mapping[str, str]] = dict(
    zip(
        DTYPES,
        ["<f4", "<f2", "<u2", "<f8", "<i8", "<i4", "<i2", "|i1", "<u8", "<u4", "<u2", "|u1", "|b1", "|u1", "|u1"],
        strict=True,
    )
)
REBUILDABLE: Final = frozenset({"F32", "F16", "BF16"})  # dtypes that integer factors can change
MAX_DIMS: Final = 32
MAX_NAME_BYTES: Final = 1024
MAX_TENSOR_BYTES: Final = 1 << 40
LOCAL_SHA256: Final = bytes(32)
"""Stands for the hash of a tensor that each device computes itself; no tensor has it."""

_WEIGHTS_DOMAIN: Final = b"sprat-weights-1\0"
ALIAS_MARK: Final = b"\xff\xff"  # no name is that long, so an alias entry cannot be taken for a tensor


def _check_name(name: str) -> None:
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        raise InvalidInput(f"tensor {name[:80]!r}: its name is not Unicode text") from None
    if not 1 <= length <= MAX_NAME_BYTES:
        raise InvalidInput(f"tensor {name[:80]!r}: a name takes 1 to {MAX_NAME_BYTES} bytes")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, type and shape of one tensor.

    Attributes:
        name: its key in the state dict.
        dtype: safetensors code, one of `DTYPES`.
        shape: dimensions; () for a scalar.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.dtype not in _STORAGE:
            raise InvalidInput(f"tensor {self.name!r}: dtype {self.dtype!r:.40} is not one of {', '.join(DTYPES)}")
        _check_name(self.name)
        if len(self.shape) > MAX_DIMS or any(not 0 <= d < 2**48 for d in self.shape):
            raise InvalidInput(f"tensor {self.name!r}: shape {self.shape} is impossible")
        if self.nbytes > MAX_TENSOR_BYTES:
            raise LimitExceeded(f"tensor {self.name!r}: shape {self.shape} takes more than {MAX_TENSOR_BYTES} bytes")

    @property
    def storage(self) -> str:
        """Return the numpy dtype that holds its bits, as numpy writes it; BF16 and F8 are held as unsigned integers."""
        return _STORAGE[self.dtype]

    @property
    def itemsize(self) -> int:
        """Return the bytes of one value."""
        return int(self.storage[-1])

    @property
    def size(self) -> int:
        """Return the number of values."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Return the number of bytes, little-endian and row-major."""
        return self.size * self.itemsize

    @property
    def matrix(self) -> tuple[int, int] | None:
        """Return the shape of its matrix view, (first dimension, all others), or None below two dimensions."""
        return (self.shape[0], prod(self.shape[1:])) if len(self.shape) > 1 else None


class TensorTable(Sequence[TensorSpec]):
    """The tensors of a release in byte order of their UTF-8 names; a tensor's index is its position here.

    Args:
        specs: in any order.
        aliases: names of tied tensors, each to the name in the table whose values it has.

    Raises:
        InvalidInput: two tensors have one name, or an alias points nowhere.
    """

    def __init__(self, specs: Iterable[TensorSpec], aliases: Mapping[str, str] | None = None) -> None:
        self.specs: tuple[TensorSpec, ...] = tuple(sorted(specs, key=lambda spec: spec.name.encode()))
        self._index = {spec.name: i for i, spec in enumerate(self.specs)}
        if len(self._index) != len(self.specs):
            raise InvalidInput("two tensors have the same name; names must be unique")
        for alias in aliases or {}:
            _check_name(alias)
        self.aliases = dict(sorted((aliases or {}).items(), key=lambda pair: pair[0].encode()))
        for alias, target in self.aliases.items():
            if alias in self._index or target not in self._index:
                raise InvalidInput(f"alias {alias!r} must be no tensor itself and name one, got {target!r}")

    def __len__(self) -> int:
        return len(self.specs)

    def __iter__(self) -> Iterator[TensorSpec]:
        return iter(self.specs)

    def __getitem__(self, index: Any) -> Any:
        return self.specs[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TensorTable) and (self.specs, self.aliases) == (other.specs, other.aliases)

    def __hash__(self) -> int:
        return hash(self.specs)

    def index_of(self, name: str) -> int:
        """Return the position of a tensor.

        Raises:
            InvalidInput: there is none of that name.
        """
        try:
            return self._index[name]
        except KeyError:
            raise InvalidInput(f"there is no tensor {name!r} in this table of {len(self)}") from None

    @cached_property
    def nbytes(self) -> int:
        """Return the bytes of all tensors."""
        return sum(spec.nbytes for spec in self.specs)


class TensorSource(Protocol):
    """Something that holds all tensors of one release."""

    @property
    def table(self) -> TensorTable:
        """Return what it holds."""

    def read(self, index: int) -> Array:
        """Return tensor `index` in its storage dtype and shape; it may be a read-only view of a mapped file."""

    def sha256(self, index: int) -> bytes:
        """Return the 32-byte SHA-256 of the tensor's raw bytes."""


class ArrayTensors:
    """Tensors in memory.

    Args:
        tensors: name to (dtype code, array); arrays are taken as they are, in storage dtype (BF16 as uint16).
        aliases: names of tied tensors, each to the name that holds its values.

    Raises:
        InvalidInput: an array's dtype is not the storage of its code.
    """

    def __init__(self, tensors: Mapping[str, tuple[str, Array]], aliases: Mapping[str, str] | None = None) -> None:
        specs = (TensorSpec(name, code, array.shape) for name, (code, array) in tensors.items())
        self.table = TensorTable(specs, aliases)
        self._arrays = [tensors[spec.name][1] for spec in self.table]
        for spec, array in zip(self.table, self._arrays, strict=True):
            if array.dtype != spec.storage:
                raise InvalidInput(
                    f"tensor {spec.name!r}: {spec.dtype} is held as {spec.storage}, got {array.dtype.str}"
                )

    def read(self, index: int) -> Array:
        """Return tensor `index`."""
        return self._arrays[index]

    def sha256(self, index: int) -> bytes:
        """Return the SHA-256 of the tensor's raw bytes."""
        return tensor_sha256(self._arrays[index])


class WithoutLocal:
    """A release as updates see it: its local tensors, which each device computes itself, are zero bytes.

    Args:
        source: the release's tensors.
        local: indices of the local ones.

    Raises:
        InvalidInput: there is no tensor of such an index.
    """

    def __init__(self, source: TensorSource, local: Collection[int]) -> None:
        self._source, self.local, self.table = source, frozenset(local), source.table
        if not self.local <= set(range(len(self.table))):
            raise InvalidInput(f"local tensors {sorted(self.local)}: the release has {len(self.table)} tensors")

    def read(self, index: int) -> Array:
        """Return tensor `index`; zeros for a local one."""
        import numpy as np  # noqa: PLC0415  # whoever reads tables alone does without it

        spec: TensorSpec = self.table[index]
        return np.zeros(spec.shape, spec.storage) if index in self.local else self._source.read(index)

    def sha256(self, index: int) -> bytes:
        """Return the SHA-256 of the tensor's raw bytes; `LOCAL_SHA256` for a local one."""
        return LOCAL_SHA256 if index in self.local else self._source.sha256(index)


def raw_bytes(array: Array) -> memoryview:
    """Return the tensor's bytes, little-endian and row-major, without a copy where it lies so already."""
    flat = array.ravel()
    return flat.view("u1").data if flat.size else memoryview(b"")


def tensor_sha256(array: Array) -> bytes:
    """Return the SHA-256 of a tensor's raw bytes, which is also its name in a tensor store."""
    return hashlib.sha256(raw_bytes(array)).digest()


def describe(spec: TensorSpec) -> bytes:
    """Return the bytes that stand for a tensor's name, type and shape in the weights digest and in full updates."""
    name = spec.name.encode()
    kind = struct.pack("<BB", DTYPES.index(spec.dtype), len(spec.shape))
    return struct.pack("<H", len(name)) + name + kind + struct.pack(f"<{len(spec.shape)}Q", *spec.shape)


def weights_digest(table: TensorTable, sha256s: Sequence[bytes]) -> str:
    """Return the weights digest of a release (docs/wire-format.md, section 3).

    Args:
        table: its tensors.
        sha256s: for each position the SHA-256 of the tensor's raw bytes, `LOCAL_SHA256` for a local tensor.

    Raises:
        InvalidInput: the lengths differ.
    """
    if len(sha256s) != len(table):
        raise InvalidInput(f"{len(sha256s)} digests for {len(table)} tensors")
    total = hashlib.sha256(_WEIGHTS_DOMAIN)
    for spec, sha256 in zip(table, sha256s, strict=True):
        total.update(describe(spec) + sha256)
    for names in table.aliases.items():
        total.update(ALIAS_MARK)
        for name in names:
            total.update(struct.pack("<H", len(name.encode())) + name.encode())
    return digest_text(total.digest())


def digest_of(source: TensorSource) -> str:
    """Return the weights digest of everything that `source` holds."""
    return weights_digest(source.table, [source.sha256(i) for i in range(len(source.table))])


def release_id(graph_digest: str, weights: str) -> str:
    """Return the id of a release: SHA-256 over the 32 bytes of its graph digest and the 32 of its weights digest."""
    return digest_text(hashlib.sha256(parse_digest(graph_digest) + parse_digest(weights)).digest())
