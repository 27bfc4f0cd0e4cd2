"""One update, one digest: whatever multiplies, with however many threads; and a refusal where bits would differ."""

import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import exact
import numpy as np
import pytest
import torch
from decoder import Tensor, decode, step_of
from encoder import Dense as ExactDense
from one_update import the_update
from through_sprat import apply, release_of

from sprat_shared.apply import check_arithmetic, rebuild_tensor
from sprat_shared.apply.arithmetic import integer_product, narrow, widen
from sprat_shared.wire.drawn import subspace_of
from sprat_shared.wire.records import Dense, LowRank, Record, Rows, Subspace, ThreeFactors
from sprat_shared.wire.scales import STEPS
from sprat_shared.wire.tensors import ArrayTensors, TensorSpec, digest_of
from sprat_shared.wire.update import UpdateReader

REBUILD = """
import json, sys
sys.path[:0] = [{vectors!r}]
from one_update import the_update
from threadpoolctl import threadpool_info
from through_sprat import apply, release_of
import numpy
base, data, expected = the_update()
digest = apply(data, release_of(base), expected)[1]
print(json.dumps([digest, [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]]))
"""
FLUSHED = """
import torch
torch.set_num_threads(1)
from sprat_shared.apply import check_arithmetic
check_arithmetic()
assert torch.set_flush_denormal(True)
try:
    check_arithmetic()
except Exception as error:
    print(error.code)
"""


def integers_in_torch(record: Record, spec: TensorSpec) -> torch.Tensor:
    """The integers of a record as PyTorch computes them, rounded once to float32."""
    match record:
        case LowRank():
            return torch.from_numpy(record.u).float() @ torch.from_numpy(record.v).float()
        case Dense():
            return torch.from_numpy(record.q).float()
        case Rows():
            rows = torch.from_numpy(record.rows.astype(np.int64))
            return torch.zeros(spec.matrix or ()).index_add(0, rows, torch.from_numpy(record.q).float())
        case Subspace():
            slots, signs = map(torch.from_numpy, subspace_of(record.seed, record.index, spec.size, record.q.size))
            return torch.from_numpy(record.q).float()[slots.long()] * signs
        case ThreeFactors():
            u, v = record.left(spec), record.right(spec)
            assert u is not None
            assert v is not None
            core = torch.from_numpy(record.core).double()
            inner = torch.einsum("abx,bi->aix", core, torch.from_numpy(v).double())
            return torch.einsum("oa,aix->oix", torch.from_numpy(u).double(), inner).float()
    raise AssertionError(record)


def through_torch(base: ArrayTensors, data: bytes) -> str:
    """The digest of the result when PyTorch computes it."""
    held = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    arrays = [base.read(index).copy() for index in range(len(base.table))]
    new = [torch.from_numpy(a).view(held[spec.dtype]).float() for spec, a in zip(base.table, arrays, strict=True)]
    for record in UpdateReader(memoryview(data), base.table).records():
        shape = base.table[record.index].shape
        product = integers_in_torch(record, base.table[record.index])
        added = (product.reshape(shape) + 0.0) * torch.tensor(STEPS[record.scale])
        new[record.index] = new[record.index] + added
    raw = [t.to(held[spec.dtype]).view(torch.uint8).numpy() for spec, t in zip(base.table, new, strict=True)]
    result = ArrayTensors(
        {spec.name: (spec.dtype, bits.view(spec.storage)) for spec, bits in zip(base.table, raw, strict=True)}
    )
    return digest_of(result)


def test_one_digest_through_numpy_torch_and_the_second_decoder() -> None:
    base, data, expected = the_update()
    assert apply(data, release_of(base), expected)[1] == expected
    assert through_torch(base, data) == expected
    assert "sha256:" + decode(data, release_of(base)).digest().hex() == expected


@pytest.mark.parametrize("threads", [1, 2])
def test_one_digest_with_one_and_with_two_blas_threads(threads: int) -> None:
    script = REBUILD.format(vectors=str(Path(__file__).parent))
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    env = {**os.environ, **dict.fromkeys(names, str(threads))}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    digest, pools = json.loads(done.stdout)
    assert digest == the_update()[2]
    assert pools
    assert set(pools) <= {threads, 1}
    assert threads in pools or os.cpu_count() == 1


def test_with_flush_to_zero_on_the_process_refuses_by_name() -> None:
    done = subprocess.run([sys.executable, "-c", FLUSHED], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "arithmetic.unsafe\n"), done.stderr


def test_this_process_computes_the_formats_bits() -> None:
    check_arithmetic()


@pytest.mark.parametrize("rank", [1039, 1040, 1041, 2080, 2081, 4161])
@pytest.mark.parametrize("low", [100, 127])
def test_products_of_factors_of_100_to_127_are_exact_at_and_beyond_the_bound(rank: int, low: int) -> None:
    rng = np.random.default_rng(rank)
    for signs in ([1], [-1, 1]):
        u, v = (rng.integers(low, 128, s) * rng.choice(signs, s) for s in ((6, rank), (rank, 5)))
        wanted = [[sum(int(a) * int(b) for a, b in zip(row, column, strict=True)) for column in v.T] for row in u]
        rounded = [[exact.to_bits(Fraction(value), "F32") for value in row] for row in wanted]
        product = integer_product(u.astype(np.float32), v.astype(np.float32))
        assert product.view(np.uint32).tolist() == rounded


def test_a_square_at_rank_1040_is_the_same_as_in_integers() -> None:
    rng = np.random.default_rng(3)
    u, v = (rng.integers(100, 128, (1040, 1040)).astype(np.int8) for _ in range(2))
    spec = TensorSpec("w", "F32", (1040, 1040))
    rebuilt = rebuild_tensor(np.zeros((1040, 1040), np.float32), spec, [LowRank(0, 192, u, v)])
    assert STEPS[192] == 1
    assert (rebuilt == (u.astype(np.float64) @ v.astype(np.float64)).astype(np.float32)).all()


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_every_half_survives_the_way_to_float32_and_back(dtype: str) -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16 if dtype == "F16" else np.uint16)
    values = widen(every, dtype)
    back = narrow(values.copy(), dtype).view(np.uint16)
    finite = np.isfinite(values)
    assert (back[finite] == every.view(np.uint16)[finite]).all()
    assert np.isnan(widen(narrow(values.copy(), dtype), dtype)[np.isnan(values)]).all()


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_rounding_to_halves_is_that_of_rational_numbers(dtype: str) -> None:
    rng = np.random.default_rng(8)
    bits = rng.integers(0x30000000, 0x47000000, 4000).astype(np.uint32)
    bits[::2] &= 0xFFFFF000  # many ties
    values = np.concatenate([bits, bits | 0x80000000]).astype(np.uint32).view(np.float32)
    wanted = [exact.to_bits(exact.to_fraction(int(b), "F32"), dtype) for b in values.view(np.uint32)]
    assert narrow(values.copy(), dtype).view(np.uint16).tolist() == wanted


def test_every_step_has_the_bits_of_the_text() -> None:
    assert STEPS.view(np.uint32).tolist() == [int(step_of(scale).view(np.uint32)) for scale in range(256)]
    assert [exact.to_bits(exact.step_of(scale), "F32") for scale in range(256)] == STEPS.view(np.uint32).tolist()


@pytest.mark.parametrize("shape", [(1, 200_000), (200_000, 1), (3, 70_000), (70_000, 3), (200_000,)])
def test_blocks_of_rows_and_columns_change_nothing(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(2)
    base = rng.standard_normal(shape, dtype=np.float32)
    q = rng.integers(-50, 50, base.size).astype(np.int32)
    records: list[Record] = [Dense(0, 150, q)]
    wanted = base + (q.astype(np.float32) * STEPS[150]).reshape(shape)
    if len(shape) == 2:
        u, v = (rng.integers(-127, 128, s).astype(np.int8) for s in ((shape[0], 1), (1, shape[1])))
        records.append(LowRank(0, 140, u, v))
        wanted = wanted + (u.astype(np.float32) @ v.astype(np.float32) + np.float32(0)) * STEPS[140]
    assert (rebuild_tensor(base, TensorSpec("w", "F32", shape), records) == wanted).all()


def test_exact_arithmetic_agrees_on_random_dense_records() -> None:
    rng = np.random.default_rng(9)
    base = rng.standard_normal(300, dtype=np.float32)
    q = rng.integers(-(2**24) + 1, 2**24, 300).astype(np.int32)
    rebuilt = rebuild_tensor(base, TensorSpec("w", "F32", (300,)), [Dense(0, 60, q), Dense(0, 3, q)])
    tensor = Tensor("w", "F32", (300,), base.tobytes())
    assert rebuilt.tobytes() == exact.rebuild(tensor, [ExactDense(0, 60, q.tolist()), ExactDense(0, 3, q.tolist())])
