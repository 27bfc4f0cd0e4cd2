"""Strategies: tensors of every dtype and shape, two releases of them, and updates in between."""

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from sprat_shared.apply import rebuild_tensor
from sprat_shared.wire.exact import EXPONENT_BITS, encode_exact
from sprat_shared.wire.patch import PatchedTensors
from sprat_shared.wire.planes import encode_planes
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
    Sum,
    ThreeFactors,
)
from sprat_shared.wire.records.three_factors import three_sides
from sprat_shared.wire.tensors import (
    DTYPES,
    REBUILDABLE,
    Array,
    ArrayTensors,
    TensorSpec,
    TensorTable,
    digest_of,
    tensor_sha256,
    weights_digest,
)
from sprat_shared.wire.update import encode_update

SHAPES = st.one_of(
    st.sampled_from([(), (0,), (1,), (1, 9), (9, 1), (0, 3), (3, 0)]),
    st.lists(st.integers(1, 6), max_size=4).map(tuple),
)


@dataclass(frozen=True)
class Case:
    """A base, what an update says, the file, and the digest of its result."""

    base: ArrayTensors | None
    table: TensorTable
    records: list[Record]
    data: bytes
    expected: str


@st.composite
def arrays(draw: st.DrawFn, spec: TensorSpec) -> Array:
    """Any bits for integers and lossless floats; booleans are 0 or 1."""
    if spec.dtype == "BOOL":
        return np.array(draw(st.lists(st.booleans(), min_size=spec.size, max_size=spec.size)), bool).reshape(spec.shape)
    raw = draw(st.binary(min_size=spec.nbytes, max_size=spec.nbytes))
    return np.frombuffer(raw, spec.storage).reshape(spec.shape)


@st.composite
def finite_arrays(draw: st.DrawFn, spec: TensorSpec) -> Array:
    """Floats of moderate size, minus zero and subnormal numbers among them."""
    top = {"F32": 0x4F000000, "F16": 0x5000, "BF16": 0x4F00}[spec.dtype]
    sign = 1 << 8 * spec.itemsize - 1
    bits = st.builds(lambda size, negative: size | sign * negative, st.integers(0, top), st.booleans())
    values = draw(st.lists(bits, min_size=spec.size, max_size=spec.size))
    return np.array(values, f"<u{spec.itemsize}").view(spec.storage).reshape(spec.shape)


@st.composite
def factors(draw: st.DrawFn, rows: int, columns: int) -> Array:
    """Integers of -127 to 127."""
    count = rows * columns
    values = draw(st.lists(st.integers(-127, 127), min_size=count, max_size=count))
    return np.array(values, np.int8).reshape(rows, columns)


SEED = 2**31 + 5
COEFFICIENTS = np.array([3, 0, -1, 1, 32767, -20], np.int16)


@st.composite
def sums(draw: st.DrawFn, index: int, spec: TensorSpec) -> Sum:
    """A record that adds and fits; what a file has once is the same in all."""
    scale = draw(st.integers(0, 200))
    m, n = spec.matrix or (0, 0)
    ways = [LowRank, ThreeFactors, *[Rows] * (m > 1)] if m * n else []
    kind = draw(st.sampled_from([Dense, Subspace, *ways]))
    if kind is LowRank:
        rank = draw(st.integers(1, min(m, n)))
        return LowRank(index, scale, draw(factors(m, rank)), draw(factors(rank, n)))
    if kind is ThreeFactors:
        return draw(three_factors(index, scale, spec))
    if kind is Rows:
        rows = sorted(draw(st.sets(st.integers(0, m - 1), min_size=1, max_size=m * n // (n + 1))))
        values = draw(st.lists(st.integers(-99, 99), min_size=len(rows) * n, max_size=len(rows) * n))
        return Rows(index, scale, np.array(rows, np.uint32), np.array(values, np.int32).reshape(-1, n))
    if kind is Subspace:
        return Subspace(index, scale, SEED, COEFFICIENTS)
    q = draw(st.lists(st.integers(1 - 2**24, 2**24 - 1), min_size=spec.size, max_size=spec.size))
    return Dense(index, scale, np.array(q, np.int32))


@st.composite
def three_factors(draw: st.DrawFn, index: int, scale: int, spec: TensorSpec) -> ThreeFactors:
    """Sides of every kind."""
    m, n, s = three_sides(spec)
    sent, drawn, left_out = object(), Drawn(SEED), Identity()
    u, v = (draw(st.sampled_from([sent, drawn, left_out])) for _ in range(2))
    r = m if u is left_out else draw(st.integers(1, min(m, n * s)))
    t = n if v is left_out else draw(st.integers(1, min(n, m * s)))
    core = np.array(draw(st.lists(st.integers(-32767, 32767), min_size=r * t * s, max_size=r * t * s)), np.int16)
    u = draw(factors(m, r)) if u is sent else u
    v = draw(factors(t, n)) if v is sent else v
    return ThreeFactors(index, scale, u, core.reshape(r, t, s), v)


@st.composite
def tables(draw: st.DrawFn) -> TensorTable:
    names = draw(st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=8), max_size=5, unique=True))
    specs = [TensorSpec(name, draw(st.sampled_from(DTYPES)), draw(SHAPES)) for name in names]
    aliases = {"tied to " + name: name for name in names if draw(st.integers(0, 4)) == 0}
    return TensorTable(specs, aliases)


@st.composite
def before(draw: st.DrawFn, table: TensorTable) -> TensorTable:
    """A base from which the table may have grown: tensors missing, of other shapes, dtypes, or in it alone."""
    specs = []
    for spec in table:
        match draw(st.integers(0, 3)):
            case 0:
                continue
            case 1:
                shape = tuple(max(0, d + draw(st.integers(-2, 2))) for d in spec.shape)
                specs.append(TensorSpec(spec.name, spec.dtype, shape))
            case 2:
                specs.append(TensorSpec(spec.name, draw(st.sampled_from(DTYPES)), draw(SHAPES)))
            case _:
                specs.append(spec)
    specs += [TensorSpec("only before " + name, "U8", (2,)) for name in draw(st.sets(st.sampled_from("abc")))]
    names = [spec.name for spec in specs]
    aliases = {alias: name for alias, name in table.aliases.items() if name in names and draw(st.booleans())}
    aliases |= {"once tied to " + name: name for name in names if draw(st.integers(0, 4)) == 0}
    return TensorTable(specs, aliases)


@st.composite
def releases(draw: st.DrawFn, table: TensorTable) -> ArrayTensors:
    """Tensors of the table; those that sums can change are finite."""
    values = {
        spec.name: (spec.dtype, draw(finite_arrays(spec) if spec.dtype in REBUILDABLE else arrays(spec)))
        for spec in table
    }
    return ArrayTensors(values, table.aliases)


@st.composite
def cases(draw: st.DrawFn, *, full: bool | None = None) -> Case:
    """An update with any records, from nothing, from a base of the same table, or from one that is patched."""
    table = draw(tables())
    if full is None:
        full = draw(st.booleans())
    same = full or draw(st.booleans())
    base = None if full else draw(releases(table if same else draw(before(table))))
    source = PatchedTensors(base or ArrayTensors({}), table)
    records, sha256s = list[Record](), []
    for index, spec in enumerate(table):
        can_sum, old = spec.dtype in REBUILDABLE, source.read(index)
        mine: list[Record] = [draw(sums(index, spec)) for _ in range(draw(st.integers(0, 2)))] if can_sum else []
        if spec.size and draw(st.booleans()):
            new = draw(arrays(spec))
            between = rebuild_tensor(old, spec, mine)
            if spec.dtype in EXPONENT_BITS and draw(st.booleans()):
                mine.append(Coded(index, encode_exact(spec, between, new)))
            else:
                mine.append(Lossless(index, encode_planes(spec, between, new, level=1)))
        records += mine
        sha256s.append(tensor_sha256(rebuild_tensor(old, spec, mine)))
    expected = weights_digest(table, sha256s)
    data = encode_update(
        table,
        records,
        base_digest=None if base is None else digest_of(base),
        base_table=None if base is None else base.table,
        result_digest=draw(st.sampled_from([None, expected])),
    )
    return Case(base, table, records, data, expected)
