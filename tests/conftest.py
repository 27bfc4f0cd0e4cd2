"""What holds for every test: sockets reach this machine only; what was imported is not looked through for garbage."""

import gc
import ipaddress
import socket
import sys
from typing import Any


def is_here(host: str) -> bool:
    """Whether a host name or address means this machine."""
    if host in {"localhost", ""}:
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def refuse_other_machines(event: str, arguments: tuple[Any, ...]) -> None:
    """Stop a connection or a look-up that would leave this machine, and say so."""
    if event == "socket.getaddrinfo":
        host = arguments[0]
        host = host.decode() if isinstance(host, bytes) else host or ""
    elif event in {"socket.connect", "socket.sendto"} and arguments[0].family in {socket.AF_INET, socket.AF_INET6}:
        host = str(arguments[1][0])
    else:
        return
    if not is_here(host):
        raise RuntimeError(f"a test wanted to reach {host!r}: tests use loopback only")


sys.addaudithook(refuse_other_machines)


def pytest_collection_finish() -> None:
    """Let collections of garbage pass over all that the test modules brought: a million objects, a second each time.

    Agents collect whenever they drop a model.
    """
    gc.collect()
    gc.freeze()
