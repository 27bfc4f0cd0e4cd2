"""Between a torch module and a tensor table: names, storage dtypes, tied tensors, and loading exact weights."""

from collections.abc import Mapping
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from sprat_shared.errors import InvalidInput
from sprat_shared.wire.tensors import Array, ArrayTensors, TensorSource, TensorTable

CODES: Final[Mapping[torch.dtype, str]] = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Dtype codes of the tensor table by torch dtype."""

_DTYPES: Final = {code: dtype for dtype, code in CODES.items()}


class WeightsMismatch(InvalidInput):
    """Weights and module do not belong together."""

    code = "weights.mismatch"


class WeightsNotFinite(InvalidInput):
    """A tensor of the weights holds NaN or Inf."""

    code = "weights.not-finite"


def tied_names(module: nn.Module) -> dict[str, str]:
    """Return the tied tensors of a module: every further name -> the first name, in UTF-8 byte order, of its tensor."""
    first: dict[tuple[object, ...], str] = {}
    tied: dict[str, str] = {}
    state: Mapping[str, Tensor] = module.state_dict(keep_vars=True)
    for name in sorted(state, key=str.encode):
        tensor = state[name]
        if tensor.numel() == 0:
            continue
        key = (tensor.data_ptr(), tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        kept = first.setdefault(key, name)
        if kept != name:
            tied[name] = kept
    return tied


def module_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the module's state by name, detached, without the further names of tied tensors.

    Raises:
        InvalidInput: a tensor has a dtype that updates cannot carry.
    """
    tied = tied_names(module)
    state: Mapping[str, Tensor] = module.state_dict()
    tensors = {name: tensor.detach() for name, tensor in state.items() if name not in tied}
    for name, tensor in tensors.items():
        if tensor.dtype not in CODES:
            raise InvalidInput(f"tensor {name} has dtype {tensor.dtype}, which no update can carry; convert the module")
    return tensors


def to_source(tensors: Mapping[str, Tensor], aliases: Mapping[str, str] | None = None) -> ArrayTensors:
    """Return torch tensors as a tensor source: row-major storage arrays, bfloat16 as its bits in uint16.

    Args:
        tensors: by name.
        aliases: further names of tied tensors -> the name in `tensors`.
    """
    return ArrayTensors({name: (CODES[tensor.dtype], _storage(tensor)) for name, tensor in tensors.items()}, aliases)


def with_tied_once(source: TensorSource, tied: Mapping[str, str]) -> TensorSource:
    """Return the source with each tied tensor once, under its first name, and the other names as aliases.

    A file may hold a tied tensor under any of its names, or under several with equal bits.

    Args:
        source: as the user gave it.
        tied: every further name of a tied tensor -> its first (`tied_names` of the recipe's module).

    Raises:
        WeightsMismatch: two names of one tied tensor hold different values.
    """
    if not tied:
        return source
    arrays: dict[str, tuple[str, Array]] = {}
    for index, spec in enumerate(source.table.specs):
        name, entry = tied.get(spec.name, spec.name), (spec.dtype, source.read(index))
        other = arrays.setdefault(name, entry)
        if other[0] != spec.dtype or other[1].tobytes() != entry[1].tobytes():
            raise WeightsMismatch(f"{spec.name} and {name} are tied in the module, but their values differ")
    return ArrayTensors(arrays, {name: kept for name, kept in tied.items() if kept in arrays})


def to_torch(source: TensorSource) -> dict[str, Tensor]:
    """Return copies of all tensors of a source as torch tensors by name.

    Raises:
        InvalidInput: a tensor has a dtype that torch cannot hold.
    """
    tensors: dict[str, Tensor] = {}
    for index, spec in enumerate(source.table.specs):
        if spec.dtype not in _DTYPES:
            raise InvalidInput(f"tensor {spec.name} has dtype {spec.dtype}, which cannot be trained here")
        array = np.array(source.read(index), copy=True, order="C")
        if spec.dtype == "BF16":
            tensors[spec.name] = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).reshape(spec.shape)
        else:
            tensors[spec.name] = torch.from_numpy(array).reshape(spec.shape)
    return tensors


def floats(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with 16-bit floats widened to float32, as training and devices compute with them."""
    return {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}


def narrowed(tensors: Mapping[str, Tensor], like: TensorSource) -> dict[str, Tensor]:
    """Return the tensors of the table of `like`, in its dtypes."""
    kinds = {name: t.dtype for name, t in to_torch(like).items()}
    return {name: tensors[name].to(kind) for name, kind in kinds.items()}


def load_weights(module: nn.Module, source: TensorSource) -> None:
    """Put the weights of `source` into `module`, bit for bit.

    Raises:
        WeightsMismatch: a tensor is missing, is not of the module, or has another shape or dtype; all are named.
    """
    check_weights(module, source.table)
    tied = tied_names(module)
    tensors = to_torch(source)
    full = tensors | {name: tensors[kept] for name, kept in tied.items()}
    with torch.no_grad():
        for name, tensor in module.state_dict(keep_vars=True).items():
            tensor.copy_(full[name])


def check_weights(module: nn.Module, table: TensorTable) -> None:
    """Compare a module with a tensor table.

    Raises:
        WeightsMismatch: a tensor is missing, is not of the module, or has another shape or dtype; all are named.
    """
    own = {name: (CODES[tensor.dtype], tuple(tensor.shape)) for name, tensor in module_tensors(module).items()}
    given = {spec.name: (spec.dtype, tuple(spec.shape)) for spec in table.specs}
    problems = [f"{name} is missing" for name in own if name not in given]
    problems += [f"{name} is not in the module" for name in given.keys() - own.keys()]
    problems += [
        f"{name} is {given[name][0]}{list(given[name][1])} where the module has {own[name][0]}{list(own[name][1])}"
        for name in own.keys() & given.keys()
        if own[name] != given[name]
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:20])
        more = f"; and {len(problems) - 20} more" if len(problems) > 20 else ""  # noqa: PLR2004 - as many as are shown
        raise WeightsMismatch(f"the weights do not fit the recipe's module: {shown}{more}")


def check_finite(source: TensorSource) -> None:
    """Refuse weights with NaN or Inf.

    Raises:
        WeightsNotFinite: the tensors that hold them are named.
    """
    bad = []
    for index, spec in enumerate(source.table.specs):
        if spec.dtype in {"F32", "F64", "F16"}:
            finite = bool(np.isfinite(source.read(index)).all())
        elif spec.dtype == "BF16":  # all exponent bits set: Inf or NaN
            finite = not bool(((source.read(index) & 0x7F80) == 0x7F80).any())  # noqa: PLR2004 - bfloat16's exponent mask
        else:
            finite = True
        if not finite:
            bad.append(spec.name)
    if bad:
        raise WeightsNotFinite(f"NaN or Inf in {', '.join(bad[:20])}; the weights are refused")


def _storage(tensor: Tensor) -> Array:
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16).copy()
    array: Array = tensor.numpy().copy()
    return array
