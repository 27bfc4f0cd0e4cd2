"""How much memory something takes at its peak, as the kernel counts it for this process."""

from pathlib import Path
from typing import Final

from sprat_client.runtime.memory import peak_bytes, return_memory

_CLEAR: Final = Path("/proc/self/clear_refs")
_RESET_PEAK: Final = "5"  # proc(5): the peak of the resident set begins anew at what is resident now


class Peak:
    """The peak from its making on, above what was resident then.

    Where the kernel does not let the peak begin anew (no such file, /proc mounted read-only, CONFIG_PROC_PAGE_MONITOR
    unset) nothing is measured: a peak of before would count for this one.
    """

    def __init__(self) -> None:
        return_memory()  # else what was freed before would be taken again and not count
        self._before = _begun_anew()

    def taken(self) -> int | None:
        """Return how many bytes were taken at once since; None where that cannot be said."""
        if self._before is None:
            return None
        taken = peak_bytes() - self._before
        return taken if taken > 0 else None


def _begun_anew() -> int | None:
    try:
        _CLEAR.write_text(_RESET_PEAK, encoding="ascii")
    except OSError:
        return None
    return peak_bytes() or None
