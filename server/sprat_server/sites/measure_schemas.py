"""What is known of a site's modules and links looks like in answers."""

from datetime import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel

from sprat_server.sites.measures import Figure
from sprat_server.sites.models import LinkMeasure


class FigureView(BaseModel):
    """A figure: the median of what it is from, and the 10th and 90th percentiles where they are known.

    `origin` says where it is from: people said it; this device measured it of this release, or of another one of the
    same graph; other devices of its class did (`count` of them); it is estimated by the ratio of two devices' speeds;
    it is what the weights take; or nothing is known, and it is assumed.
    """

    value: float
    origin: Literal["said", "measured", "other-release", "class", "estimated", "weights", "assumed"]
    detail: str
    count: int | None
    p10: float | None
    p90: float | None

    @classmethod
    def shown(cls, figure: Figure) -> Self:
        """Show this figure."""
        return cls(**figure.as_json())

    @classmethod
    def of(cls, figure: Figure | None) -> Self | None:
        """Show this figure, if there is one."""
        return None if figure is None else cls.shown(figure)


class ModuleMeasureView(BaseModel):
    """A module's newest release on a device of the site; null: nothing is known.

    `seconds` of one run of one row; `memory_bytes` at its peak while it is loaded and runs a row.
    """

    model: str
    release: int
    device: str
    profile: str | None
    seconds: FigureView | None
    memory_bytes: FigureView | None


class LinkView(BaseModel):
    """A device's link to the hub of the site."""

    device: str
    up_mbit: FigureView
    down_mbit: FigureView
    delay_ms: FigureView


class PairView(BaseModel):
    """What a device measured of the way to another one: seconds of a round trip, and seconds per byte each way."""

    device: str
    to: str
    round_trip: dict[str, Any] | None
    sent: dict[str, Any] | None
    received: dict[str, Any] | None
    said_at: datetime

    @classmethod
    def of(cls, row: LinkMeasure, device: str, to: str) -> Self:
        """Show this row."""
        return cls(
            device=device, to=to, round_trip=row.round_trip, sent=row.sent, received=row.received, said_at=row.said_at
        )


class SiteMeasuresView(BaseModel):
    """What is known of the modules and links of a site, as a plan would be placed by it."""

    site: str
    modules: list[ModuleMeasureView]
    links: list[LinkView]
    ways: list[PairView]
