"""Where devices of a site say that the others reach them."""

from typing import Final

from sprat_server.fleet.models import Device
from sprat_shared.errors import InvalidInput
from sprat_shared.protocol.site_plan import check_address

ADDRESS: Final = "site-address"
"""The attribute by which a device says where other members of its site reach it."""


def address_of(device: Device, *, holds: bool) -> str | None:
    """Return where a device said that other members reach it; None: it said nothing, and need not.

    Args:
        device: of the site.
        holds: it holds a module, so that others must reach it.

    Raises:
        InvalidInput: it said nothing although it holds a module, or what is no address; the message names the device.
    """
    said = device.attributes.get(ADDRESS)
    if said is None and not holds:
        return None
    if said is None:
        raise InvalidInput(
            f"{device.name} holds a module, and said no {ADDRESS}, so no other device can reach it (docs/site.md)",
            code="site.no-address",
        )
    try:
        return check_address(said)
    except InvalidInput as bad:
        raise InvalidInput(f"{device.name}: {ADDRESS}: {bad}", code="site.no-address") from bad
