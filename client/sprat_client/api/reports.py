"""What the fleet's records say, summed up."""

from collections.abc import Mapping
from typing import Any, TypedDict, cast

from sprat_client.api.transport import Transport


class SumView(TypedDict):
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


class SavingsRow(SumView):
    """The updates from one release (None: none) to another."""

    model: str
    base: int | None
    release: int


class ProjectionView(TypedDict):
    """What the observed rate makes in some time: no more than that."""

    horizon: str
    days: float
    updates: float
    bytes: float
    full_bytes: float
    cost: float
    full_cost: float


class SavingsView(TypedDict):
    """The savings report; `updates` sums all rows but first releases, which are full in any case (`first`)."""

    since: str
    until: str
    days: float
    currency: str
    devices: int
    rows: list[SavingsRow]
    updates: SumView
    first: SumView
    projections: list[ProjectionView]


class Reports:
    """Reports of the fleet."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def savings(
        self,
        *,
        since: str | None = None,
        until: str | None = None,
        model: str | None = None,
        prices: Mapping[str, Any] | None = None,
    ) -> SavingsView:
        """Return what updates took beside full models.

        Args:
            since: RFC 3339; from the first report when None.
            until: RFC 3339; until now when None.
            model: of this model alone.
            prices: currency, per_mb, per_update and links (docs/savings.md); nothing costs anything when None.
        """
        asked = {"since": since, "until": until, "model": model, "prices": dict(prices or {})}
        return cast("SavingsView", self._transport.post("/reports/savings", asked))
