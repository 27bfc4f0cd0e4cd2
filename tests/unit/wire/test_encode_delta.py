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
