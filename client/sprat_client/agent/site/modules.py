"""The modules that plans need of this device, each loaded once, however many plans name its release."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from sprat_client.agent import steps
from sprat_client.agent.kserve import type_of
from sprat_client.agent.releases import Shelf
from sprat_client.agent.room import require_memory
from sprat_client.agent.site.module_queue import ModuleQueue
from sprat_client.agent.site.pace import Pace
from sprat_client.agent.site.peak import Peak
from sprat_client.agent.site.site_meter import SiteMeter
from sprat_client.agent.steps import Workshop
from sprat_client.runtime.memory import return_memory
from sprat_client.runtime.ports import Array, InferenceFailed, ModelHost, PortSpec
from sprat_shared.protocol.site_plan import PlannedModule
from sprat_shared.tasks.types import Signature

_RTOL: Final = 1e-3  # answers of a row alone and among others: last bits differ, and what mixes rows differs far more
_ATOL: Final = 1e-4


@dataclass(slots=True)
class LoadedModule:
    """One release that is loaded for plans.

    Attributes:
        model: its name.
        release: its number.
        host: the loaded model.
        queue: of requests to it.
        signature: what it takes and gives.
        alone_s: of one request with one row, as it was tried.
        holders: how many plans hold it.
    """

    model: str
    release: int
    host: ModelHost
    queue: ModuleQueue
    signature: Signature
    alone_s: float
    holders: int = 0


class Modules:
    """Loads modules and lets them go. Used by the agent's own thread alone.

    Args:
        shop: what the agent works with.
        measured: takes what modules take.
    """

    def __init__(self, shop: Workshop, measured: SiteMeter) -> None:
        self._shop, self._measured, self._warm = shop, measured, False
        self._loaded: dict[str, LoadedModule] = {}  # by release id

    def take(self, planned: PlannedModule, shelf: Shelf) -> LoadedModule:
        """Return a module that is loaded, tried, and held until `let_go`.

        Raises:
            StoreCorrupted: a file of it does not have its bytes.
            ModelNotLoadable: the runtime refuses it, or does not run at all.
            MemoryShort: there is no room for it; nothing was loaded.
        """
        if (module := self._loaded.get(planned.release_id)) is None:
            module = self._loaded[planned.release_id] = self._load(planned, shelf)
        module.holders += 1
        return module

    def let_go(self, module: LoadedModule) -> None:
        """Give one hold up; with the last one the module goes, once what waits for it is answered."""
        module.holders -= 1
        if module.holders:
            return
        module.queue.close()
        self._loaded = {name: one for name, one in self._loaded.items() if one is not module}
        return_memory()

    def close(self, timeout_s: float) -> None:
        """Let all go, and wait for what is under way."""
        for module in self._loaded.values():
            module.queue.close()
        for module in self._loaded.values():
            module.queue.join(timeout_s)
        self._loaded = {}

    def _load(self, planned: PlannedModule, shelf: Shelf) -> LoadedModule:
        name = f"{planned.model}@{planned.release}"
        manifest = shelf.manifest(planned.release_id)
        settings, meter = self._shop.settings.site, self._shop.servings.meter
        measured = self._measured.module(planned.release_id)
        peak, before = None, meter.total
        if planned.release_id not in self._shop.hosts:
            require_memory(manifest.mapped_bytes, f"loading {name} for a plan of the site")
            if not self._warm:
                self._shop.runtime.warm_up()
                np.random.default_rng(0).standard_normal(1)  # as `tried` draws: 3 MB that stay loaded
                self._warm = True
            peak = Peak()
        host = steps.load_once(self._shop, shelf, manifest)
        together, alone_s, pace = tried(host)
        if peak is not None and meter.total == before:  # else requests took memory beside it
            measured.memory_bytes = peak.taken()
        measured.tried_s = alone_s or None

        def ran(requests: int, rows: int, seconds: float) -> None:
            measured.ran(rows, seconds)
            for _ in range(requests):
                meter.answered(planned.model, planned.release, seconds)

        queue = ModuleQueue(
            host,
            name,
            together=together,
            most_waiting=settings.most_waiting,
            most_rows=settings.most_rows,
            pace=pace,
            ran=ran,
        )
        return LoadedModule(planned.model, planned.release, host, queue, signature_of(host), alone_s)


def signature_of(host: ModelHost) -> Signature:
    """Return what a loaded model takes and gives, as tasks are typed."""
    inputs, outputs = ({port.name: type_of(port) for port in ports} for ports in (host.inputs, host.outputs))
    return Signature(inputs, outputs)


def tried(host: ModelHost) -> tuple[bool, float, Pace]:
    """Let a model answer made-up rows, one by one and together, so that the runtime takes its memory.

    Returns:
        Whether its answer for rows in one array is that for each, so that requests may run together; the seconds of one
        row, 0 where it cannot answer such a row; and how long one and two rows took.
    """
    draw, pace = np.random.default_rng(0), Pace()
    rows = [{port.name: _made_up(port, draw) for port in host.inputs} for _ in range(2)]
    try:
        host.run(rows[0])
        alone, seconds = zip(*(_timed(host, row) for row in rows), strict=True)
    except InferenceFailed:
        return False, 0.0, pace  # lengths of 1 do not suit it; requests will show
    for one in seconds:
        pace.ran(1, one)
    together = _has_free_rows(host) and _same_together(host, rows, alone, pace)
    return together, sum(seconds) / len(seconds), pace


def _timed(host: ModelHost, values: dict[str, Array]) -> tuple[Sequence[Array], float]:
    begun = time.monotonic()
    outputs = host.run(values)
    return outputs, time.monotonic() - begun


def _has_free_rows(host: ModelHost) -> bool:
    ports = [*host.inputs, *host.outputs]
    names = {port.lengths[:1] for port in ports}
    return bool(host.inputs) and all(port.shape[:1] == (None,) for port in ports) and len(names) == 1


def _same_together(
    host: ModelHost, rows: Sequence[dict[str, Array]], alone: Sequence[Sequence[Array]], pace: Pace
) -> bool:
    joined = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    try:
        for _ in range(2):  # the first of a shape takes longer
            together, seconds = _timed(host, joined)
            pace.ran(len(rows), seconds)
    except InferenceFailed:
        return False
    return all(
        output.shape[:1] == (len(rows),)
        and np.allclose(output, np.concatenate(answers), rtol=_RTOL, atol=_ATOL, equal_nan=True)
        for output, *answers in zip(together, *alone, strict=True)
    )


def _made_up(port: PortSpec, draw: np.random.Generator) -> Array:
    shape = tuple(1 if length is None else length for length in port.shape)
    if port.dtype.kind == "f":
        return draw.standard_normal(shape).astype(port.dtype)
    return draw.integers(0, 2, shape).astype(port.dtype)
