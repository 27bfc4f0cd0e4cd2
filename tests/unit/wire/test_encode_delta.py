"""What cutting a finished change must never do to the weights, however few bytes are asked for."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from sprat_shared.apply import apply_update
from sprat_shared.encode import encode_delta
from sprat_shared.wire.tensors import ArrayTensors, TensorTable

Array = np.ndarray[Any, Any]


class Rebuilt:
    """Keeps what an update gives (`apply.TensorSink`)."""

    def __init__(self, base: ArrayTensors) -> None:
        self._base, self.arrays = base, dict[str, Array]()

    def begin(self, table: TensorTable) -> None:
        self._table = table

    def keep(self, index: int, _sha256: bytes) -> None:
        self.arrays[self._table[index].name] = self._base.read(index)

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
