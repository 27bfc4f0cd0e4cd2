"""What cutting a finished change must never do to the weights, however few bytes are asked for."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from sprat_shared.apply import apply_update
from sprat_shared.encode import encode_delta
from sprat_shared.errors import InvalidInput, LimitExceeded
from sprat_shared.wire.tensors import ArrayTensors, TensorTable, digest_of
from sprat_shared.wire.update import encode_update

Array = np.ndarray[Any, Any]


class Rebuilt:
    """Keeps what an update gives (`apply.TensorSink`)."""

    def __init__(self, base: ArrayTensors) -> None:
        self._base, self.arrays = base, dict[str, Array]()

    def begin(self, table: TensorTable) -> None:
        self._table = table

    def keep(self, index: int, _sha256: bytes) -> None:
        name = self._table[index].name
        self.arrays[name] = self._base.read(self._base.table.index_of(name))

    def put(self, index: int, array: Array, _sha256: bytes) -> None:
        self.arrays[self._table[index].name] = array.copy()


def rebuilt(base: ArrayTensors, new: ArrayTensors, **how: Any) -> Mapping[str, Array]:
    encoded, sink = encode_delta(base, new, **how), Rebuilt(base)
    assert apply_update(encoded.data, base, sink, expected=None) == encoded.weights
    assert how.get("budget_bytes") is None or len(encoded.data) <= how["budget_bytes"]
    return sink.arrays


def variances() -> tuple[ArrayTensors, ArrayTensors]:
    """Return a norm layer before and after: a few variances are tiny beside the change of the others."""
    draw = np.random.default_rng(7)
    old = np.concatenate([draw.uniform(0.5, 2.0, 60), np.full(4, 0.005)]).astype(np.float32)
    new = np.concatenate([old[:60] * draw.uniform(0.3, 0.9, 60), np.full(4, 0.004)]).astype(np.float32)
    new[-1] = 0.0005
    return ArrayTensors({"norm.running_var": ("F32", old)}), ArrayTensors({"norm.running_var": ("F32", new)})


@pytest.mark.parametrize("budget_bytes", [60, 80, 100, 140])
def test_a_variance_stays_positive_however_small_the_budget(budget_bytes: int) -> None:
    base, new = variances()
    assert (rebuilt(base, new, budget_bytes=budget_bytes)["norm.running_var"] > 0).all()


def test_a_larger_budget_never_has_a_larger_error() -> None:
    base, new = variances()
    wished = new.read(0)
    errors = [
        float(np.square(rebuilt(base, new, budget_bytes=budget)["norm.running_var"] - wished).sum())
        for budget in (60, 100, 140, 300)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0]


def head(classes: int) -> dict[str, tuple[str, Array]]:
    """A body and a head of so many classes; fewer classes are the first of more."""
    draw = np.random.default_rng(8)
    body, weight, bias = (draw.standard_normal(shape).astype(np.float32) for shape in ((40, 30), (12, 40), (12,)))
    return {"body": ("F32", body), "head.weight": ("F32", weight[:classes]), "head.bias": ("F32", bias[:classes])}


def test_a_head_with_new_classes_costs_less_than_thirty_bytes_beside_its_values() -> None:
    base, new = ArrayTensors(head(10)), ArrayTensors(head(12))
    empty = encode_update(base.table, [], base_digest=digest_of(base))
    grown = encode_update(new.table, [], base_digest=digest_of(base), base_table=base.table)
    assert len(grown) - len(empty) < 8
    arrays = rebuilt(base, new, lossless=True)
    assert all(np.array_equal(arrays[spec.name], new.read(i)) for i, spec in enumerate(new.table))
    near = rebuilt(base, new, max_error=0.05)
    assert np.array_equal(near["head.weight"][:10], base.read(base.table.index_of("head.weight")))
    assert 0 < np.abs(near["head.weight"][10:] - new.read(new.table.index_of("head.weight"))[10:]).max() <= 0.05


def test_tensors_come_and_go_and_ties_with_them() -> None:
    old, new = head(10), head(10)
    del new["head.bias"]
    new["steps"] = ("I64", np.array(7))
    new["norm.var"] = ("F32", np.full(3, 2.0, np.float32))
    before = ArrayTensors(old, {"tied": "head.bias", "again": "body"})
    after = ArrayTensors(new, {"also": "norm.var", "again": "body"})
    encoded = encode_delta(before, after)
    sink = Rebuilt(before)
    apply_update(encoded.data, before, sink, expected=encoded.weights)
    assert sink._table == after.table
    assert sink.arrays["steps"] == 7
    assert (sink.arrays["norm.var"] > 0).all()
    assert (rebuilt(before, after, max_error=3.0)["norm.var"] > 0).all(), (
        "a variance of zero is as bad as a negative one"
    )
    assert encode_delta(after, before, lossless=True).weights == digest_of(before)


def test_a_dtype_stays_and_a_base_that_would_grow_many_times_over_asks_for_a_full_update() -> None:
    base = ArrayTensors(head(10))
    with pytest.raises(InvalidInput, match=r"'head.bias' is F32 in the base and F16 .* convert"):
        encode_delta(base, ArrayTensors({**head(10), "head.bias": ("F16", np.zeros(10, np.float16))}))
    huge = {**head(10), "body": ("F32", np.zeros((4000, 2000), np.float32))}
    with pytest.raises(LimitExceeded, match="only a full update"):
        encode_delta(base, ArrayTensors(huge))


def network(seed: int = 3, *, noise: float = 1e-3) -> tuple[ArrayTensors, ArrayTensors]:
    """Return a small network before and after: matrices change by a low rank and noise, a bias by noise."""
    draw = np.random.default_rng(seed)
    old = {name: draw.standard_normal(shape) for name, shape in {"a": (60, 80), "b": (90, 40), "c": (50,)}.items()}
    new = {name: values + noise * draw.standard_normal(values.shape) for name, values in old.items()}
    for name in "ab":
        m, n = old[name].shape
        new[name] = new[name] + 0.05 * draw.standard_normal((m, 2)) @ draw.standard_normal((2, n))
    sides = ({name: ("F32", values.astype(np.float32)) for name, values in side.items()} for side in (old, new))
    return ArrayTensors(next(sides)), ArrayTensors(next(sides))


def missed(base: ArrayTensors, new: ArrayTensors, **how: Any) -> float:
    """Return the norm of what an update misses, over the norm of the change; tensors count by their sum of squares."""
    arrays, parts = rebuilt(base, new, **how), np.zeros(2)
    for index, spec in enumerate(new.table):
        wished = new.read(index).astype(np.float64)
        sides = (arrays[spec.name], base.read(index))
        parts += [np.square(wished - side).sum() / np.square(wished).sum() for side in sides]
    return float((parts[0] / parts[1]) ** 0.5)


def test_errors_fall_from_budget_to_budget_until_the_file_is_exact() -> None:
    base, new = network()
    errors = [missed(base, new, budget_bytes=b) for b in (150, 300, 450, 700, 1500, 6000, 40_000)]
    assert errors == sorted(errors, reverse=True)
    assert errors[1] < 0.6, "two directions fit few bytes"
    assert errors[-1] == 0


def test_without_an_option_the_error_is_measured_and_at_most_a_tenth() -> None:
    base, new = network(noise=0.05)
    assert 0.05 < missed(base, new) <= 0.1


def test_a_random_change_of_full_rank_costs_no_more_than_exactly() -> None:
    draw = np.random.default_rng(4)
    sides = [ArrayTensors({"w": ("F32", draw.standard_normal((60, 70), dtype=np.float32))}) for _ in range(2)]
    exact = encode_delta(*sides, lossless=True)
    for how in ({}, {"max_error": 0.0}, {"budget_bytes": len(exact.data)}):
        assert len(encode_delta(*sides, **how).data) <= len(exact.data)


def test_the_curve_goes_from_few_bytes_to_exact_and_says_whether_the_change_is_of_low_rank() -> None:
    base, new = network()
    encoded = encode_delta(base, new)
    sizes, errors = zip(*((point.bytes, point.relative_error) for point in encoded.curve), strict=True)
    assert list(sizes) == sorted(sizes)
    assert list(errors) == sorted(errors, reverse=True)
    assert errors[-1] == 0
    assert encoded.low_rank_share is None, "16 directions are many for matrices this small"
    draw = np.random.default_rng(5)
    w, other, low = (draw.standard_normal(shape, dtype=np.float32) for shape in ((80, 90), (80, 90), (80, 1)))
    for change, least, most in ((other, 0.2, 0.6), (low, 0.99, 1.0)):
        sides = (ArrayTensors({"w": ("F32", side)}) for side in (w, w + change))
        share = encode_delta(*sides, budget_bytes=400).low_rank_share
        assert share is not None
        assert least <= share <= most


def test_importance_says_which_tensor_gets_the_bytes() -> None:
    base, new = network(noise=0.02)
    reports = [
        {row.name: row.relative_error for row in encode_delta(base, new, budget_bytes=700, importance=weights).tensors}
        for weights in ({"a": 100.0, "b": 1.0, "c": 1.0}, {"a": 1.0, "b": 100.0, "c": 1.0})
    ]
    assert reports[0]["a"] < reports[1]["a"]
    assert reports[1]["b"] < reports[0]["b"]
    with pytest.raises(InvalidInput, match="importance"):
        encode_delta(base, new, importance={"a": 1.0})
