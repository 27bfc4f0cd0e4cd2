"""Rows that send a trained low-rank change: its factors in fp16, quantised by sprat's coder, or by NNCodec.

The last two quantise after training. What the second takes from sprat is its files, header included; it is given the
balanced factors of the trained product, and a sweep over ranks and steps together.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from sizes import low_rank, nncodec
from sizes.cases import Problem
from sizes.fitting import Leaves
from sizes.low_rank import RANKS, change, trained_factors
from sizes.method import Method, Sent
from sizes.post_hoc import halves, patched, squeezed
from sizes.store import Store
from sprat_server.compress import updates
from sprat_server.training.states import floats, to_torch
from sprat_shared import wire
from sprat_shared.wire.records import Dense, LowRank
from sprat_shared.wire.scales import STEPS, nearest_scale

_HALVES: Final = {f"rank {rank}": rank for rank in RANKS}
_STEPS: Final = {
    f"rank {rank}, step {step:g} rms": (rank, step)
    for rank in (1, 2, 4, 8, 16, 32)
    for step in (0.5, 0.9, 1.4, 2.0, 2.8)
}
_FINER: Final = 4  # norms and biases: how much finer their step
_FINER_QP: Final = 12  # likewise: three halvings
_LIMIT: Final = 127
_QPS: Final = {
    f"rank {rank}, qp {qp}": (rank, qp, qp - _FINER_QP) for rank in (1, 2, 4, 8, 16) for qp in (-26, -21, -17, -14, -11)
}


def _fp16(problem: Problem, settings: Sequence[str], store: Store, *, distilled: bool) -> Iterator[Sent]:
    for setting in settings:
        leaves = trained_factors(problem, store, _HALVES[setting], distilled=distilled)
        rounded, data = halves(leaves)
        yield Sent(setting, squeezed(data), patched(problem, change(rounded)))


def _quantised(problem: Problem, settings: Sequence[str], store: Store, *, distilled: bool) -> Iterator[Sent]:
    names = [spec.name for spec in problem.source.table.specs]
    for setting in settings:
        rank, step = _STEPS[setting]
        leaves = trained_factors(problem, store, rank, distilled=distilled)
        records = [_record(names.index(name), leaves, name, step) for name in names if _is_sent(leaves, name)]
        updated = updates.from_records(problem.source, [record for record in records if record is not None])
        yield Sent(setting, len(updated.data), floats(to_torch(updated.weights)))


def _is_sent(leaves: Leaves, name: str) -> bool:
    return name in leaves or f"{name}|u" in leaves


def _record(index: int, leaves: Leaves, name: str, step: float) -> LowRank | Dense | None:
    """Return the record of one tensor; None where all is rounded to zero."""
    if name in leaves:
        size = _rms(leaves[name])
        fine = step / _FINER if leaves[name].ndim <= 1 else step
        scale = nearest_scale(fine * size) if size else 0
        q = (leaves[name] / float(STEPS[scale])).round().reshape(-1).numpy().astype(np.int32)
        return Dense(index, scale, q) if q.any() else None
    u, v = _balanced(leaves[f"{name}|u"], leaves[f"{name}|v"])
    unit_u, unit_v = step * _rms(u), step * _rms(v)
    if not unit_u * unit_v:
        return None
    left, right = _integers(u / unit_u), _integers(v / unit_v)
    alive = left.any(axis=0) & right.any(axis=1)
    if not alive.any():
        return None
    left, right = np.ascontiguousarray(left[:, alive]), np.ascontiguousarray(right[alive])
    return LowRank(index=index, scale=nearest_scale(unit_u * unit_v), u=left, v=right)


def _balanced(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return factors of the same product whose components are orthogonal, by strength, each shared by both sides."""
    (left, upper), (right, lower) = torch.linalg.qr(u), torch.linalg.qr(v.T)
    inner_left, values, inner_right = torch.linalg.svd(upper @ lower.T)
    return left @ inner_left * values.sqrt(), values.sqrt()[:, None] * (inner_right @ right.T)


def _integers(factor: Tensor) -> "np.ndarray[Any, np.dtype[np.int8]]":
    return factor.round().clamp(-_LIMIT, _LIMIT).to(torch.int8).numpy()


def _rms(tensor: Tensor) -> float:
    return float(tensor.square().mean().sqrt())


def _nncodec(problem: Problem, settings: Sequence[str], store: Store, *, distilled: bool) -> Iterator[Sent]:
    factors = {r: trained_factors(problem, store, r, distilled=distilled) for r in {_QPS[s][0] for s in settings}}
    asked = {setting: (factors[_QPS[setting][0]], *_QPS[setting][1:]) for setting in settings}
    for setting, size, decoded in nncodec.coded(asked, store.scratch("nncodec-factors")):
        yield Sent(setting, size, patched(problem, change(decoded)))


def _row(key: str, title: str, settings: Mapping[str, Any], way: Any, *more: Path, **needs: Any) -> tuple[Method, ...]:
    """Return a row and, beside it, the same of factors that the full retrain taught."""

    def row(key: str, title: str, *, distilled: bool) -> Method:
        def sweep(problem: Problem, settings: Sequence[str], store: Store) -> Iterator[Sent]:
            return way(problem, settings, store, distilled=distilled)  # type: ignore[no-any-return]

        code = (Path(__file__), *low_rank.CODE, *more)
        return Method(key=key, title=title, ours=False, settings=tuple(settings), sweep=sweep, code=code, **needs)

    return row(key, title, distilled=False), row(f"{key}-distilled", f"{title}, distilled", distilled=True)


_CODER: Final = sorted(Path(str(wire.__file__)).parent.rglob("*.py"))
METHODS: Final = (
    *_row("low-rank", "trained low rank fp16 (the reference's way)", _HALVES, _fp16),
    *_row("low-rank-quantised", "trained low rank, quantised after, sprat's coder", _STEPS, _quantised, *_CODER),
    *_row(
        "low-rank-nncodec",
        "trained low rank, NNCodec of the factors",
        _QPS,
        _nncodec,
        Path(nncodec.__file__),
        environment=nncodec.ENVIRONMENT,
    ),
)
