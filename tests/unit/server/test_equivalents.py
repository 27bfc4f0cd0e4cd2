"""A record may be said in another way that gives the same bits in fewer bytes."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sprat_server.compress import updates
from sprat_server.compress.equivalents import cheapest
from sprat_shared.apply import rebuild_tensor
from sprat_shared.wire.records import Dense, LowRank, Rows
from sprat_shared.wire.tensors import ArrayTensors, TensorSpec, digest_of
from sprat_shared.wire.update import encode_update


def low_rank(seed: int, *, rows: int, columns: int, rank: int, touched: int, density: float) -> LowRank:
    rng = np.random.default_rng(seed)
    u = np.zeros((rows, rank), np.int8)
    u[rng.choice(rows, touched, replace=False)] = rng.integers(-2, 3, (touched, rank))
    v = (rng.integers(-2, 3, (rank, columns)) * (rng.random((rank, columns)) < density)).astype(np.int8)
    return LowRank(index=0, scale=120, u=u, v=v)


def test_a_low_rank_change_of_few_rows_is_sent_as_rows() -> None:
    record = low_rank(1, rows=400, columns=24, rank=8, touched=2, density=0.9)
    said = cheapest(record, TensorSpec("embed", "F32", (400, 24)))
    assert isinstance(said, Rows)
    assert said.rows.size == 2


def test_a_low_rank_change_of_few_values_is_sent_as_values() -> None:
    u, v = np.zeros((12, 9), np.int8), np.eye(9, dtype=np.int8)
    u[::2] = np.random.default_rng(2).integers(-1, 2, (6, 9))
    said = cheapest(LowRank(index=0, scale=120, u=u, v=v), TensorSpec("depthwise", "F32", (12, 1, 3, 3)))
    assert isinstance(said, Dense | Rows)


def test_values_of_a_matrix_that_lie_in_few_rows_are_sent_as_rows_and_a_vector_stays() -> None:
    q = np.zeros((200, 16), np.int32)
    q[7] = np.arange(16)
    dense = Dense(index=0, scale=120, q=q.reshape(-1))
    assert isinstance(cheapest(dense, TensorSpec("head", "F32", (200, 16))), Rows)
    assert cheapest(dense, TensorSpec("bias", "F32", (3200,))) is dense


def test_factors_that_are_cheaper_stay_factors() -> None:
    record = low_rank(3, rows=60, columns=70, rank=2, touched=60, density=1.0)
    assert isinstance(cheapest(record, TensorSpec("w", "F32", (60, 70))), LowRank)


SIDES = st.integers(1, 20)


@given(SIDES, SIDES, st.integers(1, 4), st.floats(0, 1), st.data())
def test_the_equivalent_gives_the_same_bits_in_a_file_that_is_never_longer(
    rows: int, columns: int, rank: int, density: float, data: st.DataObject
) -> None:
    rank, touched, seed = min(rank, rows, columns), data.draw(st.integers(0, rows)), data.draw(st.integers(0, 999))
    record = low_rank(seed, rows=rows, columns=columns, rank=rank, touched=touched, density=density)
    spec = TensorSpec("w", "F32", (rows, columns))
    old = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    wanted = rebuild_tensor(old, spec, [record]).tobytes()
    assert rebuild_tensor(old, spec, [cheapest(record, spec)]).tobytes() == wanted
    base = ArrayTensors({"w": ("F32", old)})
    made = updates.from_records(base, [record])
    assert made.weights.read(0).tobytes() == wanted
    assert len(made.data) <= len(encode_update(base.table, [record], base_digest=digest_of(base)))
