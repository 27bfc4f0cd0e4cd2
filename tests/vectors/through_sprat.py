"""Releases of the second decoder, handed to sprat's own and back."""

import hashlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from decoder import Release, Tensor

from sprat_shared.apply import apply_update
from sprat_shared.wire.tensors import ArrayTensors, TensorSource, TensorSpec, TensorTable, WithoutLocal


class Collected:
    """Takes the tensors of a new release into memory (`apply.TensorSink`)."""

    def __init__(self, base: Release | None) -> None:
        self._base = base
        self.release = Release([], [])

    def begin(self, table: TensorTable) -> None:
        self.release.aliases = list(table.aliases.items())
        self._table = table

    def keep(self, index: int, sha256: bytes) -> None:
        assert self._base is not None
        held = next(tensor for tensor in self._base.tensors if tensor.name == self._table[index].name)
        assert hashlib.sha256(held.data).digest() == sha256
        self.release.tensors.append(held)

    def put(self, index: int, array: np.ndarray[Any, Any], sha256: bytes) -> None:
        spec = self._table[index]
        assert hashlib.sha256(array.tobytes()).digest() == sha256
        assert (array.shape, array.dtype) == (spec.shape, spec.storage)
        self.release.tensors.append(Tensor(spec.name, spec.dtype, spec.shape, array.tobytes()))


def source_of(release: Release) -> TensorSource:
    """The tensors of a release as sprat reads them."""
    arrays: Mapping[str, tuple[str, np.ndarray[Any, Any]]] = {
        t.name: (t.dtype, np.frombuffer(t.data, TensorSpec(t.name, t.dtype, t.shape).storage).reshape(t.shape))
        for t in release.tensors
    }
    source, local = ArrayTensors(arrays, dict(release.aliases)), [i for i, t in enumerate(release.tensors) if t.local]
    return WithoutLocal(source, local) if local else source


def release_of(source: ArrayTensors) -> Release:
    """The tensors of a source as the second decoder reads them."""
    tensors = [Tensor(s.name, s.dtype, s.shape, source.read(i).tobytes()) for i, s in enumerate(source.table)]
    return Release(tensors, list(source.table.aliases.items()))


class Held:
    """Tensors that a device has, of any model, by their raw data (`apply.HeldTensors`)."""

    def __init__(self, held: Collection[bytes]) -> None:
        self._held = set(held)

    def find(self, prefix: bytes, spec: TensorSpec) -> np.ndarray[Any, Any] | None:
        found = [one for one in self._held if len(one) == spec.nbytes and hashlib.sha256(one).digest()[:8] == prefix]
        return np.frombuffer(found[0], spec.storage).reshape(spec.shape) if len(found) == 1 else None


def apply(
    update: bytes,
    base: Release | None,
    expected: str | None = None,
    local: Collection[int] = (),
    held: Collection[bytes] = (),
) -> tuple[Release, str]:
    """What sprat makes of an update: the release and the digest it reports."""
    sink = Collected(base)
    source = None if base is None else source_of(base)
    digest = apply_update(update, source, sink, expected=expected, local=local, held=Held(held))
    for index in local:
        sink.release.tensors[index].local = True
    return sink.release, digest
