"""Files of sprat's encoder through a decoder that was written from docs/wire-format.md alone."""

import encoder
import numpy as np
import pytest
from decoder import DTYPES, Refused, Release, Tensor, decode
from hypothesis import given, settings
from hypothesis import strategies as st
from through_sprat import apply, release_of, source_of

from sprat_shared.apply import rebuild_tensor
from sprat_shared.encode import encode_delta, encode_full
from sprat_shared.errors import UpdateRejected
from sprat_shared.wire.planes import encode_planes
from sprat_shared.wire.records import Dense, Lossless, LowRank, Record
from sprat_shared.wire.tensors import ArrayTensors, TensorSpec, digest_of
from sprat_shared.wire.update import encode_update

FINITE = {"F32": np.float32, "F16": np.float16, "F64": np.float64}


def random_tensor(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Finite values in storage dtype."""
    storage = TensorSpec("t", dtype, shape).storage
    if dtype in FINITE:
        return rng.standard_normal(shape).astype(storage)
    if dtype == "BF16":
        return (rng.standard_normal(shape).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).reshape(shape)
    if dtype == "BOOL":
        return rng.integers(0, 2, shape).astype(bool)
    return rng.integers(0, 100, shape).astype(storage)


def two_releases(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[ArrayTensors, ArrayTensors]:
    """All dtypes, before and after; some tensors are equal."""
    old = {dtype.lower(): (dtype, random_tensor(rng, dtype, shape)) for dtype in DTYPES}
    new = {n: (d, a if rng.random() < 0.2 else random_tensor(rng, d, shape)) for n, (d, a) in old.items()}
    return ArrayTensors(old, {"tied": "f32"}), ArrayTensors(new, {"tied": "f32"})


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([(), (1,), (4, 1), (1, 7), (5, 6), (2, 3, 2), (0, 3)]), st.integers(0, 3))
def test_both_decoders_give_the_same_bits_for_what_the_encoder_cuts(
    seed: int, shape: tuple[int, ...], way: int
) -> None:
    base, new = two_releases(np.random.default_rng(seed), shape)
    how: dict[str, object] = [{}, {"lossless": True}, {"max_error": 0.01}, {"budget_bytes": 4000}][way]  # type: ignore[list-item]
    encoded = encode_delta(base, new, **how)  # type: ignore[arg-type]
    ours, digest = apply(encoded.data, release_of(base))
    theirs = decode(encoded.data, release_of(base))
    assert theirs == ours
    assert digest == encoded.weights == "sha256:" + theirs.digest().hex()
    if way == 1:
        assert theirs == release_of(new)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([(), (3,), (5, 6), (0, 3)]))
def test_both_decoders_read_full_updates(seed: int, shape: tuple[int, ...]) -> None:
    _, new = two_releases(np.random.default_rng(seed), shape)
    data = encode_full(new, standalone=True)
    assert decode(data, None) == apply(data, None)[0] == release_of(new)


def test_both_decoders_read_many_lanes_and_several_records_of_one_tensor() -> None:
    rng = np.random.default_rng(5)
    base = ArrayTensors(
        {"m": ("F32", random_tensor(rng, "F32", (300, 250))), "v": ("BF16", random_tensor(rng, "BF16", (9,)))}
    )
    records: list[Record] = [
        Dense(0, 100, rng.integers(-1, 2, 75_000).astype(np.int32)),
        LowRank(0, 90, *(rng.integers(-4, 5, shape).astype(np.int8) for shape in ((300, 40), (40, 250)))),
        Dense(0, 101, rng.integers(-1, 2, 75_000).astype(np.int32)),
        Dense(1, 90, rng.integers(-(2**24) + 1, 2**24, 9).astype(np.int32)),
    ]
    between = rebuild_tensor(base.read(1), base.table[1], records[3:])
    records.append(Lossless(1, encode_planes(base.table[1], between, base.read(1))))
    data = encode_update(base.table, records, base_digest=digest_of(base))
    assert data[5] == 8, "so many integers take 256 lanes"
    result = decode(data, release_of(base))
    assert apply(data, release_of(base), "sha256:" + result.digest().hex())[0] == result
    assert result.tensors[1].data == base.read(1).tobytes()


@st.composite
def small_updates(draw: st.DrawFn) -> tuple[Release, bytes]:
    """A base and an update of the independent encoder: any records that the text allows, any number of lanes."""
    tensors, records = [], list[encoder.LowRank | encoder.Dense | encoder.Lossless]()
    for index in range(draw(st.integers(1, 4))):
        dtype = draw(st.sampled_from(["F32", "F16", "BF16", "I16", "BOOL"]))
        shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
        tensor = Tensor(f"t{index}", dtype, shape)
        count = tensor.size if dtype != "BOOL" else tensor.nbytes
        values = [draw(st.integers(0, 1) if dtype == "BOOL" else st.integers(0, 0x3C00)) for _ in range(count)]
        width = tensor.nbytes // count if count else 1
        tensor.data = b"".join((value << (16 if dtype == "F32" else 0)).to_bytes(width, "little") for value in values)
        tensors.append(tensor)
        if dtype in {"F32", "F16", "BF16"}:
            for _ in range(draw(st.integers(0, 3))):
                records.append(draw(sums(index, tensor)))
        elif tensor.size and draw(st.booleans()):
            records.append(encoder.Lossless(index, encoder.planes_frame(tensor, bytes(len(tensor.data)))))
    base = Release(tensors, [("tied", "t0")] if draw(st.booleans()) else [])
    return base, encoder.encode(base, records, log2_lanes=draw(st.integers(0, 4)))


@st.composite
def sums(draw: st.DrawFn, index: int, tensor: Tensor) -> encoder.LowRank | encoder.Dense:
    """A record of kind 0 or 1 that fits."""
    scale, count = draw(st.integers(0, 160)), tensor.size
    columns = count // tensor.shape[0] if tensor.shape and tensor.shape[0] else 0
    most = min(tensor.shape[0], columns) if len(tensor.shape) > 1 else 0
    if most and draw(st.booleans()):
        rank, factor = draw(st.integers(1, most)), st.integers(-127, 127)
        u, v = (draw(st.lists(factor, min_size=n, max_size=n)) for n in (tensor.shape[0] * rank, rank * columns))
        return encoder.LowRank(index, scale, rank, u, v)
    return encoder.Dense(index, scale, draw(st.lists(st.integers(-99, 99), min_size=count, max_size=count)))


@settings(max_examples=60, deadline=None)
@given(small_updates())
def test_both_decoders_agree_on_files_of_another_encoder(case: tuple[Release, bytes]) -> None:
    base, data = case
    result = decode(data, base)
    assert apply(data, base, "sha256:" + result.digest().hex())[0] == result


@settings(max_examples=60, deadline=None)
@given(small_updates(), st.data())
def test_both_decoders_refuse_or_accept_the_same_damaged_files(
    case: tuple[Release, bytes], chance: st.DataObject
) -> None:
    base, whole = case
    data = bytearray(whole)
    data[chance.draw(st.integers(0, len(data) - 1))] ^= chance.draw(st.integers(1, 255))
    try:
        result = decode(bytes(data), base)
    except Refused:
        with pytest.raises(UpdateRejected):
            apply(bytes(data), base, "sha256:" + release_digest(base))
    else:
        assert apply(bytes(data), base, "sha256:" + result.digest().hex())[0] == result


def release_digest(release: Release) -> str:
    return digest_of(source_of(release))[7:]
