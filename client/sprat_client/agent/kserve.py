"""The bodies of KServe's open inference protocol (V2), for models and tasks: JSON with named, typed, flat tensors."""

import json
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from sprat_client.runtime.ports import Array, ModelHost, PortSpec
from sprat_client.runtime.tensor_bodies import decode_tensors, encode_tensors
from sprat_shared.errors import InvalidInput
from sprat_shared.tasks.types import TensorType, free_length

DATATYPES: Final[Mapping[str, str]] = {
    "BOOL": "bool",
    **{f"{kind}INT{bits}": f"{kind.lower()}int{bits}" for kind in ("", "U") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": f"float{bits}" for bits in (16, 32, 64)},
}
"""What a dtype of numpy is called there."""
_NAMED: Final = {dtype: name for name, dtype in DATATYPES.items()}
_MOST_INPUTS: Final = 64
_MOST_AXES: Final = 32


def asked(body: bytes, *, safetensors: bool) -> dict[str, Array]:
    """Return the inputs of a request's body, by name.

    Raises:
        InvalidInput: it is not of that form.
    """
    if safetensors:
        return decode_tensors(body)
    try:
        return inputs_of_kserve(json.loads(body))
    except (ValueError, RecursionError) as bad:
        raise InvalidInput(f"the body is not JSON ({bad!r:.100})") from None


def answered(said: Mapping[str, Any], outputs: Mapping[str, Array], *, safetensors: bool) -> bytes:
    """Return the body of an answer; as JSON with what else is to be said."""
    if safetensors:
        return encode_tensors(outputs)
    return json.dumps({**said, "outputs": outputs_as_kserve(outputs)}).encode()


def inputs_of_kserve(said: Any) -> dict[str, Array]:
    """Read `{"inputs": [{"name": ..., "shape": [...], "datatype": "FP32", "data": [...]}]}`.

    Raises:
        InvalidInput: it has another form; the message names the input.
    """
    entries = said.get("inputs") if isinstance(said, Mapping) else None
    if not isinstance(entries, list) or not 1 <= len(entries) <= _MOST_INPUTS:
        raise InvalidInput('the body must be {"inputs": [{"name", "shape", "datatype", "data"}, ...]}')
    inputs: dict[str, Array] = {}
    for entry in entries:
        match entry:
            case {"name": str(name), "shape": list(shape), "datatype": str(datatype), "data": list(data)}:
                if name in inputs:
                    raise InvalidInput(f"input {name!r:.100} is there twice")
                inputs[name] = _array(name, shape, datatype, data)
            case _:
                raise InvalidInput(f"an input needs name, shape, datatype and data; got {entry!r:.100}")
    return inputs


def outputs_as_kserve(outputs: Mapping[str, Array]) -> list[dict[str, Any]]:
    """Return the `outputs` of an answer."""
    return [
        {
            "name": name,
            "shape": list(value.shape),
            "datatype": _NAMED.get(str(value.dtype), str(value.dtype)),
            "data": value.ravel().tolist(),
        }
        for name, value in outputs.items()
    ]


def described(model: str, versions: list[str], host: ModelHost) -> dict[str, Any]:
    """Return what a model takes and gives; a free length is -1, and `type` says which ones are the same."""
    return {
        "name": model,
        "versions": versions,
        "platform": "onnxruntime",
        "inputs": [_port(port) for port in host.inputs],
        "outputs": [_port(port) for port in host.outputs],
    }


def typed(types: Mapping[str, TensorType]) -> list[dict[str, Any]]:
    """Return what flows in or out of a task, as `described` says it of a model."""
    return [_said(name, kind) for name, kind in types.items()]


def type_of(port: PortSpec) -> TensorType:
    """Return what a port takes or gives, as tasks are typed."""
    names = port.lengths or (None,) * len(port.shape)
    shape = (
        free_length(name, port.name, axis) if length is None else length
        for axis, (length, name) in enumerate(zip(port.shape, names, strict=True))
    )
    return TensorType(str(port.dtype), tuple(shape))


def _port(port: PortSpec) -> dict[str, Any]:
    return _said(port.name, type_of(port))


def _said(name: str, kind: TensorType) -> dict[str, Any]:
    shape = [one if isinstance(one, int) else -1 for one in kind.shape]
    return {"name": name, "datatype": _NAMED[kind.dtype], "shape": shape, "type": str(kind)}


def _array(name: str, shape: list[Any], datatype: str, data: list[Any]) -> Array:
    if datatype not in DATATYPES:
        raise InvalidInput(f"input {name!r:.100}: datatype {datatype!r:.40} is not one of {', '.join(DATATYPES)}")
    if len(shape) > _MOST_AXES or not all(type(length) is int and length >= 0 for length in shape):
        raise InvalidInput(f"input {name!r:.100}: shape {shape!r:.80} is no list of lengths")
    dtype = np.dtype(DATATYPES[datatype])
    try:
        given = np.asarray(data)
        if given.dtype.kind not in "biuf" or (dtype.kind in "iub" and given.dtype.kind == "f" and given.size):
            raise InvalidInput(f"input {name!r:.100}: its data are no {datatype}")
        values = given.astype(dtype)
        if dtype.kind in "biu" and (values != given).any():
            raise InvalidInput(f"input {name!r:.100}: some of its data are beyond {datatype}")
        return values.reshape(shape)
    except (ValueError, TypeError, OverflowError) as bad:
        raise InvalidInput(f"input {name!r:.100}: its data do not fill shape {shape!r:.80} ({bad!s:.100})") from None
