"""Who is in which wave: plans of waves, and devices in them by salted hash. Pure.

A wave's reach is a number of devices (`10`), a share of those that take part (`25%`), a label (`ring=canary`) or a
filter (`where:...`). Numbers and shares count from the start, devices of label waves among them.
"""

import hashlib
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final
from uuid import UUID

from sprat_shared.errors import InvalidInput

CODE: Final = "rollout.bad-waves"
WHERE: Final = "where:"
_AMOUNT: Final = re.compile(r"([1-9][0-9]{0,8})(%?)")
_LABEL: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9_./-]{0,62})=([^\s,]{1,200})")
_SHARE: Final = re.compile(r"(0|[1-9][0-9]?)(\.[0-9]{1,3})?%")
_WHOLE: Final = 100
_MOST_WAVES: Final = 100
_MOST_TEXT: Final = 1000
_FIRST: Final = 10  # devices of the first wave, where nobody says
_FEWEST_STEPS: Final = 10  # a first wave of the default plan is at most one in so many devices

NO_MATCHES: Final[Mapping[str, Collection[UUID]]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Growth:
    """Waves that grow by a factor from a first number of devices until they reach everyone.

    Attributes:
        first: devices of the first wave; None: 10, in small fleets a tenth of the devices.
        factor: by which the devices that are reached grow with each further wave.
    """

    first: int | None = None
    factor: float = 2.0

    def __post_init__(self) -> None:
        """Refuse what does not grow."""
        if not 1 <= (self.first or 1) <= 10**9 or not 1.25 <= self.factor <= 100:  # noqa: PLR2004 - the bounds it names
            raise InvalidInput(
                f"grow: from {self.first} by {self.factor:g}: start with 1 device or more, and grow by 1.25 to 100",
                code=CODE,
            )

    def reaches(self, devices: int) -> list[str]:
        """Return the waves for so many devices, the last of which is always `100%`."""
        reached = self.first or max(1, min(_FIRST, math.ceil(devices / _FEWEST_STEPS)))
        reaches = []
        while reached < devices:
            reaches.append(str(reached))
            reached = math.ceil(reached * self.factor)
        return [*reaches, f"{_WHOLE}%"]

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {"from": self.first, "factor": self.factor}


def is_filter(reach: str) -> bool:
    """Say whether a reach names devices by what they are, not by how many."""
    return reach.startswith(WHERE) or "=" in reach


def filter_of(reach: str) -> str:
    """Return the filter expression that a label's or a filter's reach stands for."""
    if reach.startswith(WHERE):
        return reach.removeprefix(WHERE).strip()
    label, _, value = reach.partition("=")
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'labels.{label} = "{quoted}"'


def check_reaches(reaches: Sequence[str]) -> list[str]:
    """Return the waves' reaches if they make a plan: each number or share goes further than the one before.

    Whether a filter can be read is for whoever reads filters.

    Raises:
        InvalidInput: there is none, one is nothing of what a reach may be, one does not grow, or one stands twice.
    """
    if not 1 <= len(reaches) <= _MOST_WAVES:
        raise InvalidInput(f"a rollout has 1 to {_MOST_WAVES} waves, got {len(reaches)}", code=CODE)
    seen: dict[str, int] = {}
    for text in reaches:
        if is_filter(text):
            _check_filter(text, seen)
            continue
        match = _AMOUNT.fullmatch(text)
        if match is None or (match[2] and int(match[1]) > _WHOLE):
            raise InvalidInput(
                f"wave {text[:20]!r}: write a number of devices such as '3', 1% to 100%, or a label: ring=canary",
                code=CODE,
            )
        amount = int(match[1])
        if amount <= seen.get(match[2], 0):
            raise InvalidInput(
                f"wave {text!r} reaches no further than one before it; count from the start, as in 1, 50%, 100%",
                code=CODE,
            )
        seen[match[2]] = amount
    return list(reaches)


def _check_filter(text: str, seen: dict[str, int]) -> None:
    reads = bool(filter_of(text)) if text.startswith(WHERE) else _LABEL.fullmatch(text) is not None
    if not reads or len(text) > _MOST_TEXT:
        raise InvalidInput(
            f"wave {text[:60]!r}: write a label such as ring=canary, or where: and a filter, within {_MOST_TEXT} "
            "characters",
            code=CODE,
        )
    if text in seen:
        raise InvalidInput(f"wave {text[:60]!r} stands twice; the second reaches nobody", code=CODE)
    seen[text] = 0


def check_control(text: str) -> str:
    """Return a control share such as `5%` if it can be one.

    Raises:
        InvalidInput: it is no percentage from 0 to below 100.
    """
    if _SHARE.fullmatch(text) is None:
        raise InvalidInput(f"control {text[:20]!r}: write a share of the devices such as 5% or 0.5%", code=CODE)
    return text


def held_back(cohort: Collection[UUID], salt: bytes, share: str, *, wanted: Collection[UUID] = ()) -> set[UUID]:
    """Return the devices that a rollout holds back as its control: the last of its order.

    A share is rounded up; one device at least is left to the waves.

    Args:
        cohort: all devices of the rollout.
        salt: of its order.
        share: such as `5%`.
        wanted: devices that a label wave names: they are not held back.
    """
    count = math.ceil(len(cohort) * float(check_control(share)[:-1]) / _WHOLE)
    free = [device for device in in_order(cohort, salt) if device not in set(wanted)]
    return set(free[max(len(free) - min(count, len(cohort) - 1), 0) :]) if count and len(cohort) > 1 else set()


def place_devices(
    reaches: Sequence[str],
    cohort: Collection[UUID],
    salt: bytes,
    matching: Mapping[str, Collection[UUID]] = NO_MATCHES,
) -> dict[UUID, int | None]:
    """Return for each device its wave, counted from 1; None where no wave reaches it.

    The order is by salted hash: arbitrary, the same for everyone who computes it, another for each rollout (the
    salt is the rollout's id), so that not always the same devices go first. A percentage is rounded up.

    Args:
        reaches: of the waves, as `check_reaches` takes them.
        cohort: the devices that take part.
        salt: of the order.
        matching: for each reach that is a filter, the devices that it names; those beyond the cohort do not count.
    """
    order = in_order(cohort, salt)
    places: dict[UUID, int | None] = dict.fromkeys(order)
    reached = 0
    for ordinal, text in enumerate(check_reaches(reaches), start=1):
        waiting = [device for device in order if places[device] is None]
        if is_filter(text):
            named = set(matching[text])
            chosen = [device for device in waiting if device in named]
        else:
            amount = math.ceil(len(order) * int(text[:-1]) / _WHOLE) if text.endswith("%") else int(text)
            chosen = waiting[: max(amount - reached, 0)]
        places |= dict.fromkeys(chosen, ordinal)
        reached += len(chosen)
    return places


def in_order(devices: Collection[UUID], salt: bytes) -> list[UUID]:
    """Return the devices in the order in which the rollout of this salt reaches them."""
    return sorted(devices, key=lambda device: hashlib.sha256(salt + device.bytes).digest())


def reaches_everyone(reaches: Sequence[str]) -> bool:
    """Say whether the plan ends with the whole cohort, whatever its size."""
    return reaches[-1] == f"{_WHOLE}%"
