"""The memory of this process: how much it has, and giving back what dropped models leave."""

import ctypes
import gc
from pathlib import Path


def resident_bytes() -> int:
    """Return the resident memory of this process; 0 where the system does not say."""
    return _kilobytes("/proc/self/status", "VmRSS:")


def peak_bytes() -> int:
    """Return the largest resident memory that this process had, as the kernel remembers it; 0 where nobody says."""
    return _kilobytes("/proc/self/status", "VmHWM:")


def private_bytes() -> int:
    """Return the resident memory of this process that no file is behind; 0 where the system does not say."""
    return _kilobytes("/proc/self/status", "RssAnon:")


def proportional_bytes() -> int:
    """Return the resident memory of this process, each page by the share of its mappings; 0 where nobody says.

    Resident memory counts a page once for each mapping, so layers that models share show here, and only here.
    """
    return _kilobytes("/proc/self/smaps_rollup", "Pss:")


def _kilobytes(file: str, name: str) -> int:
    try:
        lines = Path(file).read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), 0)


def return_memory() -> None:
    """Give memory of dropped sessions back to the system, where the C library can (glibc's malloc_trim)."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        return
