"""The integer coder."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sprat_shared.errors import MalformedUpdate
from sprat_shared.wire.integers import Family, IntegerDecoder, IntegerEncoder

Run = tuple[Family, list[int]]
WANTED = st.tuples(st.sampled_from(Family), st.integers(0, 60))


@st.composite
def runs(draw: st.DrawFn) -> Run:
    family = draw(st.sampled_from(Family))
    most = (1 << draw(st.integers(0, family.bits))) - 1
    values = st.integers(-most if family.signed else 0, most)
    return family, draw(st.lists(values, max_size=draw(st.sampled_from([0, 1, 5, 70]))))


def encoded(parts: list[Run], log2_lanes: int) -> bytes:
    encoder = IntegerEncoder(log2_lanes)
    for family, values in parts:
        encoder.put(family, values)
    return encoder.finish()


def decoded(stream: bytes, parts: list[Run], log2_lanes: int) -> list[Run]:
    decoder = IntegerDecoder(memoryview(stream), log2_lanes)
    back = [(family, decoder.take(family, len(values)).tolist()) for family, values in parts]
    decoder.finish()
    return back


@settings(max_examples=100, deadline=None)
@given(st.lists(runs(), max_size=8), st.integers(0, 6))
def test_decoding_undoes_encoding(parts: list[Run], log2_lanes: int) -> None:
    assert decoded(encoded(parts, log2_lanes), parts, log2_lanes) == parts


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("log2_lanes", [0, 3])
def test_the_largest_magnitudes_survive(family: Family, log2_lanes: int) -> None:
    most = (1 << family.bits) - 1
    parts = [(family, [0, 1, most, most - 1, most >> 1] + ([-1, -most] if family.signed else []))]
    assert decoded(encoded(parts, log2_lanes), parts, log2_lanes) == parts


@pytest.mark.parametrize(("family", "value"), [(Family.U, 128), (Family.U, -128), (Family.GAP, -1), (Family.KIND, 16)])
def test_a_value_out_of_range_is_not_encoded(family: Family, value: int) -> None:
    with pytest.raises(ValueError, match=family.name):
        IntegerEncoder(0).put(family, [value])


@settings(max_examples=60, deadline=None)
@given(st.lists(runs(), min_size=1, max_size=4), st.integers(0, 3), st.data())
def test_a_cut_stream_is_refused_and_never_misread(parts: list[Run], log2_lanes: int, chance: st.DataObject) -> None:
    stream = encoded(parts, log2_lanes)
    with pytest.raises(MalformedUpdate):
        decoded(stream[: chance.draw(st.integers(0, len(stream) - 1))], parts, log2_lanes)


@settings(max_examples=60, deadline=None)
@given(
    st.binary(max_size=200),
    st.lists(st.tuples(st.sampled_from(Family), st.integers(0, 60)), max_size=5),
    st.integers(0, 4),
)
def test_noise_gives_integers_within_range_or_a_named_error(
    noise: bytes, wanted: list[tuple[Family, int]], log2_lanes: int
) -> None:
    try:
        decoder = IntegerDecoder(memoryview(noise), log2_lanes)
        for family, count in wanted:
            values = decoder.take(family, count)
            assert values.size == count
            assert (np.abs(values) < 1 << family.bits).all()
            assert family.signed or (values >= 0).all()
    except MalformedUpdate:
        pass


def test_more_words_than_the_integers_need_are_refused() -> None:
    parts = [(Family.DENSE, [3, -70, 1000])]
    for log2_lanes in (0, 1):
        with pytest.raises(MalformedUpdate, match="do not end"):
            decoded(encoded(parts, log2_lanes) + b"\0\0", parts, log2_lanes)


@pytest.mark.parametrize("log2_lanes", [0, 8])
def test_the_coder_comes_close_to_the_entropy(log2_lanes: int) -> None:
    rng = np.random.default_rng(4)
    values = np.rint(rng.laplace(0, 1.5, 40_000)).clip(-127, 127).astype(np.int8)
    _, counts = np.unique(values, return_counts=True)
    entropy_bytes = float(counts @ np.log2(counts.sum() / counts)) / 8
    encoder = IntegerEncoder(log2_lanes)
    encoder.put(Family.U, values)
    assert len(encoder.finish()) < 1.02 * entropy_bytes + 4 * (1 << log2_lanes)


@pytest.mark.parametrize("count", [200, 1_000, 5_000, 40_000])
@pytest.mark.parametrize(
    "odds",
    [(1, 2, 1), (5, 90, 5), (1, 98, 1), (1, 2, 4, 2, 1), (3, 7, 15, 20, 10, 20, 15, 7, 3)],
    ids=["even ternary", "sparse ternary", "sparser ternary", "2 bits", "3 bits"],
)
def test_coarse_grids_cost_their_entropy_so_that_they_need_no_kind_of_record(odds: tuple[int, ...], count: int) -> None:
    most = len(odds) // 2
    values = np.random.default_rng(count).choice(np.arange(-most, most + 1), count, p=np.array(odds) / sum(odds))
    _, counts = np.unique(values, return_counts=True)
    entropy_bytes = float(counts @ np.log2(counts.sum() / counts)) / 8
    encoder = IntegerEncoder(0)
    encoder.put(Family.U, values)
    assert len(encoder.finish()) - 4 < 1.03 * entropy_bytes + 6, "4 are the state of the lane"
