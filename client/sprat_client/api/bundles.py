"""Bundles: what devices without a network should run, in one file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sprat_client.api.transport import Transport

_VALID_UNTIL: Final = "Sprat-Valid-Until"


class Bundles:
    """Files for somebody to carry to devices."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def export(
        self,
        to: Path,
        *,
        devices: Sequence[str] | None = None,
        model: str | None = None,
        valid_days: int | None = None,
        full: bool = False,
    ) -> str:
        """Write a bundle; return until when it is valid, RFC 3339.

        Args:
            to: the file, in place of what was there.
            devices: ids, or None for all devices that are assigned a release of `model`.
            model: its name.
            valid_days: for how long it must be good, at least; None: as long as what is signed anyway.
            full: with full updates, for devices that may hold something else than they last reported.
        """
        body = {
            "devices": None if devices is None else list(devices),
            "model": model,
            "valid_days": valid_days,
            "full": full,
        }
        return self._transport.save("/bundles", body, to)[_VALID_UNTIL]
