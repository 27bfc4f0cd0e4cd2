"""Records that name a tensor of another model: found in what the device holds, proven by the result's digest."""

from collections.abc import Sequence

import numpy as np
import pytest

from sprat_shared.apply import apply_update, rebuild_tensor
from sprat_shared.errors import BaseMismatch, DigestMismatch, InvalidInput, MalformedUpdate
from sprat_shared.wire.records import Dense, Held, LowRank, Record
from sprat_shared.wire.tensors import Array, ArrayTensors, TensorSpec, TensorTable, digest_of, raw_bytes, tensor_sha256
from sprat_shared.wire.update import UpdateReader, encode_update

RNG = np.random.default_rng(8)
TRUNK, NEAR, HEAD = (RNG.standard_normal(shape).astype(np.float32) for shape in ((6, 4), (6, 4), (3,)))
BASE = ArrayTensors({"head": ("F32", HEAD)})
TABLE = TensorTable([TensorSpec("head", "F32", (3,)), TensorSpec("trunk", "F32", (6, 4))])
TIE = LowRank(1, 90, np.ones((6, 1), np.int8), np.ones((1, 4), np.int8))


class Store:
    """What a device holds."""

    def __init__(self, *arrays: Array) -> None:
        self._held = [raw_bytes(array).tobytes() for array in arrays]

    def find(self, prefix: bytes, spec: TensorSpec) -> Array | None:
        arrays = [np.frombuffer(one, spec.storage).reshape(spec.shape) for one in self._held if len(one) == spec.nbytes]
        found = [array for array in arrays if tensor_sha256(array).startswith(prefix)]
        return found[0] if len(found) == 1 else None


class Sink:
    """Collects the tensors of the result."""

    def __init__(self) -> None:
        self.arrays: dict[int, Array] = {}

    def begin(self, table: TensorTable) -> None:
        self.table = table

    def keep(self, index: int, sha256: bytes) -> None:
        assert (index, sha256) == (0, tensor_sha256(HEAD))

    def put(self, index: int, array: Array, sha256: bytes) -> None:
        assert sha256 == tensor_sha256(array)
        self.arrays[index] = array.copy()


def update(records: Sequence[Record]) -> bytes:
    return encode_update(TABLE, records, base_digest=digest_of(BASE), base_table=BASE.table)


def expected(trunk: Array) -> str:
    return digest_of(ArrayTensors({"head": ("F32", HEAD), "trunk": ("F32", trunk)}))


def test_a_tensor_of_another_model_costs_a_few_bytes_and_comes_bit_for_bit() -> None:
    data, sink = update([Held(1, tensor_sha256(TRUNK)[:8])]), Sink()
    without = encode_update(BASE.table, [], base_digest=digest_of(BASE))
    assert len(data) - len(without) < 80, "the description of the tensor, and 8 bytes"
    apply_update(data, BASE, sink, expected=expected(TRUNK), held=Store(TRUNK, NEAR, HEAD))
    np.testing.assert_array_equal(sink.arrays[1], TRUNK)


def test_what_is_held_may_be_corrected() -> None:
    corrected, sink = rebuild_tensor(TRUNK, TABLE[1], [TIE]), Sink()
    data = update([Held(1, tensor_sha256(TRUNK)[:8]), TIE])
    apply_update(data, BASE, sink, expected=expected(corrected), held=Store(TRUNK))
    np.testing.assert_array_equal(sink.arrays[1], corrected)


@pytest.mark.parametrize("store", [None, Store(), Store(NEAR, HEAD)], ids=["nothing", "empty", "others"])
def test_what_is_not_held_asks_for_the_full_update(store: Store | None) -> None:
    data = update([Held(1, tensor_sha256(TRUNK)[:8])])
    with pytest.raises(BaseMismatch, match=r"tensor 'trunk'.*take the full update"):
        apply_update(data, BASE, Sink(), expected=expected(TRUNK), held=store)


def test_a_file_damaged_under_its_name_is_found_by_the_results_digest() -> None:
    class Damaged(Store):
        def find(self, prefix: bytes, spec: TensorSpec) -> Array | None:
            found = super().find(prefix, spec)
            return None if found is None else found + 1

    data = update([Held(1, tensor_sha256(TRUNK)[:8])])
    with pytest.raises(DigestMismatch):
        apply_update(data, BASE, Sink(), expected=expected(TRUNK), held=Damaged(TRUNK))


def test_a_held_record_is_its_tensors_first() -> None:
    held, dense = Held(1, bytes(8)), Dense(1, 100, np.zeros(24, np.int32))
    for records in ([dense, held], [held, held]):
        with pytest.raises(InvalidInput, match="held one not first"):
            update(records)
    encode_update(TABLE, [held, dense], base_digest=digest_of(BASE), base_table=BASE.table)


@pytest.mark.parametrize("length", [0, 7, 9, 32])
def test_a_prefix_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(InvalidInput, match="bytes of a digest"):
        Held(1, bytes(length)).check(TABLE[1])
    good = update([Held(1, b"\xaa" * 8)])
    assert good.endswith(b"\xaa" * 8)
    with pytest.raises(MalformedUpdate):
        list(UpdateReader(memoryview(good[:-1]), BASE.table).records())
