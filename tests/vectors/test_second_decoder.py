"""Files of sprat's encoder through a decoder that was written from docs/wire-format.md alone."""

from dataclasses import replace

import encoder
import numpy as np
import pytest
from decoder import DTYPES, Refused, Release, Tensor, decode
from hypothesis import given, settings
from hypothesis import strategies as st
from sums import DRAWN, IDENTITY, SENT
from through_sprat import apply, release_of, source_of

from sprat_shared.apply import rebuild_tensor
from sprat_shared.encode import encode_delta, encode_full
from sprat_shared.errors import UpdateRejected
from sprat_shared.wire.planes import encode_planes
from sprat_shared.wire.records import Dense, Lossless, LowRank, Record
from sprat_shared.wire.tensors import ArrayTensors, TensorSpec, WithoutLocal, digest_of
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
    tensors, records = [], list[encoder.Sum | encoder.Lossless]()
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


SEED, COEFFICIENTS = 7, [3, 0, -1, 1, 32767]


@st.composite
def sums(draw: st.DrawFn, index: int, tensor: Tensor) -> encoder.Sum:
    """A record that adds and fits."""
    scale, count = draw(st.integers(0, 160)), tensor.size

    def integers(size: int, most: int) -> list[int]:
        return draw(st.lists(st.integers(-most, most), min_size=size, max_size=size))

    ways = ["dense", "subspace"]
    ways += ["low", "three", "rows"] if len(tensor.shape) > 1 and count else []
    m, n = (tensor.shape[0], count // tensor.shape[0]) if len(ways) > 2 else (0, 0)
    match draw(st.sampled_from(ways)):
        case "low":
            rank = draw(st.integers(1, min(m, n)))
            return encoder.LowRank(index, scale, rank, integers(m * rank, 127), integers(rank * n, 127))
        case "rows" if m * n > n:
            most = min(m, m * n // (n + 1))
            rows = sorted(draw(st.sets(st.integers(0, m - 1), min_size=1, max_size=most)))
            return encoder.Rows(index, scale, rows, integers(len(rows) * n, 99))
        case "three":
            sides = draw(st.tuples(*[st.sampled_from([SENT, DRAWN, IDENTITY])] * 2))
            n, s = tensor.shape[1], n // tensor.shape[1]
            r = m if sides[0] == IDENTITY else draw(st.integers(1, min(m, n * s)))
            t = n if sides[1] == IDENTITY else draw(st.integers(1, min(n, m * s)))
            u = integers(m * r, 127) if sides[0] == SENT else []
            v = integers(t * n, 127) if sides[1] == SENT else []
            return encoder.ThreeFactors(index, scale, (r, t), integers(r * t * s, 32767), u, v, sides, SEED)
        case "subspace":
            return encoder.Subspace(index, scale, SEED, COEFFICIENTS)
        case _:
            return encoder.Dense(index, scale, integers(count, 99))


@st.composite
def patched_updates(draw: st.DrawFn) -> tuple[Release, bytes]:
    """A base and an update of the independent encoder that changes its table."""
    base, _ = draw(small_updates())
    count = len(base.tensors)
    removed = draw(st.sets(st.integers(0, count - 1)))
    removed |= {count} if base.aliases and (0 in removed or draw(st.booleans())) else set()
    reshaped = [
        (index, [draw(st.integers(-min(2, old), 3)) for old in tensor.shape])
        for index, tensor in enumerate(base.tensors)
        if index not in removed and draw(st.booleans())
    ]
    added = [Tensor(name, draw(st.sampled_from(["F32", "I64"])), (2, 3)) for name in sorted(draw(NEW_NAMES))]
    kept = {tensor.name for index, tensor in enumerate(base.tensors) if index not in removed}
    added = [tensor for tensor in added if tensor.name not in kept]
    patch = encoder.Patch(sorted(removed), reshaped, Release(added, [("new", added[0].name)] if added else []))
    begun = decode(encoder.encode(base, [], patch=patch), base)
    records = [
        draw(sums(index, tensor))
        for index, tensor in enumerate(begun.tensors)
        if tensor.dtype in {"F32", "F16", "BF16"} and draw(st.booleans())
    ]
    return base, encoder.encode(base, records, patch=patch, log2_lanes=draw(st.integers(0, 2)))


NEW_NAMES = st.sets(st.sampled_from(["a", "t0", "t1", "z"]))
UPDATES = st.one_of(small_updates(), patched_updates())


def test_both_decoders_take_what_is_beyond_float16_for_infinity() -> None:
    base = Release([Tensor("t0", "F16", (3,), bytes(6))], [])
    data = encoder.encode(base, [encoder.Dense(0, 160, [2**20, -(2**20), 1])])
    result = decode(data, base)
    assert np.frombuffer(result.tensors[0].data, np.float16)[:2].tolist() == [np.inf, -np.inf]
    assert apply(data, base, "sha256:" + result.digest().hex())[0] == result


@settings(max_examples=60, deadline=None)
@given(UPDATES)
def test_both_decoders_agree_on_files_of_another_encoder(case: tuple[Release, bytes]) -> None:
    base, data = case
    result = decode(data, base)
    assert apply(data, base, "sha256:" + result.digest().hex())[0] == result


@settings(max_examples=60, deadline=None)
@given(UPDATES, st.data())
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


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.sets(st.integers(0, len(DTYPES) - 1)), st.sets(st.integers(0, len(DTYPES) - 1)))
def test_both_decoders_take_local_tensors_for_zeros_whatever_a_device_has(
    seed: int, before: set[int], after: set[int]
) -> None:
    rng = np.random.default_rng(seed)
    base, new = two_releases(rng, (3, 2))
    held, other = WithoutLocal(base, before), two_releases(rng, (3, 2))[0]
    encoded = encode_delta(held, WithoutLocal(new, after))
    devices = []
    for own in (base, other):  # the same but for what they computed
        device = release_of(base)
        for index in before:
            device.tensors[index] = replace(release_of(own).tensors[index], local=True)
        devices.append(device)
    results = [decode(encoded.data, device, local=sorted(after)) for device in devices]
    assert results[0] == results[1] == apply(encoded.data, devices[0], local=after)[0]
    assert "sha256:" + results[0].digest().hex() == encoded.weights
    assert not any(any(results[0].tensors[index].data) for index in after)
    for index in before - after:
        assert results[0].tensors[index] == release_of(new).tensors[index]
    if (index := base.table.index_of("f32")) in after:
        tampered = encode_update(base.table, [Dense(index, 100, np.ones(6, np.int32))], base_digest=digest_of(held))
        with pytest.raises(Refused, match="local"):
            decode(tampered, devices[0], local=sorted(after))
