"""Coded exact records: every bit back, through both decoders; damage refused by both; fewer bytes than byte planes."""

from contextlib import suppress

import numpy as np
import pytest
from coded import EXPONENT_BITS, coded_frame, uncoded
from hypothesis import example, given, settings
from hypothesis import strategies as st
from integer_stream import Refused

from sprat_shared.errors import MalformedUpdate
from sprat_shared.wire import exact
from sprat_shared.wire.exact import decode_exact, encode_exact
from sprat_shared.wire.planes import encode_planes
from sprat_shared.wire.tensors import Array, TensorSpec


def spec_of(dtype: str, size: int) -> TensorSpec:
    return TensorSpec("w", dtype, (size,))


def two_sides(rng: np.random.Generator, spec: TensorSpec, way: str) -> tuple[Array, Array]:
    """Any bits at all, NaN among them, and what became of them."""
    bits = f"<u{spec.itemsize}"
    old = rng.integers(0, 256, spec.nbytes, dtype=np.uint8).view(bits)
    other = rng.integers(0, 256, spec.nbytes, dtype=np.uint8).view(bits)
    new = {
        "anything": other,
        "nothing": old,
        "a little": old + rng.integers(0, 20, spec.size).astype(bits),
        "few values": np.where(rng.random(spec.size) < 0.05, other, old),
        "from zeros": other,
    }[way]
    return (np.zeros_like(old) if way == "from zeros" else old).view(spec.storage), new.view(spec.storage)


WAYS = ("anything", "nothing", "a little", "few values", "from zeros")


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(sorted(EXPONENT_BITS)), st.sampled_from(WAYS), st.integers(1, 150))
@example(1, "F32", "anything", 2100)  # four lanes, the last one shorter
@example(2, "BF16", "few values", 1025)
def test_both_decoders_give_back_every_bit_and_refuse_the_same_damage(
    seed: int, dtype: str, way: str, size: int
) -> None:
    rng, spec = np.random.default_rng(seed), spec_of(dtype, size)
    old, new = two_sides(rng, spec, way)
    frame = encode_exact(spec, old, new)
    assert decode_exact(spec, old, frame).tobytes() == new.tobytes()
    assert uncoded(dtype, old.tobytes(), spec.itemsize, frame) == new.tobytes()
    assert coded_frame(dtype, old.tobytes(), spec.itemsize, new.tobytes()) == frame
    damaged = bytearray(frame)
    damaged[rng.integers(len(frame))] ^= 1 << int(rng.integers(8))
    data = (bytes(damaged), frame[: rng.integers(len(frame))], frame + b"\0")[seed % 3]
    ours, theirs = None, None
    with suppress(MalformedUpdate):
        ours = decode_exact(spec, old, data).tobytes()
    with suppress(Refused):
        theirs = uncoded(dtype, old.tobytes(), spec.itemsize, data)
    assert ours == theirs


def test_tensors_of_several_parts_and_many_lanes_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "_PART", 2600)
    rng, spec = np.random.default_rng(3), TensorSpec("w", "F32", (3, 2001))
    old = rng.standard_normal(spec.shape, dtype=np.float32)
    new = old + np.float32(1e-3) * rng.standard_normal(spec.shape, dtype=np.float32)
    assert decode_exact(spec, old, encode_exact(spec, old, new)).tobytes() == new.tobytes()


@pytest.mark.parametrize(("dtype", "saving"), [("F32", 0.04), ("BF16", 0.04), ("F16", 0.02), ("F64", 0.02)])
def test_a_fine_tuned_tensor_takes_fewer_bytes_than_as_byte_planes(dtype: str, saving: float) -> None:
    rng, spec = np.random.default_rng(5), spec_of(dtype, 30_000)
    old = 0.05 * rng.standard_normal(spec.size)
    sides = [old, old + 1e-3 * rng.standard_normal(spec.size)]
    if dtype == "BF16":
        before, after = ((side.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16) for side in sides)
    else:
        before, after = (side.astype(spec.storage) for side in sides)
    assert len(encode_exact(spec, before, after)) < (1 - saving) * len(encode_planes(spec, before, after))


def test_what_does_not_change_costs_next_to_nothing() -> None:
    rng, spec = np.random.default_rng(6), TensorSpec("w", "F32", (1000, 100))
    old = rng.standard_normal(spec.shape, dtype=np.float32)
    assert len(encode_exact(spec, old, old)) < 0.02 * spec.size
    new = old.copy()
    new[17] += np.float32(1e-3)  # one row of an embedding
    assert len(encode_exact(spec, old, new)) < 0.02 * spec.size + 4 * 100
