"""What holds for every test: sockets and logs stay where they belong, imports are no garbage, slow kinds come first."""

import gc
import ipaddress
import logging
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

HERE: Final = Path(__file__).parent
_BEGUN: set[str] = set()
MDNS: Final = "224.0.0.251"
KINDS: Final = ("e2e", "crash", "architecture", "integration")  # the others follow


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
        way = arguments[0].getsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, 4) if host == MDNS else bytes(4)
        host = socket.inet_ntoa(way) if any(way) else host  # what is sent to all on one interface
    else:
        return
    if not is_here(host):
        raise RuntimeError(f"a test wanted to reach {host!r}: tests use loopback only")


sys.addaudithook(refuse_other_machines)


@pytest.fixture(autouse=True)
def logs_go_where_they_went() -> Iterator[None]:
    """Undo what a command that runs in the test does to logs: its stderr is closed when the test is over."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.hookimpl(trylast=True)  # after they were shuffled
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the kinds first that wait for processes and links: at the end, all processes are busy with short ones."""
    rank = {kind: place for place, kind in enumerate(KINDS)}
    items.sort(key=lambda item: rank.get(item.path.relative_to(HERE).parts[0], len(rank)))


def pytest_collection_finish() -> None:
    """Let collections of garbage pass over all that the test modules brought: a million objects, a second each time.

    Agents collect whenever they drop a model.
    """
    gc.collect()
    gc.freeze()


def pytest_runtest_logstart(location: tuple[str, int | None, str]) -> None:
    """Pass over what the files before left, too: applications, mappers, statements."""
    if location[0] not in _BEGUN:
        _BEGUN.add(location[0])
        gc.freeze()
