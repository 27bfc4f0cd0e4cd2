"""A release of the simulated server: made with the real encoder, exact as decoding its update gives it."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np

from sprat_shared.ids import digest_text
from sprat_shared.trust.targets import LocalStatistics, Shares
from sprat_shared.wire.tensors import ArrayTensors, TensorSource, TensorTable, WithoutLocal


class MemorySink:
    """Keeps rebuilt tensors in memory (`apply.TensorSink`)."""

    def __init__(self, base: TensorSource | None) -> None:
        self._base = base
        self.arrays: dict[int, np.ndarray[Any, Any]] = {}

    def begin(self, table: TensorTable) -> None:
        self.table = table

    def keep(self, index: int, _sha256: bytes) -> None:
        assert self._base is not None
        self.arrays[index] = self._base.read(self._base.table.index_of(self.table[index].name))

    def put(self, index: int, array: np.ndarray[Any, Any], _sha256: bytes) -> None:
        self.arrays[index] = array.copy()

    def weights(self) -> dict[str, tuple[str, np.ndarray[Any, Any]]]:
        return {spec.name: (spec.dtype, self.arrays[index]) for index, spec in enumerate(self.table)}


@dataclass
class Release:
    """One release: exact weights, as decoding its update gives them."""

    number: int
    weights: Mapping[str, tuple[str, np.ndarray[Any, Any]]]
    digest: str
    graph: bytes
    base: int | None
    update: bytes | None
    full: bytes
    local: tuple[int, ...] = ()
    statistics: bytes | None = None
    shares: Shares | None = None

    @property
    def source(self) -> WithoutLocal:
        """The tensors as updates see them."""
        return WithoutLocal(ArrayTensors(self.weights), self.local)

    @property
    def signed_local(self) -> LocalStatistics | None:
        """What the signed metadata say of local tensors."""
        if self.statistics is None:
            return None
        return LocalStatistics(graph=digest_text(sha256(self.statistics).digest()), tensors=self.local)
