"""What updates took beside full models: bytes, money, accuracy, and what that makes in months at the same rate. Pure.

An update counts once for each device and release: when the device had all of it, whatever it then thought of it. What
was read for attempts that ended before counts as bytes, and saves nothing. The first release of a device is full in
any case, and stands apart.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

HORIZONS: Final[Mapping[str, float]] = {"6 months": 182.5, "2 years": 730.0}
"""For what projections are made: their names, and their days."""

SHORTEST_DAYS: Final = 1.0
"""Nothing is projected from less."""

_MB: Final = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What sending costs.

    Attributes:
        currency: what prices are in.
        per_mb: of 10^6 bytes, for each link; the last one is of devices that no link's filter fits.
        per_update: of each update of a device, whatever its size.
    """

    currency: str
    per_mb: Sequence[float]
    per_update: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """Updates of one kind, as devices reported them.

    Attributes:
        model: the model's name.
        base: the release that the devices served before; None: none.
        release: the one they were brought to.
        link: index of the price that holds for these devices.
        updates: how many were delivered.
        devices: ids of devices that they were delivered to, counted once.
        bytes: that the devices read for them, over all attempts.
        full_bytes: what the full updates would have taken, as sprat packs them.
        model_bytes: what the tensors take by themselves.
        samples: of devices that compared both releases, summed, and
        old_correct: right answers of the old one on them, and
        new_correct: of the new one.
    """

    model: str
    base: int | None
    release: int
    link: int
    updates: int
    devices: int
    bytes: int
    full_bytes: int
    model_bytes: int
    samples: int = 0
    old_correct: int = 0
    new_correct: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sum:
    """Several `Delivered` together, with what they cost.

    Attributes:
        updates, bytes, full_bytes, model_bytes, samples: as there.
        cost: of what was sent, and
        full_cost: of the full updates instead.
        accuracy_before: on the devices' own samples, and
        accuracy_after: None: no device compared.
    """

    updates: int
    bytes: int
    full_bytes: int
    model_bytes: int
    cost: float
    full_cost: float
    samples: int
    accuracy_before: float | None
    accuracy_after: float | None

    @property
    def saved_share(self) -> float | None:
        """Return which part of the full updates' bytes was not sent; None where there were none."""
        return 1 - self.bytes / self.full_bytes if self.full_bytes else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """What the observed rate makes in some time: no more than that."""

    horizon: str
    days: float
    updates: float
    bytes: float
    full_bytes: float
    cost: float
    full_cost: float


def sum_of(delivered: Iterable[Delivered], prices: Prices) -> Sum:
    """Return what several make together."""
    rows = list(delivered)
    samples = sum(row.samples for row in rows)
    updates = sum(row.updates for row in rows)
    fixed = updates * prices.per_update
    return Sum(
        updates=updates,
        bytes=sum(row.bytes for row in rows),
        full_bytes=sum(row.full_bytes for row in rows),
        model_bytes=sum(row.model_bytes for row in rows),
        cost=fixed + sum(row.bytes / _MB * prices.per_mb[row.link] for row in rows),
        full_cost=fixed + sum(row.full_bytes / _MB * prices.per_mb[row.link] for row in rows),
        samples=samples,
        accuracy_before=sum(row.old_correct for row in rows) / samples if samples else None,
        accuracy_after=sum(row.new_correct for row in rows) / samples if samples else None,
    )


def projections(total: Sum, days: float) -> list[Projection]:
    """Return what a sum over so many days makes at the same rate; nothing from less than a day."""
    if days < SHORTEST_DAYS:
        return []
    return [
        Projection(
            horizon=horizon,
            days=length,
            updates=total.updates * length / days,
            bytes=total.bytes * length / days,
            full_bytes=total.full_bytes * length / days,
            cost=total.cost * length / days,
            full_cost=total.full_cost * length / days,
        )
        for horizon, length in HORIZONS.items()
    ]
