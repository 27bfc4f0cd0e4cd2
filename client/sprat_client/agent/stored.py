"""Files of the store as arrays, mapped: what a rebuild reads."""

from collections.abc import Sequence

import numpy as np

from sprat_client.agent.store import StoreCorrupted, TensorStore, map_file
from sprat_shared.wire.tensors import Array, TensorSpec, TensorTable


class StoredTensors:
    """A release's tensors, read from the store: the base of a rebuild (`wire.TensorSource`).

    Args:
        table: the tensor table.
        sha256s: digests by index.
        store: where the files are.
    """

    def __init__(self, table: TensorTable, sha256s: Sequence[bytes], store: TensorStore) -> None:
        self.table, self._sha256s, self._store = table, sha256s, store

    def read(self, index: int) -> Array:
        """Return a read-only array of the spec's shape and storage dtype, mapped from the file.

        Raises:
            StoreCorrupted: the file is gone or too short.
        """
        return _mapped(self._store, self._sha256s[index], self.table.specs[index])

    def sha256(self, index: int) -> bytes:
        """Return the digest under which the tensor is stored; `check_all` says whether the file still has it."""
        return self._sha256s[index]

    def check_all(self) -> None:
        """Recompute the digest of every file.

        Raises:
            StoreCorrupted: one of them has other bytes.
        """
        for spec, sha256 in zip(self.table.specs, self._sha256s, strict=True):
            self._store.check(sha256, f"tensor {spec.name!r}")


class HeldTensors:
    """Everything in the store, by the beginnings of digests (`apply.HeldTensors`).

    Args:
        store: where the files are.
    """

    def __init__(self, store: TensorStore) -> None:
        self._store = store

    def find(self, prefix: bytes, spec: TensorSpec) -> Array | None:
        """Return the tensor of this length whose digest begins so, mapped.

        None where there is none, or more than one, or its file has other bytes: what is of another model is not mended
        for this one.
        """
        sha256 = self._store.find(prefix, spec.nbytes)
        if sha256 is None:
            return None
        try:
            self._store.check(sha256, f"tensor {spec.name!r}")
        except StoreCorrupted:
            return None
        return _mapped(self._store, sha256, spec)


def _mapped(store: TensorStore, sha256: bytes, spec: TensorSpec) -> Array:
    return np.frombuffer(map_file(store.path(sha256), spec), dtype=spec.storage).reshape(spec.shape)
