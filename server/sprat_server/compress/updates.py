"""Make an update file and decode it: what is released is what devices will have, release b := a + decode(update).

Nothing here loads torch: records are integers in numpy, made by `sprat_server.training` or by the post-hoc encoder.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

from sprat_server.compress.equivalents import cheapest
from sprat_shared.apply import check_arithmetic, rebuild_tensor
from sprat_shared.encode import encode_delta
from sprat_shared.errors import BaseMismatch
from sprat_shared.ids import parse_digest
from sprat_shared.wire.patch import held_under, under
from sprat_shared.wire.records import Edit, Held, Record
from sprat_shared.wire.tensors import Array, ArrayTensors, TensorSource, TensorSpec, digest_of
from sprat_shared.wire.update import BASE_BYTES, UpdateReader, encode_update, read_header


@dataclass(frozen=True, slots=True)
class Updated:
    """An update file and what it gives.

    Attributes:
        data: the file.
        weights: the exact weights after decoding it.
        digest: weights digest of those.
    """

    data: bytes
    weights: TensorSource
    digest: str


def decode(data: bytes, base: TensorSource) -> Updated:
    """Return what an update file gives, computed by the functions that rebuild tensors on devices.

    Args:
        data: the file.
        base: the weights it was made for, or those under the table of its result.

    Raises:
        UpdateRejected: the file is malformed or made for other weights.
        UnsafeArithmetic: this process does not compute the format's bits.
    """
    check_arithmetic()
    held = held_under(base)
    if parse_digest(digest_of(held))[:BASE_BYTES] != read_header(memoryview(data)).base:
        raise BaseMismatch("the update was made for other weights than the base it is decoded against")
    reader = UpdateReader(memoryview(data), held.table)
    source = under(held, held.table if reader.table is None else reader.table)
    arrays: dict[str, tuple[str, Array]] = {
        spec.name: (spec.dtype, source.read(index)) for index, spec in enumerate(source.table)
    }
    for index, records in groupby(reader.records(), key=attrgetter("index")):
        spec: TensorSpec = source.table[index]
        arrays[spec.name] = (spec.dtype, rebuild_tensor(source.read(index), spec, _edits(records)))
    weights = ArrayTensors(arrays, source.table.aliases)
    return Updated(data, weights, digest_of(weights))


def _edits(records: Iterable[Record]) -> Iterator[Edit]:
    for record in records:
        if isinstance(record, Held):
            raise BaseMismatch(f"tensor {record.index} is to be one that devices hold of another model: none is here")
        yield record


def from_records(base: TensorSource, records: Sequence[Record]) -> Updated:
    """Encode trained records against `base`, each by its cheapest exact equivalent, and decode them.

    Args:
        base: the exact weights that devices have; under the result's table (`wire.patch.under`) where that is another.
        records: one for each tensor that changes.
    """
    held = held_under(base)
    digest = digest_of(held)
    equal = [cheapest(record, base.table[record.index]) for record in records]
    files = (encode_update(base.table, said, base_digest=digest, base_table=held.table) for said in (records, equal))
    return decode(min(files, key=len), held)


def from_weights(
    base: TensorSource,
    new: TensorSource,
    *,
    lossless: bool = False,
    budget_bytes: int | None = None,
    importance: Mapping[str, float] | None = None,
) -> Updated:
    """Encode the difference to finished weights, without data to train on, and decode it.

    Args:
        base: the exact weights that devices have.
        new: weights trained elsewhere, with equal dtypes.
        lossless: give exactly `new`; otherwise close to it, in fewer bytes.
        budget_bytes: give what is closest in so many bytes.
        importance: what a unit of squared error costs, by tensor; else errors count relative to the tensor's values.

    Raises:
        InvalidInput: a tensor has another dtype, or holds NaN or Inf; it is named.
    """
    encoded = encode_delta(
        base, new, lossless=lossless, budget_bytes=budget_bytes, importance=importance, standalone=False
    )
    return decode(encoded.data, base)
