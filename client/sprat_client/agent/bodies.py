"""Arrays in the bodies of the local endpoint, as JSON or as safetensors."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from sprat_client.agent.serve import Answer
from sprat_client.runtime.ports import Array
from sprat_client.runtime.tensor_bodies import decode_tensors, encode_tensors
from sprat_shared.errors import InvalidInput


def inputs_of(body: bytes, *, safetensors: bool) -> Array | Mapping[str, Array]:
    """Return what is asked: one array, or arrays by input name.

    Raises:
        InvalidInput: the body is not of that form.
    """
    if safetensors:
        tensors = decode_tensors(body)
        return tensors["inputs"] if set(tensors) == {"inputs"} else tensors
    try:
        inputs = json.loads(body)["inputs"]
        if isinstance(inputs, dict):
            return {name: np.asarray(values) for name, values in inputs.items()}
        return np.asarray(inputs)
    except (ValueError, TypeError, KeyError, RecursionError) as bad:
        raise InvalidInput(f'the body must be {{"inputs": [...]}} with equally long rows ({bad!r:.100})') from None


def answer_body(model: str, answer: Answer, *, safetensors: bool) -> bytes:
    """Return the body of an answer."""
    if safetensors:
        return encode_tensors(answer.outputs)
    outputs = {name: output.tolist() for name, output in answer.outputs.items()}
    return json.dumps({"model": model, "release": answer.release, "outputs": outputs}).encode()


def samples_of(body: bytes | Mapping[str, Any]) -> tuple[Array, Array]:
    """Return inputs and labels of a safetensors body, or of a JSON object.

    Raises:
        InvalidInput: the body is not of that form.
    """
    said = decode_tensors(body) if isinstance(body, bytes) else body
    if set(said) != {"inputs", "labels"}:
        raise InvalidInput(f"samples are `inputs` and `labels`; got {', '.join(sorted(said)) or 'neither'}")
    try:
        return np.asarray(said["inputs"]), np.asarray(said["labels"])
    except ValueError as bad:
        raise InvalidInput(f"the rows of inputs and labels must be equally long ({bad!r:.100})") from None
