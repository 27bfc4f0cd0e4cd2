"""Update files: what was said is read back; what is damaged is refused by name."""

import struct
from dataclasses import fields

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from updates_at_random import Case, arrays, cases

from sprat_shared.apply import apply_update, rebuild_tensor
from sprat_shared.apply.arithmetic import widen
from sprat_shared.errors import (
    BaseMismatch,
    DigestMismatch,
    InvalidInput,
    LimitExceeded,
    MalformedUpdate,
    UpdateRejected,
    WireVersionUnsupported,
)
from sprat_shared.wire.descriptions import Limits
from sprat_shared.wire.integers import Family, IntegerEncoder
from sprat_shared.wire.planes import decode_planes, encode_planes
from sprat_shared.wire.records import (
    Coded,
    Dense,
    Drawn,
    Identity,
    Lossless,
    LowRank,
    Record,
    Rows,
    Subspace,
    ThreeFactors,
)
from sprat_shared.wire.scales import nearest_scale
from sprat_shared.wire.tensors import DTYPES, Array, ArrayTensors, TensorSpec, TensorTable, digest_of
from sprat_shared.wire.update import Flag, UpdateReader, encode_update

SMALL = Limits(max_tensors=64, max_bytes=1 << 20)


class Kept:
    """A sink that keeps the digests."""

    def __init__(self) -> None:
        self.order: list[int] = []

    def begin(self, table: TensorTable) -> None:
        self.table = table

    def keep(self, index: int, sha256: bytes) -> None:
        assert len(sha256) == 32
        self.order.append(index)

    def put(self, index: int, array: Array, sha256: bytes) -> None:
        assert len(sha256) == 32
        assert array.shape == self.table[index].shape
        self.order.append(index)


def applied(case: Case, data: bytes, expected: str | None = None) -> str:
    return apply_update(data, case.base, Kept(), expected=expected or case.expected, limits=SMALL)


def content(record: Record) -> list[object]:
    held = [getattr(record, field.name) for field in fields(record)]
    return [
        type(record),
        *(
            bytes(part) if isinstance(part, memoryview) else part.tolist() if isinstance(part, np.ndarray) else part
            for part in held
        ),
    ]


@settings(max_examples=60, deadline=None)
@given(cases())
def test_decoding_undoes_encoding(case: Case) -> None:
    reader = UpdateReader(memoryview(case.data), None if case.base is None else case.base.table)
    assert [content(record) for record in reader.records()] == [content(record) for record in case.records]
    assert reader.table == case.table
    assert (Flag.FULL in reader.header.flags) == (case.base is None)
    assert (Flag.PATCH in reader.header.flags) == (case.base is not None and case.base.table != case.table)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_applying_gives_the_promised_digest_and_every_tensor_once_in_order(case: Case) -> None:
    sink = Kept()
    assert apply_update(case.data, case.base, sink, expected=case.expected) == case.expected
    assert sink.order == list(range(len(case.table)))


@settings(max_examples=100, deadline=None)
@given(cases(), st.data())
def test_a_cut_file_is_refused_and_never_misread(case: Case, chance: st.DataObject) -> None:
    with pytest.raises(UpdateRejected):
        applied(case, case.data[: chance.draw(st.integers(0, len(case.data) - 1))])


@settings(max_examples=5, deadline=None)
@given(cases())
def test_a_file_cut_anywhere_is_refused(case: Case) -> None:
    for length in range(min(len(case.data), 300)):
        with pytest.raises(UpdateRejected):
            applied(case, case.data[:length])


@settings(max_examples=60, deadline=None)
@given(cases(), st.binary(min_size=1, max_size=40))
def test_further_bytes_at_the_end_are_refused(case: Case, more: bytes) -> None:
    with pytest.raises(UpdateRejected):
        applied(case, case.data + more)


@settings(max_examples=150, deadline=None)
@given(cases(), st.data())
def test_a_flipped_byte_never_gives_other_weights(case: Case, chance: st.DataObject) -> None:
    at = chance.draw(st.integers(0, len(case.data) - 1))
    data = bytearray(case.data)
    data[at] ^= chance.draw(st.integers(1, 255))
    try:
        digest = applied(case, bytes(data))
    except UpdateRejected:
        return
    assert digest == case.expected, "what is accepted is what was promised"
    assert at >= 14, "the header has no byte that may be another"


@settings(max_examples=40, deadline=None)
@given(cases(full=False), st.integers(0, 13), st.integers(1, 255))
def test_a_flipped_byte_of_the_header_is_refused_by_name(case: Case, at: int, mask: int) -> None:
    data = bytearray(case.data)
    data[at] ^= mask
    names: tuple[type[UpdateRejected], ...] = {
        **dict.fromkeys(range(3), (MalformedUpdate,)),
        3: (WireVersionUnsupported,),
        **dict.fromkeys(range(6, 14), (BaseMismatch,)),
    }.get(at, (WireVersionUnsupported, MalformedUpdate, LimitExceeded, BaseMismatch, DigestMismatch))
    with pytest.raises(names):
        applied(case, bytes(data))


@settings(max_examples=150, deadline=None)
@given(cases(), st.data())
def test_random_mutations_give_named_errors_only(case: Case, chance: st.DataObject) -> None:
    data = bytearray(case.data)
    for _ in range(chance.draw(st.integers(1, 6))):
        at = chance.draw(st.integers(0, len(data)))
        match chance.draw(st.integers(0, 3)):
            case 0:
                data[at : at + 1] = chance.draw(st.binary(min_size=1, max_size=1))
            case 1:
                data[at:at] = chance.draw(st.binary(max_size=9))
            case 2:
                del data[at : at + chance.draw(st.integers(1, 9))]
            case _:
                start = chance.draw(st.integers(0, len(data)))
                data[at:at] = data[start : start + chance.draw(st.integers(1, 30))]
    try:
        digest = applied(case, bytes(data))
    except UpdateRejected:
        return
    assert digest == case.expected


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 7), st.integers(0, 4))
def test_noise_behind_a_good_header_is_refused(noise: bytes, flags: int, log2_lanes: int) -> None:
    base = ArrayTensors({"w": ("F32", np.zeros((4, 4), np.float32)), "v": ("BF16", np.zeros(3, np.uint16))})
    start = bytes(8) if flags & 2 else bytes.fromhex(digest_of(base)[7:23])
    data = b"SPR\x01" + bytes([flags, log2_lanes]) + start + bytes(32 * (flags & 1)) + noise
    with pytest.raises(UpdateRejected):
        apply_update(data, base, Kept(), expected="sha256:" + "0" * 64, limits=SMALL)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(DTYPES), st.sampled_from([(), (1,), (3, 5), (2, 1, 4)]))
def test_planes_give_back_any_bits(chance: st.DataObject, dtype: str, shape: tuple[int, ...]) -> None:
    spec = TensorSpec("t", dtype, shape)
    old, new = chance.draw(arrays(spec)), chance.draw(arrays(spec))
    back = decode_planes(spec, old, encode_planes(spec, old, new))
    assert (back.shape, back.dtype, back.tobytes()) == (spec.shape, spec.storage, new.tobytes())


@pytest.mark.parametrize("change", ["cut", "more", "twice", "no size", "other size", "window", "noise"])
def test_a_frame_that_is_not_exactly_one_of_the_tensors_size_is_refused(change: str) -> None:
    spec, old = TensorSpec("conv1.weight", "F32", (40, 30)), np.ones((40, 30), np.float32)
    frame, plain = encode_planes(spec, old, old * 3), bytes(spec.nbytes)
    wide = zstandard.ZstdCompressionParameters(window_log=24)
    frames = {
        "cut": frame[:-1],
        "more": frame + b"\0",
        "twice": frame + frame,
        "no size": zstandard.ZstdCompressor(write_content_size=False).compress(plain),
        "other size": zstandard.ZstdCompressor().compress(plain + b"\0"),
        "window": zstandard.ZstdCompressor(compression_params=wide).compress(bytes(1 << 24)),
        "noise": b"no zstd at all",
    }
    with pytest.raises(MalformedUpdate, match=r"conv1\.weight"):
        decode_planes(spec, old, frames[change])


# ------------------------------------------------------------------------------------- what a header or table may say


def full_with_table(table: bytes) -> bytes:
    """A full update whose table is these bytes."""
    frame, integers = zstandard.ZstdCompressor().compress(table), IntegerEncoder(0)
    integers.put(Family.LENGTH, [len(frame)])
    integers.put(Family.COUNT, [0])
    stream = integers.finish()
    return b"SPR\x01\x02\x00" + bytes(8) + bytes([len(stream)]) + stream + frame


def described(name: bytes, dtype: int = 0, shape: tuple[int, ...] = ()) -> bytes:
    return struct.pack(f"<H{len(name)}sBB{len(shape)}Q", len(name), name, dtype, len(shape), *shape)


def alias(*names: bytes) -> bytes:
    return b"\xff\xff" + b"".join(struct.pack("<H", len(name)) + name for name in names)


@pytest.mark.parametrize(
    ("table", "error"),
    [
        (b"\1\0\0\0" + described(b"a") + b"\0", MalformedUpdate),
        (b"\2\0\0\0" + described(b"b") + described(b"a"), MalformedUpdate),
        (b"\2\0\0\0" + described(b"a") + described(b"a"), MalformedUpdate),
        (b"\1\0\0\0" + described(b""), MalformedUpdate),
        (b"\1\0\0\0" + described(b"\xff"), MalformedUpdate),
        (b"\1\0\0\0" + described(b"n" * 1025), MalformedUpdate),
        (b"\1\0\0\0" + described(b"a", dtype=15), MalformedUpdate),
        (b"\1\0\0\0" + described(b"a", shape=(1,) * 33), MalformedUpdate),
        (b"\1\0\0\0" + described(b"a", shape=(1 << 63, 0)), MalformedUpdate),
        (b"\1\0\0\0" + described(b"a", shape=(1 << 40, 1 << 40)), LimitExceeded),
        (b"\1\0\0\0" + described(b"a", shape=(1 << 30,)), LimitExceeded),
        (b"\xff\xff\xff\xff" + described(b"a"), LimitExceeded),
        (b"\1\0\0\0" + described(b"a") + alias(b"b", b"c"), MalformedUpdate),
        (b"\1\0\0\0" + described(b"a") + alias(b"a", b"a"), MalformedUpdate),
        (b"\1\0\0\0" + described(b"a") + alias(b"", b"a"), MalformedUpdate),
        (b"\1\0\0\0" + described(b"a") + alias(b"c", b"a") + alias(b"b", b"a"), MalformedUpdate),
        (b"\1\0\0\0" + described(b"a") + alias(b"b", b"a") + alias(b"b", b"a"), MalformedUpdate),
        (b"\1\0\0", MalformedUpdate),
        (bytes((1 << 25) + 1), LimitExceeded),
    ],
)
def test_a_table_that_says_too_much_or_makes_no_sense_is_refused(table: bytes, error: type[UpdateRejected]) -> None:
    with pytest.raises(error):
        UpdateReader(memoryview(full_with_table(table)), None, SMALL)


@pytest.mark.parametrize("flags", [8, 16, 32, 64, 128])
def test_reserved_flags_ask_for_a_newer_sprat(flags: int) -> None:
    with pytest.raises(WireVersionUnsupported, match="update it"):
        UpdateReader(memoryview(b"SPR\x01" + bytes([flags, 0]) + bytes(20)), None)


def test_more_than_4096_lanes_are_refused() -> None:
    with pytest.raises(MalformedUpdate, match="lanes"):
        UpdateReader(memoryview(b"SPR\x01\x00\x0d" + bytes(100)), None)


def test_a_length_that_does_not_end_is_refused() -> None:
    with pytest.raises(MalformedUpdate, match="does not end"):
        UpdateReader(memoryview(b"SPR\x01\x00\x00" + bytes(8) + b"\x80" * 9), None)


def test_a_result_that_nobody_promised_is_not_rebuilt() -> None:
    base = ArrayTensors({"w": ("F32", np.zeros(3, np.float32))})
    data = encode_update(base.table, [], base_digest=digest_of(base))
    with pytest.raises(InvalidInput, match="no digest of its result"):
        apply_update(data, base, Kept(), expected=None)


def test_an_update_for_other_weights_names_both() -> None:
    base, other = (ArrayTensors({"w": ("F32", np.full(3, fill, np.float32))}) for fill in (0, 1))
    data = encode_update(base.table, [], base_digest=digest_of(base), result_digest=digest_of(base))
    with pytest.raises(BaseMismatch, match=digest_of(other)[7:23]):
        apply_update(data, other, Kept(), expected=None)
    with pytest.raises(BaseMismatch, match="none were given"):
        apply_update(data, None, Kept(), expected=None)


W = TensorSpec("w", "F32", (4, 3))
I = TensorSpec("i", "I32", (4,))  # noqa: E741
E = TensorSpec("e", "F32", (0, 3))


V = TensorSpec("v", "F32", (12,))
HUGE = TensorSpec("h", "F32", (8192, 8192))


def rows(*which: int, width: int) -> Rows:
    return Rows(0, 9, np.array(which, np.uint32), np.ones((len(which), width), np.int32))


def core(r: int, t: int, s: int = 1) -> np.ndarray:
    return np.ones((r, t, s), np.int16)


def none_of(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Zeros that take no memory."""
    side = np.broadcast_to(np.zeros(1, np.int8), (size, size))
    return side, np.broadcast_to(np.zeros(1, np.int16), (size, size, 1)), side


def factors(m: int, r: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    return np.ones((m, r), np.int8), np.ones((r, n), np.int8)


@pytest.mark.parametrize(
    ("spec", "records"),
    [
        (W, [LowRank(0, 9, *factors(4, 4, 3))]),
        (W, [LowRank(0, 9, *factors(3, 1, 4))]),
        (W, [LowRank(0, 256, *factors(4, 1, 3))]),
        (W, [LowRank(1, 9, *factors(4, 1, 3))]),
        (W, [Dense(0, 9, np.zeros(11, np.int32))]),
        (W, [Dense(0, -1, np.zeros(12, np.int32))]),
        (W, [Dense(0, 9, np.zeros(12, np.int32))] * 9),
        (W, [Lossless(0, b""), Dense(0, 9, np.zeros(12, np.int32))]),
        (I, [Dense(0, 9, np.zeros(4, np.int32))]),
        (E, [Lossless(0, b"")]),
        (E, [Coded(0, b"")]),
        (I, [Coded(0, b"")]),
        (W, [Coded(0, b""), Lossless(0, b"")]),
        (E, [LowRank(0, 9, *factors(0, 1, 3))]),
        (W, [rows(0, 1, 2, 3, width=3)]),
        (W, [rows(1, 1, width=3)]),
        (W, [rows(2, 1, width=3)]),
        (W, [rows(4, width=3)]),
        (W, [rows(1, width=4)]),
        (I, [rows(1, width=1)]),
        (E, [rows(0, width=3)]),
        (W, [ThreeFactors(0, 9, Drawn(1), core(4, 3), Drawn(1))]),
        (W, [ThreeFactors(0, 9, Drawn(1), core(3, 4), Drawn(1))]),
        (W, [ThreeFactors(0, 9, Identity(), core(3, 3), Drawn(1))]),
        (W, [ThreeFactors(0, 9, factors(3, 2, 1)[0], core(2, 2), Drawn(1))]),
        (W, [ThreeFactors(0, 9, Drawn(1), core(2, 2, 2), Drawn(1))]),
        (W, [ThreeFactors(0, 9, Drawn(1), core(1, 1), Drawn(2))]),
        (W, [ThreeFactors(0, 9, Drawn(1), core(1, 1), Drawn(1)), Subspace(0, 9, 2, np.zeros(4, np.int16))]),
        (V, [ThreeFactors(0, 9, Drawn(1), core(1, 1), Drawn(1))]),
        (E, [ThreeFactors(0, 9, Identity(), core(0, 3), Identity())]),
        (HUGE, [ThreeFactors(0, 9, *none_of(8192))]),
        (W, [Subspace(0, 9, 1, np.zeros(0, np.int16))]),
        (W, [Subspace(0, 9, 1, np.zeros((1 << 20) + 1, np.int16))]),
        (W, [Subspace(0, 9, 1, np.zeros((2, 2), np.int16))]),
        (W, [Subspace(0, 9, 1, np.zeros(4, np.int16)), Subspace(0, 9, 1, np.zeros(5, np.int16))]),
        (I, [Subspace(0, 9, 1, np.zeros(4, np.int16))]),
    ],
)
def test_the_writer_refuses_records_that_do_not_fit(spec: TensorSpec, records: list[Record]) -> None:
    with pytest.raises(InvalidInput):
        encode_update(TensorTable([spec]), records, base_digest=None)


def test_the_step_nearest_to_a_step_is_found() -> None:
    assert [nearest_scale(step) for step in (1.0, 2.0, 0.5, 0.0, -1.0, 1e-30, 1e30)] == [192, 200, 184, 0, 0, 0, 255]


@pytest.mark.parametrize("count", [1, 4, 30, 200])
def test_container_and_headers_take_at_most_24_bytes_and_2_for_each_changed_tensor(count: int) -> None:
    """Signed metadata carry the result's digest; every payload here is one value, mostly zero."""
    rng = np.random.default_rng(count)
    tensors = sorted(rng.choice(2 * count, count, replace=False).tolist())
    table = TensorTable([TensorSpec(f"layer{i:04}.weight", "F32", (1, 1) if i % 3 else (1,)) for i in range(2 * count)])
    scales = np.rint(rng.normal(90, 6, count)).astype(int).tolist()
    q, one, zeros = np.zeros(1, np.int16), np.ones((1, 1), np.int8), np.zeros((1, 1), np.int8)
    core, drawn = np.zeros((1, 1, 1), np.int16), Drawn(7)
    files: dict[str, list[Record]] = {"dense": [], "subspace": [], "mixed": []}
    for index, scale in zip(tensors, scales, strict=True):
        matrix = table[index].matrix is not None
        files["dense"].append(Dense(index, scale, np.zeros(1, np.int32)))
        files["subspace"].append(Subspace(index, scale, 7, q))
        low = LowRank(index, scale, one, zeros) if index % 2 else ThreeFactors(index, scale, drawn, core, drawn)
        files["mixed"].append(low if matrix else files["dense"][-1])
    for records in files.values():
        data = encode_update(table, records, base_digest="sha256:" + "0" * 64)
        assert len(data) <= 24 + 2 * count


def test_a_small_update_costs_twenty_bytes_beside_its_factors() -> None:
    table = TensorTable([TensorSpec("w", "F32", (100, 100))])
    data = encode_update(table, [LowRank(0, 96, *factors(100, 1, 100))], base_digest="sha256:" + "0" * 64)
    assert len(data) < 60


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_infinities_and_nan_of_a_base_raise_no_alarm_of_their_own(dtype: str) -> None:
    bits = {
        "F32": [0x7F800000, 0x7FC00000, 0x7F7FFFFF],
        "F16": [0x7C00, 0x7D00, 0x7BFF],
        "BF16": [0x7F80, 0x7FC0, 0x7F7F],
    }
    spec = TensorSpec("w", dtype, (3,))
    base = np.array(bits[dtype], f"<u{spec.itemsize}").view(spec.storage)
    rebuilt = rebuild_tensor(base, spec, [Dense(0, 255, np.full(3, 2**24 - 1, np.int32))])
    values = widen(rebuilt, dtype)
    assert np.isinf(values[0])
    assert np.isnan(values[1])
