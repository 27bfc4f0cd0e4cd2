"""The guard of conftest.py: a test that reaches for another machine is stopped before a packet leaves."""

import socket

import pytest


def test_connecting_to_another_machine_is_refused() -> None:
    with socket.socket() as outward, pytest.raises(RuntimeError, match="tests use loopback only"):
        outward.connect(("192.0.2.1", 80))


def test_looking_up_another_machine_is_refused() -> None:
    with pytest.raises(RuntimeError, match="tests use loopback only"):
        socket.getaddrinfo("host.invalid", 80)


def test_multicast_is_open_on_the_loopback_interface_alone() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outward:
        with pytest.raises(RuntimeError, match="tests use loopback only"):
            outward.sendto(b"", ("224.0.0.251", 5353))
        outward.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        outward.sendto(b"", ("224.0.0.251", 5353))


def test_loopback_is_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
