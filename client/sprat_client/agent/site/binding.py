"""Where the other devices of a site reach this one: bound at the start, so that a taken address is found out then."""

import socket
from typing import Final

from sprat_shared.errors import InvalidInput
from sprat_shared.protocol.site_plan import check_address

_ANY: Final = frozenset({"0.0.0.0", "[::]"})  # noqa: S104 - recognised, since nobody can reach it


def bind(listen: str, address: str | None) -> tuple[socket.socket, str]:
    """Return a socket that is bound and does not listen yet, so whoever connects is refused; and what others are told.

    Args:
        listen: `host:port`; port 0: any free one.
        address: what others are told; None: the one that is bound.

    Raises:
        InvalidInput: it is no address, is not free, or others could not reach it.
    """
    host, _, port = listen.rpartition(":")
    if port != "0":
        check_address(listen)
    if address is not None:
        check_address(address)
    elif host in _ANY:
        raise InvalidInput(f"--site-listen {listen}: say with --site-address where other devices reach this one")
    sock = socket.socket(socket.AF_INET6 if host.startswith("[") else socket.AF_INET)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host.strip("[]"), int(port)))
    except (OSError, ValueError) as bad:
        sock.close()
        raise InvalidInput(f"--site-listen {listen}: {bad}; choose an address of this device") from bad
    return sock, address or f"{host}:{sock.getsockname()[1]}"
