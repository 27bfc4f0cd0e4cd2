"""One update from any base to any target, exactly, out of the updates between them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sprat_server.compress import direct, updates
from sprat_server.compress.direct import Step
from sprat_shared.encode import encode_delta
from sprat_shared.wire.records import Dense, Drawn, LowRank, Record, Rows, Subspace, ThreeFactors
from sprat_shared.wire.scales import nearest_scale
from sprat_shared.wire.tensors import ArrayTensors, TensorSource, TensorTable, WithoutLocal, digest_of
from sprat_shared.wire.update import UpdateReader, encode_update

KINDS = ["low-rank", "dense", "scalar", "rows", "three factors", "drawn", "subspace", "lossless"]
SHAPES = {"bias": (40,), "empty": (0, 3), "head.weight": (12, 40), "scalar": ()}


def weights(seed: int, dtype: str = "F32", *, large: bool = False) -> ArrayTensors:
    random = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"head.weight": (40, 60)} if large else SHAPES
    made: dict[str, tuple[str, Any]] = {}
    for name, shape in shapes.items():
        values = np.asarray(random.standard_normal(shape), np.float32)
        made[name] = (
            dtype,
            values.astype(np.float16) if dtype == "F16" else _cut(values) if dtype == "BF16" else values,
        )
    return ArrayTensors(made | {"steps": ("I64", np.array([seed], np.int64))})


def _cut(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return (np.ascontiguousarray(values).view(np.uint32) >> 16).astype(np.uint16).reshape(values.shape)


def low_rank(table: TensorTable, name: str, seed: int, rank: int = 2, step: float = 1e-3) -> LowRank:
    random, index = np.random.default_rng(seed), table.index_of(name)
    m, n = table[index].shape
    u, v = random.integers(-9, 10, (m, rank), np.int8), random.integers(-9, 10, (rank, n), np.int8)
    return LowRank(index, nearest_scale(step), u, v)


def dense(table: TensorTable, name: str, seed: int, step: float = 1e-3) -> Dense:
    index = table.index_of(name)
    q = np.random.default_rng(seed).integers(-50, 51, table[index].size, np.int32)
    return Dense(index, nearest_scale(step), q)


def rows(table: TensorTable, name: str, seed: int, step: float = 1e-3) -> Rows:
    random, index = np.random.default_rng(seed), table.index_of(name)
    m, n = table[index].shape
    which = np.sort(random.choice(m, 3, replace=False)).astype(np.uint32)
    return Rows(index, nearest_scale(step), which, random.integers(-50, 51, (3, n), np.int32))


def three_factors(
    table: TensorTable, name: str, seed: int, step: float = 1e-3, *, lot: int | None = None
) -> ThreeFactors:
    random, index = np.random.default_rng(seed), table.index_of(name)
    m, n = table[index].shape
    u = random.integers(-9, 10, (m, 2), np.int8) if lot is None else Drawn(lot)
    v = random.integers(-9, 10, (3, n), np.int8) if lot is None else Drawn(lot)
    return ThreeFactors(index, nearest_scale(step), u, random.integers(-99, 100, (2, 3, 1), np.int16), v)


def subspaces(table: TensorTable, names: Sequence[str], seed: int, step: float = 1e-3) -> list[Subspace]:
    q = np.random.default_rng(seed).integers(-9, 10, 64, np.int16)
    return [Subspace(table.index_of(name), nearest_scale(step), seed, q) for name in names]


def chained(base: TensorSource, *files: Sequence[Record]) -> tuple[TensorSource, list[Step]]:
    """Return what files with these records make of the base one after another, and the steps."""
    at, steps = base, []
    for records in files:
        made = updates.from_records(at, sorted(records, key=lambda record: record.index))
        steps.append(Step(made.data, base.table))
        at = made.weights
    return at, steps


def direct_update(base: TensorSource, target: TensorSource, steps: Sequence[Step], **more: Any) -> bytes:
    data = direct.direct_update(base, target, steps, **more)
    assert data is not None
    return data


def records_of(data: bytes, table: TensorTable) -> list[Record]:
    return list(UpdateReader(memoryview(data), table).records())


def test_a_chain_of_float32_updates_becomes_one_file_of_the_same_records() -> None:
    base = weights(1)
    table = base.table
    target, steps = chained(
        base,
        [low_rank(table, "head.weight", 1), dense(table, "bias", 2)],
        [low_rank(table, "head.weight", 3, rank=5)],
        [dense(table, "head.weight", 4), dense(table, "scalar", 5)],
    )
    data = direct_update(base, target, steps)
    assert updates.decode(data, base).digest == digest_of(target)
    assert len(data) < sum(len(step.data) for step in steps)
    kinds = [(record.index, type(record)) for record in records_of(data, table)]
    weight, bias, scalar = (table.index_of(name) for name in ("head.weight", "bias", "scalar"))
    assert kinds == [(bias, Dense), (weight, LowRank), (weight, LowRank), (weight, Dense), (scalar, Dense)]


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_half_precision_is_rounded_once_so_a_lossless_record_corrects_it(dtype: str) -> None:
    base = weights(1, dtype, large=True)
    files = [[low_rank(base.table, "head.weight", seed, step=1e-4)] for seed in range(3)]
    target, steps = chained(base, *files)
    together = [step_record for records in files for step_record in records]
    assert updates.from_records(base, together).digest != digest_of(target), "the records alone give other bits"
    data = direct_update(base, target, steps)
    assert updates.decode(data, base).digest == digest_of(target)
    assert records_of(data, base.table)[-1].CLOSES


def test_of_two_releases_from_the_same_base_one_is_undone_and_the_other_done_for_far_less_than_lossless() -> None:
    base = weights(1, large=True)
    one, (first,) = chained(base, [low_rank(base.table, "head.weight", 1, step=1e-5)])
    other, (second,) = chained(base, [low_rank(base.table, "head.weight", 2, step=1e-5)])
    data = direct_update(one, other, [Step(first.data, base.table, undone=True), second])
    assert updates.decode(data, one).digest == digest_of(other)
    exact = encode_delta(one, other, lossless=True, standalone=False).data
    assert len(data) < 0.5 * len(exact)
    kinds = [type(record) for record in records_of(data, base.table)]
    assert kinds[:-1] == [LowRank, LowRank]
    assert kinds[-1].CLOSES


def test_lossless_steps_are_said_as_one_difference() -> None:
    base, middle, target = weights(1, large=True), weights(2, large=True), weights(3, large=True)
    files = [encode_delta(a, b, lossless=True, standalone=False).data for a, b in ((base, middle), (middle, target))]
    data = direct_update(base, target, [Step(file, base.table) for file in files])
    assert updates.decode(data, base).digest == digest_of(target)
    assert len(data) < 0.6 * sum(map(len, files))


def test_a_file_that_would_be_too_long_is_given_up_before_it_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    base, target = weights(1, large=True), weights(2, large=True)
    whole = direct_update(base, target, [])
    assert direct_update(base, target, [], most_bytes=len(whole)) == whole
    assert direct.direct_update(base, target, [], most_bytes=len(whole) - 1) is None
    monkeypatch.setattr(direct, "encode_update", None)  # the largest tensor says enough
    assert direct.direct_update(base, target, [], most_bytes=1000) is None


def test_without_steps_all_is_lossless_and_what_did_not_change_is_left_out() -> None:
    base = weights(1)
    target, _ = chained(base, [dense(base.table, "bias", 1)])
    data = direct_update(base, target, [])
    assert updates.decode(data, base).digest == digest_of(target)
    (record,) = records_of(data, base.table)
    assert (record.index, record.CLOSES) == (base.table.index_of("bias"), True)


def test_a_change_that_was_taken_back_costs_nothing() -> None:
    base = weights(1)
    there = updates.from_weights(base, weights(2), lossless=True)
    back = updates.from_weights(there.weights, base, lossless=True)
    data = direct_update(base, base, [Step(there.data, base.table), Step(back.data, base.table)])
    assert records_of(data, base.table) == []


def test_every_kind_of_record_is_merged_and_undone() -> None:
    base = weights(1, large=True)
    table, name = base.table, "head.weight"
    first = [rows(table, name, 1), three_factors(table, name, 2), *subspaces(table, [name], 3)]
    second = [low_rank(table, name, 4), three_factors(table, name, 5, lot=3)]
    middle, (one, two) = chained(base, first)[0], chained(base, first, second)[1]
    target, _ = chained(middle, second)
    there = direct_update(base, target, [one, two])
    assert [type(record) for record in records_of(there, table)] == [
        Rows,
        ThreeFactors,
        Subspace,
        LowRank,
        ThreeFactors,
    ]
    back = direct_update(target, base, [replace(two, undone=True), replace(one, undone=True)])
    assert updates.decode(back, target).digest == digest_of(base)
    assert len(back) < 0.5 * len(encode_delta(target, base, lossless=True, standalone=False).data)


def test_what_two_files_drew_with_their_own_seeds_does_not_stand_in_one() -> None:
    base = weights(1)
    table = base.table
    target, steps = chained(
        base,
        [*subspaces(table, ["bias", "head.weight"], 1), dense(table, "scalar", 1)],
        [*subspaces(table, ["head.weight"], 2), dense(table, "scalar", 2)],
    )
    data = direct_update(base, target, steps)
    kinds = {table[record.index].name: type(record).CLOSES for record in records_of(data, table)}
    assert kinds == {"bias": True, "head.weight": True, "scalar": False}


def test_more_records_than_a_file_may_hold_of_one_tensor_become_a_lossless_one() -> None:
    base = weights(1, large=True)
    target, steps = chained(base, *[[low_rank(base.table, "head.weight", seed)] for seed in range(9)])
    data = direct_update(base, target, steps)
    assert updates.decode(data, base).digest == digest_of(target)
    assert [record.CLOSES for record in records_of(data, base.table)] == [True]


def test_tensors_that_devices_compute_themselves_get_no_record() -> None:
    base = weights(1)
    target, steps = chained(base, [dense(base.table, "bias", 1)], [low_rank(base.table, "head.weight", 2)])
    local = [base.table.index_of("bias")]
    data = direct_update(base, WithoutLocal(target, local), steps, local=local)
    assert [record.index for record in records_of(data, base.table)] == [base.table.index_of("head.weight")]


def test_what_devices_computed_themselves_until_now_is_sent_from_zeros() -> None:
    base = weights(1)
    target, steps = chained(base, [dense(base.table, "bias", 1)], [low_rank(base.table, "head.weight", 2)])
    bias = base.table.index_of("bias")
    data = direct_update(WithoutLocal(base, [bias]), target, steps)
    kinds = [(record.index, record.CLOSES) for record in records_of(data, base.table)]
    assert kinds == [(bias, True), (base.table.index_of("head.weight"), False)]


def test_a_release_with_more_classes_is_reached_over_the_update_that_grew_it() -> None:
    base = weights(1)
    before, (first,) = chained(base, [low_rank(base.table, "head.weight", 1), dense(base.table, "bias", 2)])
    grown = {spec.name: (spec.dtype, before.read(index)) for index, spec in enumerate(before.table)}
    grown["head.weight"] = ("F32", np.vstack([grown["head.weight"][1], np.ones((2, 40), np.float32)]))
    target = ArrayTensors(grown)
    patch = encode_update(
        target.table,
        records_of(direct_update(before, target, []), before.table),
        base_digest=digest_of(before),
        base_table=before.table,
    )
    data = direct_update(base, target, [first, Step(patch, before.table)])
    kinds = {target.table[record.index].name: record.CLOSES for record in records_of(data, base.table)}
    assert kinds == {"bias": False, "head.weight": True}


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["F32", "F16", "BF16"]),
    st.lists(
        st.tuples(
            st.lists(st.sampled_from(KINDS), min_size=1, max_size=4, unique=True),
            st.sampled_from([1e-8, 1e-4, 0.3]),
            st.booleans(),
        ),
        min_size=1,
        max_size=4,
    ),
    st.integers(0, 1000),
)
def test_whatever_lies_between_the_target_is_reached_bit_for_bit(
    dtype: str, ways: list[tuple[list[str], float, bool]], seed: int
) -> None:
    at = base = weights(seed, dtype)
    steps = []
    for ordinal, (kinds, step, undone) in enumerate(ways, start=seed):
        records: list[Record] = []
        if "dense" in kinds:
            records.append(dense(base.table, "bias", ordinal, step))
        if "low-rank" in kinds:
            records.append(low_rank(base.table, "head.weight", ordinal, step=step))
        if "scalar" in kinds:
            records.append(dense(base.table, "scalar", ordinal, step))
        if "rows" in kinds:
            records.append(rows(base.table, "head.weight", ordinal, step))
        if "three factors" in kinds:
            records.append(three_factors(base.table, "head.weight", ordinal, step))
        if "drawn" in kinds:
            records.append(three_factors(base.table, "head.weight", ordinal, step, lot=ordinal))
        if "subspace" in kinds:
            records += subspaces(base.table, ["bias", "head.weight"], ordinal, step)
        records.sort(key=lambda record: record.index)
        made = updates.from_records(at, records)
        if "lossless" in kinds:
            made = updates.from_weights(at, weights(ordinal + 1, dtype), lossless=True)
        steps.append(Step(made.data, base.table, undone=undone))  # undone ones mislead: the result must hold anyway
        at = made.weights
    data = direct_update(base, at, steps)
    assert updates.decode(data, base).digest == digest_of(at)
