"""Peers that encode the difference to a finished full retrain, without training anything more.

What they have in common is generous to them: names, shapes and headers cost nothing; tensors of one dimension (norms,
biases) are sent as fp16 differences beside the method proper, or with a finer step; what zstd can still save is saved.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
import zstandard
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from sizes.cases import Problem
from sizes.method import Method, Sent
from sizes.store import Store
from sprat_server.compress import updates
from sprat_server.training.states import floats, to_torch
from sprat_shared import wire
from sprat_shared.wire.records import Dense
from sprat_shared.wire.scales import STEPS, nearest_scale

Array = npt.NDArray[Any]
Deltas = dict[str, Tensor]
_HERE: Final = Path(__file__)


def squeezed(*parts: bytes) -> int:
    """Return the bytes of the parts together, through zstd's level 19 if that is fewer."""
    whole = b"".join(parts)
    return min(len(whole), len(zstandard.compress(whole, 19)))


def deltas(problem: Problem) -> Deltas:
    """Return the change of every float tensor."""
    return {n: problem.teacher[n] - t for n, t in problem.base.items() if t.is_floating_point()}


def patched(problem: Problem, change: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the base with changes added; what has none stays."""
    return {n: t + change[n].view_as(t) if n in change else t for n, t in problem.base.items()}


def halves(change: Mapping[str, Tensor]) -> tuple[Deltas, bytes]:
    """Return tensors rounded to fp16, and their bytes."""
    rounded = {name: tensor.half() for name, tensor in change.items()}
    return floats(rounded), b"".join(tensor.numpy().tobytes() for tensor in rounded.values())


def split(change: Deltas) -> tuple[Deltas, Deltas]:
    """Return the changes of matrices, and of all that has one dimension."""
    return {n: t for n, t in change.items() if t.ndim > 1}, {n: t for n, t in change.items() if t.ndim <= 1}


_EXACT: Final = {
    f"{'difference' if not xor else 'exclusive or'}, {'byte planes' if planes else 'as is'}, level {level}": (
        xor,
        planes,
        level,
    )
    for xor in (False, True)
    for planes in (False, True)
    for level in (19, 22)
}


def _exact(problem: Problem, settings: Sequence[str], _store: Store) -> Iterator[Sent]:
    for setting in settings:
        xor, planes, level = _EXACT[setting]
        raw = b""
        for name, change in deltas(problem).items():
            old, new = problem.base[name].numpy(), problem.teacher[name].numpy()
            bits = (old.view(np.uint32) ^ new.view(np.uint32)) if xor else change.numpy().view(np.uint32)
            raw += bits.reshape(-1, 1).view(np.uint8).T.tobytes() if planes else bits.tobytes()
        yield Sent(setting, len(zstandard.compress(raw, level)), problem.teacher)


_PATCH: Final = {
    f"level {level}, long matching {'on' if long else 'off'}": (level, long)
    for level in (3, 9, 19, 22)
    for long in (False, True)
}


def _patch_from(problem: Problem, settings: Sequence[str], _store: Store) -> Iterator[Sent]:
    names = deltas(problem)
    old, new = (b"".join(s[n].numpy().tobytes() for n in names) for s in (problem.base, problem.teacher))
    reference = zstandard.ZstdCompressionDict(old, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    for setting in settings:
        level, long = _PATCH[setting]
        window = (len(old) + len(new)).bit_length()
        how = zstandard.ZstdCompressionParameters.from_level(level, window_log=window, enable_ldm=long)
        data = zstandard.ZstdCompressor(dict_data=reference, compression_params=how).compress(new)
        yield Sent(setting, len(data), problem.teacher)


_KEPT: Final = {f"{100 * share:g} %": share for share in (0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64)}


def _top_k(problem: Problem, settings: Sequence[str], _store: Store) -> Iterator[Sent]:
    large, small = split(deltas(problem))
    sizes = torch.cat([t.abs().flatten() for t in large.values()]).sort(descending=True).values
    rounded, rest = halves(small)
    for setting in settings:
        least = float(sizes[math.ceil(_KEPT[setting] * len(sizes)) - 1])
        change, values, gaps, grid = dict(rounded), b"", b"", b""
        for name, t in large.items():
            scale = float(t.abs().max()) / 127
            q = torch.where(t.abs() >= least, (t / scale).round(), torch.zeros(())).to(torch.int8)
            change[name] = q.float() * scale
            flat = q.numpy().ravel()
            at = np.flatnonzero(flat)
            values += flat[at].tobytes() + np.float16(scale).tobytes()
            gaps += _gap_bytes(np.diff(at, prepend=-1) - 1)
            grid += flat.tobytes()
        yield Sent(setting, min(squeezed(values, gaps, rest), squeezed(grid, rest)), patched(problem, change))


def _gap_bytes(gaps: Array) -> bytes:
    """Return gaps as bytes, 255 standing for 255 skipped values with more to follow."""
    whole = np.repeat(np.uint8(255), int((gaps // 255).sum() + len(gaps)))
    whole[np.cumsum(gaps // 255 + 1) - 1] = gaps % 255
    return whole.tobytes()


_STEPS: Final = {f"step {step:g} rms": step for step in (0.35, 0.5, 0.7, 1, 1.4, 2, 2.8, 4, 5.6, 8, 11)}
_FINER: Final = 16


def _uniform(problem: Problem, settings: Sequence[str], _store: Store) -> Iterator[Sent]:
    change = deltas(problem)
    large, small = split(change)
    whole = torch.cat([t.flatten() for t in large.values()]).square().mean().sqrt().item()
    index = {spec.name: i for i, spec in enumerate(problem.source.table.specs)}
    for setting in settings:
        records = []
        for name in sorted(change, key=index.__getitem__):
            own = change[name].square().mean().sqrt().item()
            if not own:
                continue
            scale = nearest_scale(own / _FINER if name in small else _STEPS[setting] * whole)
            q = (change[name] / float(STEPS[scale])).round().numpy().ravel().astype(np.int32)
            if q.any():
                records.append(Dense(index[name], scale, q))
        updated = updates.from_records(problem.source, records)
        yield Sent(setting, len(updated.data), floats(to_torch(updated.weights)))


_CUTS: Final[Mapping[str, float]] = {
    **{f"rank {rank}": float(rank) for rank in (1, 2, 3, 4, 6, 8, 12, 16)},
    **{f"{100 * energy:g} % of each energy": energy for energy in (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)},
}


def _svd(problem: Problem, settings: Sequence[str], _store: Store) -> Iterator[Sent]:
    large, small = split(deltas(problem))
    parts = {name: torch.linalg.svd(t.flatten(1), full_matrices=False) for name, t in large.items()}
    for setting in settings:
        cut, sent = _CUTS[setting], dict(small)
        for name, (left, values, right) in parts.items():
            kept = values.square().cumsum(0) / values.square().sum()
            rank = min(int(cut), len(values)) if cut >= 1 else int((kept < cut).sum()) + 1
            if rank * (len(left) + right.shape[1]) < large[name].numel():
                sent[name + "|u"] = left[:, :rank] * values[:rank].sqrt()
                sent[name + "|v"] = values[:rank, None].sqrt() * right[:rank]
            else:
                sent[name] = large[name]
        rounded, data = halves(sent)
        products = {n: rounded[f"{n}|u"] @ rounded[f"{n}|v"] for n in large if f"{n}|u" in rounded}
        yield Sent(setting, squeezed(data), patched(problem, rounded | products))


_SIGNS: Final = {
    f"scale per {'row' if rows else 'tensor'}, {'distilled' if factor is None else f'{factor:g} of the mean'}": (
        rows,
        factor,
    )
    for rows in (False, True)
    for factor in (0.35, 0.5, 0.7, 1.0, None)
}


def _bit_delta(problem: Problem, settings: Sequence[str], _store: Store) -> Iterator[Sent]:
    large, small = split(deltas(problem))
    rounded, rest = halves(small)
    signs = {name: torch.where(t >= 0, 1.0, -1.0) for name, t in large.items()}
    bits = b"".join(np.packbits(t.numpy() > 0).tobytes() for t in signs.values())
    for setting in settings:
        rows, factor = _SIGNS[setting]
        means = {n: t.abs().flatten(1).mean(1) if rows else t.abs().mean().expand(1) for n, t in large.items()}
        scales = {n: (t * (factor or 1.0)).view(-1, *[1] * (large[n].ndim - 1)).clone() for n, t in means.items()}
        if factor is None:
            _distil_scales(problem, signs, scales, rounded)
        scales, data = halves(scales)
        change = {name: scales[name] * sign for name, sign in signs.items()}
        yield Sent(setting, squeezed(bits, data, rest), patched(problem, rounded | change))


def _distil_scales(problem: Problem, signs: Deltas, scales: Deltas, rounded: Deltas) -> None:
    """Train the scales on the full retrain's outputs, as BitDelta does (arXiv 2402.10193, section 3.1)."""
    train, module = problem.data.train, problem.trainable.module.eval()
    leaves = {name: scale.clone().requires_grad_() for name, scale in scales.items()}
    optimizer = torch.optim.Adam([{"params": [t], "lr": 0.02 * float(t.detach().mean())} for t in leaves.values()])
    order = torch.Generator().manual_seed(problem.seed)
    for _ in range(4):
        for batch in torch.randperm(len(train), generator=order).split(64):
            optimizer.zero_grad()
            change = rounded | {name: leaves[name] * sign for name, sign in signs.items()}
            outputs = functional_call(module, patched(problem, change), (train.inputs[batch],))
            functional.mse_loss(outputs, problem.taught[batch]).backward()
            optimizer.step()
    scales.update({name: leaf.detach() for name, leaf in leaves.items()})


def _method(key: str, title: str, settings: Mapping[str, Any], sweep: Any, *more: Path) -> Method:
    return Method(key=key, title=title, ours=False, settings=tuple(settings), sweep=sweep, code=(_HERE, *more))


_WIRE: Final = sorted(Path(str(wire.__file__)).parent.rglob("*.py"))
METHODS: Final = (
    _method("zstd", "fp32 delta + zstd", _EXACT, _exact),
    _method("patch-from", "zstd --patch-from (library)", _PATCH, _patch_from),
    _method("top-k", "top-k int8 + zstd", _KEPT, _top_k),
    _method("uniform", "uniform quantiser + sprat's integer coder", _STEPS, _uniform, *_WIRE),
    _method("svd", "post-hoc SVD fp16", _CUTS, _svd),
    _method("bit-delta", "BitDelta", _SIGNS, _bit_delta),
)
