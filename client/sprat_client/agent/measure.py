"""What a release costs on this device: seconds of an inference beside the old one's, bytes that loading it adds."""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from sprat_client.runtime.memory import private_bytes, return_memory
from sprat_client.runtime.ports import Array, InferenceFailed, ModelHost, PortSpec, Runtime

_STEPS: Final = (2**0.5, 3**0.5)
_FREE_AXIS: Final = 16  # length given to free axes other than the batch's
_MEMORY_NOISE: Final = 4 << 20  # what requests that are answered meanwhile take and give back
_TENSORS: Final = "t"


def made_up(host: ModelHost) -> dict[str, Array]:
    """Return one sample of standard normal numbers, or of zeros for integers, by input name."""
    return {spec.name: _made_up(spec) for spec in host.inputs}


def _made_up(spec: PortSpec) -> Array:
    shape = [1 if axis == 0 else n or _FREE_AXIS for axis, n in enumerate(spec.shape)]
    if spec.dtype.kind == "f":
        return _bell(math.prod(shape)).reshape(shape).astype(spec.dtype)
    return np.zeros(shape, spec.dtype)


def _bell(count: int) -> npt.NDArray[np.float64]:
    """Return numbers that lie as standard normal ones do (Box and Muller, 1958, of multiples of irrational numbers).

    They are the same each time. `numpy.random` would do as well, and stay loaded: 3 MB.
    """
    near, turn = (np.arange(1, count + 1) * step % 1.0 for step in _STEPS)  # even over [0, 1)
    return np.asarray(np.sqrt(-2.0 * np.log(1.0 - near)) * np.cos(2.0 * np.pi * turn))


@dataclass(slots=True)
class Times:
    """Seconds of single inferences, taken in turn; `old` is empty where there is no old release, or it fails."""

    new: list[float] = field(default_factory=list)
    old: list[float] = field(default_factory=list)

    def percentiles(self) -> tuple[tuple[float, float], tuple[float, float] | None]:
        """Return the 50th and 95th percentiles of the new and of the old release, seconds."""
        return _percentiles(self.new) or (0.0, 0.0), _percentiles(self.old)


def _percentiles(times: list[float]) -> tuple[float, float] | None:
    if not times:
        return None
    p50, p95 = np.percentile(times, [50, 95])
    return float(p50), float(p95)


def time_in_turn(
    new: ModelHost, old: ModelHost | None, values: Mapping[str, Array], runs: int, *, budget_s: float = float("inf")
) -> Times:
    """Time the same inference by both releases, each first every other time, after one that warms up.

    Args:
        new: the new release.
        old: the old one, if there is one.
        values: inputs by name.
        runs: of each.
        budget_s: begin no further run after so long.

    Raises:
        InferenceFailed: the new release failed.
    """
    times, begun = Times(), time.monotonic()
    for run in range(runs + 1):
        turns = [(times.new, new), (times.old, old)]
        for kept, host in turns if run % 2 else reversed(turns):
            start = time.perf_counter()
            try:
                answered = host is not None and bool(host.run(values))
            except InferenceFailed:
                if host is new:
                    raise
                answered = False
            if run and answered:
                kept.append(time.perf_counter() - start)
        if time.monotonic() - begun > budget_s:
            break
    return times


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes that the old and the new release take when they are loaded.

    Attributes:
        old: of the old one,
        new: of the new one.
        again: measures both once more.
    """

    old: int
    new: int
    again: Callable[[], tuple[int, int]]

    def exceeds(self, ratio: float) -> bool:
        """Return whether the new release takes more than `ratio` times what the old one takes.

        Other threads take and give back memory meanwhile: a first excess is measured twice more, the medians count, and
        less than 4 MiB of it is no excess.
        """
        if not _is_excess(self.old, self.new, ratio):
            return False
        all_three = [(self.old, self.new), *(self.again() for _ in range(2))]
        (_, old, _), (_, new, _) = (sorted(one) for one in zip(*all_three, strict=True))
        return _is_excess(old, new, ratio)


def _is_excess(old: float, new: float, ratio: float) -> bool:
    return new - ratio * old > _MEMORY_NOISE


def load_measured(runtime: Runtime, folder: Path) -> tuple[ModelHost, int]:
    """Load a release folder, ask it once, and return it with the bytes that this took.

    These are the bytes of its tensor files, which the runtime maps and the kernel may drop and read again, and the
    growth of the process's private memory, which it may not. The runtime has loaded a release before, so that what it
    takes once and for all is not counted.

    Raises:
        ModelNotLoadable: the runtime refuses it.
    """
    return_memory()
    before = private_bytes()
    host = runtime.load(folder)
    with suppress(InferenceFailed):
        host.run(made_up(host))
    grown = max(0, private_bytes() - before)
    tensors = folder / _TENSORS
    mapped = sum(file.stat().st_size for file in tensors.iterdir()) if tensors.is_dir() else 0
    return host, mapped + grown
