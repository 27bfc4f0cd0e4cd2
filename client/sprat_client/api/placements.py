"""Which module would run on which device of a site."""

from collections.abc import Mapping
from typing import Any, cast

from sprat_client.api.transport import Transport
from sprat_client.api.views import JobView


class Placements:
    """Placements of modules."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def plan(self, site: Mapping[str, Any]) -> JobView:
        """Ask for the best placement of a site (docs/placement.md); return the job that works it out."""
        return cast("JobView", self._transport.post("/placements", dict(site))["job"])
