"""Quantities as people write them on the command line: `2kB`, `0.5pp`."""

import re
from typing import Final

from sprat_shared.errors import InvalidInput

_UNITS: Final = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
_NUMBER: Final = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", re.ASCII)


def parse_bytes(option: str, text: str) -> int:
    """Return `1400`, `1400B`, `2kB`, `1.5MB` or `2KiB` as a number of bytes, fractions of a byte cut off.

    Raises:
        InvalidInput: it is something else, or less than one byte; `option` is named.
    """
    found = _NUMBER.fullmatch(text)
    unit = _UNITS.get(found[2].lower()) if found else None
    count = int(float(found[1]) * unit) if found and unit is not None else 0
    if count < 1:
        raise InvalidInput(f"{option} {text!r} is not a size; write bytes, such as 1400, 2kB or 1.5MB")
    return count


def parse_points(option: str, text: str) -> float:
    """Return percentage points, `0.5pp`, as a share: 0.005.

    Raises:
        InvalidInput: it is something else, or 100 points and more; `option` is named.
    """
    found = _NUMBER.fullmatch(text)
    points = float(found[1]) if found and found[2].lower() == "pp" else None
    if points is None or points >= 100:  # noqa: PLR2004 - percent
        raise InvalidInput(f"{option} {text!r} is not a number of percentage points; write them such as 0.5pp")
    return points / 100


def parse_window(text: str) -> dict[str, str]:
    """Return a stretch of the day, `22:00-05:00`, as policies and rollouts write it.

    Raises:
        InvalidInput: it has no end.
    """
    start, dash, end = text.partition("-")
    if not dash:
        raise InvalidInput(f"window {text!r}: write the start and the end of a stretch of the day, such as 22:00-05:00")
    return {"from": start.strip(), "to": end.strip()}


def parse_growth(text: str) -> float:
    """Return a factor by which waves grow, `2` or `x2`.

    Raises:
        InvalidInput: it is no number.
    """
    found = _NUMBER.fullmatch(text.removeprefix("x"))
    if found is None or found[2]:
        raise InvalidInput(f"--grow {text!r} is no factor; write how much wider each wave reaches, such as 2")
    return float(found[1])
