"""Rows, three factors and subspaces: exact at every limit, in blocks as in one piece."""

import numpy as np
import pytest
import sums

from sprat_shared.apply import products, rebuild_tensor
from sprat_shared.wire.drawn import Use, drawn_matrix, slots_and_signs, subspace_of
from sprat_shared.wire.records import Drawn, Identity, LowRank, Rows, Subspace, Sum, ThreeFactors
from sprat_shared.wire.tensors import TensorSpec


def in_one_piece(record: Sum, spec: TensorSpec) -> np.ndarray:
    """The exact integers, int64, in the matrix view."""
    match record:
        case ThreeFactors():
            u, v = record.left(spec), record.right(spec)
            left = np.eye(spec.shape[0], dtype=np.int64) if u is None else u.astype(np.int64)
            right = np.eye(spec.shape[1], dtype=np.int64) if v is None else v.astype(np.int64)
            out = sums.three_factors(left, record.core.astype(np.int64), right)
        case Subspace():
            out = np.array(sums.drawn_values(record.seed, record.index, spec.size, record.q.tolist()))
        case Rows():
            out = np.zeros(spec.matrix or (), np.int64)
            out[record.rows] = record.q
        case LowRank():
            out = record.u.astype(np.int64) @ record.v
        case _:
            out = record.q
    return out.reshape(spec.matrix or (1, spec.size))


def some_records(spec: TensorSpec, rng: np.random.Generator) -> list[Sum]:
    """A record of every kind that fits, three factors with all pairs of sides."""
    q = rng.integers(-9, 10, 37).astype(np.int16)
    records: list[Sum] = [Subspace(0, 9, 5, q)]
    if spec.matrix is None:
        return records
    (m, n), (o, i), s = spec.matrix, spec.shape[:2], spec.size // spec.shape[0] // spec.shape[1]
    rank = min(m, n)
    records.append(LowRank(0, 9, *(rng.integers(-127, 128, shape).astype(np.int8) for shape in ((m, rank), (rank, n)))))
    if m > 1:
        which = np.unique(rng.integers(0, m, max(1, m // 2))).astype(np.uint32)[: m * n // (n + 1)]
        records.append(Rows(0, 9, which, rng.integers(-(2**24) + 1, 2**24, (which.size, n)).astype(np.int32)))
    for left in ("sent", Drawn(5), Identity()):
        for right in ("sent", Drawn(5), Identity()):
            r = o if isinstance(left, Identity) else int(rng.integers(1, min(o, i * s) + 1))
            t = i if isinstance(right, Identity) else int(rng.integers(1, min(i, o * s) + 1))
            core = rng.integers(-32767, 32768, (r, t, s)).astype(np.int16)
            u = rng.integers(-127, 128, (o, r)).astype(np.int8) if left == "sent" else left
            v = rng.integers(-127, 128, (t, i)).astype(np.int8) if right == "sent" else right
            records.append(ThreeFactors(0, 9, u, core, v))
    return records


SHAPES = [
    (),
    (1,),
    (1000,),
    (1, 1),
    (1, 300),
    (300, 1),
    (17, 23),
    (5, 4, 3),
    (2, 3, 130),
    (3, 1, 7, 11),
    (130, 2, 2, 1),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("block", [1 << 16, 64, 7])
def test_blocks_of_any_size_give_the_integers_of_one_piece(
    shape: tuple[int, ...], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "BLOCK", block)
    monkeypatch.setattr(products, "_INNER", 2 * block)
    spec = TensorSpec("w", "F32", shape)
    for record in some_records(spec, np.random.default_rng(len(shape))):
        record.check(spec)
        found = np.full(spec.matrix or (1, spec.size), np.nan, np.float32)
        for down, across, part in products.products(record, spec):
            assert np.isnan(found[down, across]).all(), "no value twice"
            found[down, across] = part
        assert (found == in_one_piece(record, spec).astype(np.float32)).all()
        assert not np.signbit(found[found == 0]).any()


@pytest.mark.parametrize(("low", "least"), [((100, 30000), 30000 * 100 * 100), ((127, 32767), 32767 * 127 * 127)])
def test_sums_of_three_factors_near_2_to_the_53_are_exact(low: tuple[int, int], least: int) -> None:
    rng, size = np.random.default_rng(1), 2000
    spec = TensorSpec("w", "F32", (size, size))
    u, v = (rng.integers(low[0], 128, (size, size)).astype(np.int8) for _ in range(2))
    core = rng.integers(low[1], 32768, (size, size, 1)).astype(np.int16)
    record = ThreeFactors(0, 9, u, core, v)
    record.check(spec)
    down, across, part = next(products.products(record, spec))
    inner = core[:, :, 0].astype(np.int64) @ v[:, across][:, :3].astype(np.int64)
    exact = [
        [sum(int(a) * int(b) for a, b in zip(row, column, strict=True)) for column in inner.T] for row in u[down][:5]
    ]
    assert size * size * least <= min(map(min, exact)) <= 2**53
    assert (part[:5, :3] == np.array(exact, np.int64).astype(np.float32)).all()


@pytest.mark.parametrize("index", [0, 1, 70_000])
def test_what_is_drawn_is_what_the_text_says(index: int) -> None:
    for seed, size, count in ((0, 1, 1), (1, 200, 7), (2**32 - 1, 70_000 if index == 1 else 99, 1 << 20)):
        slots, signs = subspace_of(seed, index, size, count)
        signed = [slot * sign for slot, sign in zip((slots + 1).tolist(), signs.tolist(), strict=True)]
        assert signed == sums.drawn_values(seed, index, size, range(1, count + 1))
        assert (slots.dtype, signs.dtype) == (np.int32, np.int8)
        for use in (Use.LEFT, Use.RIGHT):
            assert drawn_matrix(seed, index, use, size, 2).reshape(-1).tolist() == sums.drawn_sides(
                seed, index, use, size, 2
            )


def test_the_examples_of_the_text_hold() -> None:
    assert sums.number(0, 0) == 0xE220A8397B1DCDAF
    assert sums.number(7, 1) == 0x044C3CD7F43C661C
    assert sums.number(7, 4 * 3 + 2) == 0xDD2F9B2D0B5F15E6
    slots, signs = subspace_of(7, 3, 6, 1000)
    assert (slots * signs).tolist() == [-815, 556, 984, -718, 120, -573]
    assert drawn_matrix(7, 3, Use.LEFT, 4, 8)[0].tolist() == [1, -1, -1, 1, 1, 1, 1, 1]


def test_what_is_drawn_is_spread_evenly() -> None:
    slots, signs = subspace_of(3, 2, 1 << 18, 1000)
    assert abs(signs.mean()) < 0.01
    assert np.bincount(slots, minlength=1000).std() < 1.1 * np.sqrt((1 << 18) / 1000)
    assert abs(drawn_matrix(3, 2, Use.LEFT, 512, 512).mean()) < 0.01
    assert abs(np.corrcoef(slots, subspace_of(3, 3, 1 << 18, 1000)[0])[0, 1]) < 0.01


def test_positions_far_out_are_drawn_without_those_before_them() -> None:
    far = np.array([[2**40, 5], [2**40 + 1, 0]], np.uint64)
    slots, signs = slots_and_signs(9, 4, far, 1000)
    key = sums.number(9, 4 * 4 + 2)
    words = [sums.number(key, int(i)) for i in far.reshape(-1)]
    assert slots.reshape(-1).tolist() == [(w >> 32) * 1000 >> 32 for w in words]
    assert signs.reshape(-1).tolist() == [1 - 2 * (w & 1) for w in words]


@pytest.mark.parametrize("shape", [(1, 200_000), (200_000, 1), (3, 70_000), (200_000,), (40, 2, 2500)])
def test_large_tensors_in_a_subspace_take_the_same_values_in_blocks(shape: tuple[int, ...]) -> None:
    spec, q = TensorSpec("w", "F32", shape), np.arange(-500, 500).astype(np.int16)
    rebuilt = rebuild_tensor(np.zeros(shape, np.float32), spec, [Subspace(6, 192, 3, q)])
    slots, signs = subspace_of(3, 6, spec.size, q.size)
    assert (rebuilt.reshape(-1) == q[slots] * signs).all()
