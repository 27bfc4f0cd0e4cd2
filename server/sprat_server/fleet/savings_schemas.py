"""What the savings report looks like in requests and answers."""

from datetime import datetime
from typing import Annotated, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from sprat_server.fleet.savings import Projection, Sum

Price = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]


class LinkPrice(BaseModel):
    """What the links of some devices cost: those for which a filter holds (docs/targeting.md)."""

    model_config = ConfigDict(extra="forbid")

    where: Annotated[str, Field(min_length=1, max_length=2000)]
    per_mb: Price


class PricesAsked(BaseModel):
    """What sending costs: 10^6 bytes, by link (the first that fits counts), and each update of a device."""

    model_config = ConfigDict(extra="forbid")

    currency: Annotated[str, Field(min_length=1, max_length=10)] = "EUR"
    per_mb: Price = 0.0
    per_update: Price = 0.0
    links: Annotated[list[LinkPrice], Field(max_length=10)] = []


class AskedSavings(BaseModel):
    """Of which time and model; left out: from the first report to now, all models."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "since": "2026-06-01T00:00:00Z",
                    "prices": {
                        "currency": "EUR",
                        "per_mb": 0.1,
                        "links": [{"where": 'labels.link = "satellite"', "per_mb": 6.5}],
                    },
                }
            ]
        },
    )

    since: AwareDatetime | None = None
    until: AwareDatetime | None = None
    model: Annotated[str | None, Field(max_length=63)] = None
    prices: PricesAsked = PricesAsked()


class SumView(BaseModel):
    """Updates together: bytes sent and full, what that costs, accuracy on the devices' own samples before and after."""

    updates: int
    bytes: int
    full_bytes: int
    model_bytes: int
    saved_share: float | None
    cost: float
    full_cost: float
    samples: int
    accuracy_before: float | None
    accuracy_after: float | None

    @classmethod
    def of(cls, total: Sum) -> Self:
        """Show this sum."""
        return cls(
            updates=total.updates,
            bytes=total.bytes,
            full_bytes=total.full_bytes,
            model_bytes=total.model_bytes,
            saved_share=total.saved_share,
            cost=total.cost,
            full_cost=total.full_cost,
            samples=total.samples,
            accuracy_before=total.accuracy_before,
            accuracy_after=total.accuracy_after,
        )


class SavingsRow(SumView):
    """The updates from one release (None: none) to another."""

    model: str
    base: int | None
    release: int


class SavingsView(BaseModel):
    """The savings report. `updates` sums all rows but first releases, which are full in any case (`first`).

    `projections` say what the observed rate would make, and nothing more; there are none from less than a day.
    """

    since: datetime
    until: datetime
    days: float
    currency: str
    devices: int
    rows: list[SavingsRow]
    updates: SumView
    first: SumView
    projections: list[Projection]
