"""Webhooks without a network: the signature, the pause between attempts, and the addresses that are refused."""

import base64
import hashlib
import hmac
import socket
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sprat_server.access import delivery, webhooks
from sprat_server.access.delivery import AddressRefused

AT = datetime.fromtimestamp(1614265330, UTC)


def test_a_message_is_signed_as_in_the_published_example_of_standard_webhooks() -> None:
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    headers = webhooks.signed_headers([key], "msg_p5jXN8AQM9LWM0D4loKWxJek", AT, b'{"test": 2432232314}')
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


@given(st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=2), st.binary(max_size=200))
def test_each_key_signs_the_id_the_time_and_the_body(keys: list[bytes], body: bytes) -> None:
    said = webhooks.signed_headers(keys, "one", AT, body)["webhook-signature"].split(" ")
    signed = b"one.1614265330." + body
    assert said == ["v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode() for key in keys]


def test_a_secret_is_shown_as_the_standard_says() -> None:
    assert webhooks.secret_text(b"\x00" * 24) == "whsec_" + "A" * 32


@given(st.integers(1, 100), st.floats(0, 1))
def test_a_pause_is_drawn_from_nothing_to_twice_as_long_as_before_and_never_more_than_six_hours(
    attempts: int, draw: float
) -> None:
    pause, longest = webhooks.pause_s(attempts, draw), webhooks.pause_s(attempts, 1.0)
    assert 0 <= pause <= longest <= 6 * 3600
    assert pause == draw * longest
    assert webhooks.pause_s(attempts + 1, 1.0) == min(2 * longest, 6 * 3600)


def test_the_longest_pauses_of_all_attempts_make_a_day_and_not_a_week() -> None:
    hours = sum(webhooks.pause_s(attempt, 1.0) for attempt in range(1, webhooks.MOST_ATTEMPTS)) / 3600
    assert 2 < hours < 24 * 7


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example.com/x",
        "https://",
        "ftp://hooks.example.com",
        "hooks.example.com",
        "https://user:secret@hooks.example.com/",
        "https://hooks.example.com/#part",
        "https://hooks.example.com:0/",
        "https://hooks.example.com:port/",
        "https://[::1/",
    ],
)
def test_what_is_no_address_to_send_to_is_refused(url: str) -> None:
    with pytest.raises(AddressRefused):
        delivery.check_url(url, private=False)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1%eth0",
        "fd00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "2002:7f00:1::",
        "64:ff9b::7f00:1",
    ],
)
def test_addresses_that_are_not_of_the_public_internet_are_known(address: str) -> None:
    assert not delivery.is_public(address)


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"])
def test_public_addresses_are_known(address: str) -> None:
    assert delivery.is_public(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
def test_a_name_that_stands_for_this_machine_is_refused(host: str) -> None:
    parts = delivery.check_url(f"https://{host}/x", private=False)
    with pytest.raises(AddressRefused):
        delivery.resolve(parts, private=False)


def test_a_name_is_refused_if_one_of_its_addresses_is_private(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolved(*_: object, **__: object) -> list[tuple[object, ...]]:
        return [(2, 1, 6, "", (address, 443)) for address in ("93.184.215.14", "10.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    with pytest.raises(AddressRefused, match=r"10\.0\.0\.1"):
        delivery.resolve(delivery.check_url("https://hooks.example.com/x", private=False), private=False)


def test_private_addresses_are_sent_to_where_that_is_allowed() -> None:
    parts = delivery.check_url("http://127.0.0.1:9/x", private=True)
    assert delivery.resolve(parts, private=True) == "127.0.0.1"
