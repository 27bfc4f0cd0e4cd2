"""A device whose active release is a near copy of the one in the other slot: equal answers, until the inputs drift."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tiny_onnx
from one_device import MODEL, OneDevice, one_device

from sprat_shared.protocol.report import Outcome
from sprat_shared.trust.targets import Shares

_BLIND = 0  # the feature that the near copy does not see


def known(count: int, seed: int = 7) -> tiny_onnx.Array:
    """Return inputs (n, features) on which the near copy and its original agree."""
    inputs = np.random.default_rng(seed).standard_normal((count, tiny_onnx.FEATURES)).astype(np.float32)
    inputs[:, _BLIND] = 0
    return inputs


def drifted(device: OneDevice, count: int, seed: int = 8) -> tiny_onnx.Array:
    """Return inputs (n, features) on which the two name different classes."""
    inputs = known(200 * count, seed)
    inputs[:, _BLIND] = 6
    releases = device.server.models[MODEL]
    base, copy = (tiny_onnx.logits(releases[number].weights, inputs).argmax(axis=1) for number in (1, 2))
    return np.ascontiguousarray(inputs[base != copy][:count])


def near_copy(base: tiny_onnx.Weights, steps: int) -> dict[str, tuple[str, tiny_onnx.Array]]:
    """Return weights that do not see one of the features; `steps`, which nothing reads, tells several apart."""
    code, first = base["first.weight"]
    blind = first.copy()
    blind[_BLIND] = 0
    return {**base, "first.weight": (code, blind), "steps": ("I64", np.array(steps, np.int64))}


def add_near_copy(device: OneDevice, *, budget: float = 0.05) -> None:
    """Publish the near copy of release 1 as the next release."""
    base = device.server.models[MODEL][1]
    shares = Shares(base=1, weights=base.digest, donor="face", budget_ppm=round(budget * 1e6))
    weights = near_copy(base.weights, steps=len(device.server.models[MODEL]) + 1)
    device.server.add_release(MODEL, weights, base=1, lossless=True, shares=shares)


@contextmanager
def sharing_device(folder: Path, **changes: Any) -> Iterator[OneDevice]:
    """Run a server and a device that holds release 1 and runs its near copy, release 2."""
    with one_device(folder) as device:
        inputs = known(64)
        labels = tiny_onnx.logits(device.server.models[MODEL][1].weights, inputs).argmax(axis=1)
        np.savez(device.holdout, inputs=inputs, labels=labels)
        add_near_copy(device)
        assert device.take(2, **changes)[1].outcome is Outcome.COMMITTED
        yield device
