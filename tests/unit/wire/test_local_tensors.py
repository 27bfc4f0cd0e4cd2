"""Tensors that each device computes itself: the digest leaves them out, and no update depends on their values."""

from typing import Any

import numpy as np
import pytest

from sprat_shared.apply import apply_update
from sprat_shared.encode import encode_delta
from sprat_shared.errors import DigestMismatch, InvalidInput, MalformedUpdate, UntrustedUpdate
from sprat_shared.trust.targets import LocalStatistics, UpdateTarget
from sprat_shared.wire.records import Dense
from sprat_shared.wire.tensors import ArrayTensors, TensorSource, TensorTable, WithoutLocal, digest_of
from sprat_shared.wire.update import encode_update

MEAN, VAR = 0, 1
LOCAL = (MEAN, VAR)
GRAPH = "sha256:" + "ab" * 32


class Kept:
    """Keeps what an update gives (`apply.TensorSink`)."""

    def __init__(self, base: TensorSource) -> None:
        self._base, self.arrays = base, dict[int, np.ndarray[Any, Any]]()

    def begin(self, table: TensorTable) -> None:
        self.table = table

    def keep(self, index: int, _sha256: bytes) -> None:
        self.arrays[index] = self._base.read(index)

    def put(self, index: int, array: np.ndarray[Any, Any], _sha256: bytes) -> None:
        self.arrays[index] = array.copy()

    def tensors(self) -> ArrayTensors:
        return ArrayTensors({spec.name: (spec.dtype, self.arrays[i]) for i, spec in enumerate(self.table)})


def norm(seed: int, **changed: np.ndarray[Any, Any]) -> ArrayTensors:
    """Return a norm's statistics, which sort first, and a weight."""
    draw = np.random.default_rng(seed)
    arrays = {name: draw.uniform(0.5, 2, 6).astype(np.float32) for name in ("mean", "var", "weight")} | changed
    return ArrayTensors({name: ("F32", array) for name, array in arrays.items()})


def with_statistics(seed: int, like: ArrayTensors) -> ArrayTensors:
    """Return the release as another device has it: other statistics, the same weight."""
    return norm(seed, weight=like.read(2))


def weight_change(base: TensorSource) -> bytes:
    return encode_update(base.table, [Dense(2, 100, np.arange(6, dtype=np.int32))], base_digest=digest_of(base))


def promised(data: bytes, base: TensorSource, local: tuple[int, ...] = ()) -> str:
    """Return the digest that an update gives, as the error says that refuses another."""
    with pytest.raises(DigestMismatch) as refused:
        apply_update(data, base, Kept(base), expected=GRAPH, local=local)
    return refused.value.actual


def test_the_digest_is_the_same_whatever_a_device_computed_and_another_than_without_local_tensors() -> None:
    release = norm(1)
    ours, theirs = (WithoutLocal(source, LOCAL) for source in (release, with_statistics(2, release)))
    zeros = ArrayTensors(
        {name: ("F32", np.zeros(6, np.float32)) for name in ("mean", "var")} | {"weight": ("F32", release.read(2))}
    )
    assert digest_of(ours) == digest_of(theirs)
    assert len({digest_of(source) for source in (ours, release, zeros, WithoutLocal(release, (MEAN,)))}) == 4


def test_an_update_to_a_release_with_local_tensors_gives_zeros_for_them_and_the_promised_digest() -> None:
    base = norm(1)
    data = weight_change(base)
    everything, sink = Kept(base), Kept(base)
    apply_update(data, base, everything, expected=promised(data, base))
    expected = digest_of(WithoutLocal(everything.tensors(), LOCAL))
    assert apply_update(data, base, sink, expected=expected, local=LOCAL) == expected
    assert not any(sink.arrays[index].any() for index in LOCAL)
    assert sink.arrays[2].any()


def test_devices_with_other_statistics_take_the_same_update() -> None:
    release = norm(1)
    data = weight_change(WithoutLocal(release, LOCAL))
    results = []
    for seed in (2, 3):
        base = WithoutLocal(with_statistics(seed, release), LOCAL)
        sink = Kept(base)
        apply_update(data, base, sink, expected=promised(data, base, LOCAL), local=LOCAL)
        results.append([sink.arrays[index].tobytes() for index in range(3)])
    assert results[0] == results[1]


@pytest.mark.parametrize("lossless", [False, True])
def test_a_release_without_local_tensors_after_one_with_them_is_exact_on_every_device(lossless: bool) -> None:  # noqa: FBT001
    release, later = norm(1), norm(9)
    encoded = encode_delta(WithoutLocal(release, LOCAL), later, lossless=lossless)
    results = []
    for seed in (2, 3):
        base = WithoutLocal(with_statistics(seed, release), LOCAL)
        sink = Kept(base)
        assert apply_update(encoded.data, base, sink, expected=encoded.weights) == encoded.weights
        results.append(sink.tensors())
    assert digest_of(results[0]) == digest_of(results[1]) == encoded.weights
    for index in LOCAL:
        np.testing.assert_array_equal(results[0].read(index), later.read(index))


def test_a_tensor_that_was_local_and_is_not_named_becomes_zero_not_what_the_device_had() -> None:
    base = WithoutLocal(norm(1), LOCAL)
    data = weight_change(base)
    sink = Kept(base)
    apply_update(data, base, sink, expected=promised(data, base))
    assert not sink.arrays[MEAN].any()


def test_a_record_of_a_local_tensor_is_refused() -> None:
    base = norm(1)
    data = encode_update(base.table, [Dense(VAR, 100, np.ones(6, np.int32))], base_digest=digest_of(base))
    with pytest.raises(MalformedUpdate, match="computes itself"):
        apply_update(data, base, Kept(base), expected=digest_of(base), local=LOCAL)
    with pytest.raises(MalformedUpdate, match="3 tensors"):
        apply_update(data, base, Kept(base), expected=digest_of(base), local=(7,))
    with pytest.raises(InvalidInput, match="3 tensors"):
        WithoutLocal(base, (7,))


def test_what_is_local_is_signed_and_read_back() -> None:
    local = LocalStatistics(graph=GRAPH, tensors=(3, 4))
    target = UpdateTarget(
        model="m", release=2, weights=GRAPH, graph=GRAPH, base_release=None, base_weights=None, local=local
    )
    assert UpdateTarget.from_custom(target.path, target.to_custom()) == target
    for wrong in ([], [1, 1], [2, 1], [-1], ["a"], [True, 2], 5):
        custom = target.to_custom()
        custom["sprat"]["local"]["tensors"] = wrong
        with pytest.raises(UntrustedUpdate):
            UpdateTarget.from_custom(target.path, custom)
