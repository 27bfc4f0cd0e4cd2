"""Lockout: by address, by token id within an address, for a minute, in bounded memory."""

import pytest

from sprat_server.access.limits import Counts, Lockout, TooManyFailures
from sprat_shared.errors import AccessDenied, InvalidInput, Unauthenticated


class Clock:
    """A clock that is set by hand."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def fail(lockout: Lockout, address: str, token_id: str, times: int) -> None:
    for _ in range(times):
        with pytest.raises(Unauthenticated), lockout.watching(address, token_id):
            raise Unauthenticated("wrong")


def test_an_address_that_failed_too_often_waits_until_its_minute_is_over(clock: Clock) -> None:
    lockout = Lockout(20, now_s=clock)
    fail(lockout, "10.0.0.7", "", 20)
    clock.now_s += 20
    with pytest.raises(TooManyFailures) as locked, lockout.watching("10.0.0.7"):
        raise AssertionError("not looked at")
    assert locked.value.retry_after_s == 40.0
    lockout.check("10.0.0.8")
    clock.now_s += 40
    lockout.check("10.0.0.7")


def test_a_token_id_is_locked_sooner_and_for_the_address_that_fails_with_it_only(clock: Clock) -> None:
    lockout = Lockout(100, now_s=clock)
    fail(lockout, "10.0.0.7", "token-1", 10)
    with pytest.raises(TooManyFailures):
        lockout.check("10.0.0.7", "token-1")
    lockout.check("10.0.0.7", "token-2")
    lockout.check("10.0.0.7")
    lockout.check("192.0.2.1", "token-1")  # its owner, elsewhere


def test_what_is_no_failed_authentication_does_not_count(clock: Clock) -> None:
    lockout = Lockout(1, now_s=clock)
    with pytest.raises(InvalidInput), lockout.watching("10.0.0.7"):
        raise InvalidInput("of another kind")
    with pytest.raises(Unauthenticated), lockout.watching("10.0.0.7", pardoned=Unauthenticated):
        raise Unauthenticated("pardoned")
    with lockout.watching("10.0.0.7"):
        pass
    lockout.check("10.0.0.7")
    with pytest.raises(AccessDenied), lockout.watching("10.0.0.7"):
        raise AccessDenied("rejected")
    with pytest.raises(TooManyFailures):
        lockout.check("10.0.0.7")


def test_the_addresses_of_one_ipv6_subscriber_count_as_one(clock: Clock) -> None:
    lockout = Lockout(2, now_s=clock)
    fail(lockout, "2001:db8:1:2::1", "", 1)
    fail(lockout, "2001:db8:1:2:ffff::9", "", 1)
    with pytest.raises(TooManyFailures):
        lockout.check("2001:db8:1:2::77")
    lockout.check("2001:db8:1:3::1")


def test_a_flood_of_addresses_takes_bounded_memory_and_forgets_the_quietest(clock: Clock) -> None:
    counts = Counts(1, now_s=clock, keys=3)
    for key in ("a", "b", "c", "a", "d"):
        counts.add(key)
    assert len(counts._windows) == 3
    assert [key for key in "abcd" if counts.wait_s(key)] == ["a", "c", "d"]
