"""Marks and clock: the two decisions about what is too old, without files and without a network."""

from datetime import UTC, datetime, timedelta

import pytest

from sprat_client.agent.trust.clock import TOLERANCE_S, Clock
from sprat_client.agent.trust.marks import Marks, RoleKeys
from sprat_shared.errors import UntrustedUpdate
from sprat_shared.trust.signed_time import SignedTime

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)


def keys(timestamp: str = "t", snapshot: str = "s", threshold: int = 1) -> dict[str, RoleKeys]:
    """Return the keys of a root; each letter is one."""
    return {
        "root": RoleKeys(frozenset("r"), 1),
        "timestamp": RoleKeys(frozenset(timestamp), threshold),
        "snapshot": RoleKeys(frozenset(snapshot), 1),
    }


def marks(**versions: int) -> Marks:
    return Marks(versions=versions, time=NOW).under(keys())


def test_a_version_below_its_mark_is_refused_and_one_above_raises_it() -> None:
    seen = marks(timestamp=5)
    assert seen.seen("timestamp", 5) is seen
    assert seen.seen("timestamp", 7).versions == {"timestamp": 7}
    with pytest.raises(UntrustedUpdate, match="timestamp 4 is offered, and 5") as bad:
        seen.seen("timestamp", 4)
    assert bad.value.code == "trust.rollback"


@pytest.mark.parametrize("new", [keys(timestamp="x"), keys(snapshot="x"), keys(timestamp="x", snapshot="x")])
def test_new_keys_of_timestamp_or_snapshot_clear_every_mark_but_the_roots(new: dict[str, RoleKeys]) -> None:
    after = marks(root=3, timestamp=5, snapshot=5, targets=2).under(new)
    assert (after.versions, after.time) == ({"root": 3}, None)


@pytest.mark.parametrize("new", [keys(), keys(timestamp="tx"), keys(timestamp="tuv", snapshot="sx")])
def test_marks_stay_while_what_the_old_keys_signed_could_still_be_accepted(new: dict[str, RoleKeys]) -> None:
    before = marks(root=3, timestamp=5)
    assert before.under(new).versions == before.versions


def test_marks_stay_while_enough_keys_of_a_threshold_stay() -> None:
    before = Marks(versions={"timestamp": 5}).under(keys(timestamp="abc", threshold=2))
    assert before.under(keys(timestamp="bcd", threshold=2)).versions == {"timestamp": 5}
    assert before.under(keys(timestamp="cde", threshold=2)).versions == {}


def test_a_repository_that_was_never_seen_has_nothing_to_clear() -> None:
    assert not Marks().replaced_by(keys())


def test_the_latest_signed_time_stays() -> None:
    assert marks().seen_time(NOW - timedelta(days=1)).time == NOW
    assert marks().seen_time(NOW + timedelta(days=1)).time == NOW + timedelta(days=1)


class Hands:
    """The clocks of a device, moved by hand."""

    def __init__(self, wall: datetime) -> None:
        self.wall, self.since_boot_s = wall, 50.0

    def clock(self) -> Clock:
        return Clock(wall=lambda: self.wall, since_boot=lambda: self.since_boot_s)

    def sleep(self, seconds: float) -> None:
        self.wall += timedelta(seconds=seconds)
        self.since_boot_s += seconds


def test_a_clock_that_agrees_with_what_is_signed_is_believed() -> None:
    clock = Hands(NOW).clock()
    clock.take(SignedTime(at=NOW - timedelta(seconds=2)))
    assert (clock.now(), clock.ahead_s, clock.new_nonce()) == (NOW, None, None)


def test_a_clock_behind_counts_from_the_latest_signed_time_and_asks_for_a_proof() -> None:
    clock = Hands(datetime(1970, 1, 1, tzinfo=UTC)).clock()
    clock.know(NOW)
    assert clock.now() == NOW
    assert clock.ahead_s == pytest.approx((datetime(1970, 1, 1, tzinfo=UTC) - NOW).total_seconds())
    assert clock.new_nonce() is not None


def test_a_clock_a_little_behind_is_left_in_peace() -> None:
    clock = Hands(NOW - timedelta(seconds=TOLERANCE_S / 2)).clock()
    clock.know(NOW)
    assert (clock.now(), clock.ahead_s, clock.new_nonce()) == (NOW, None, None)


def test_a_proven_time_counts_whatever_the_clock_says_and_goes_on_while_the_device_sleeps() -> None:
    hands = Hands(NOW + timedelta(days=3))
    clock = hands.clock()
    assert clock.ask()
    nonce = clock.new_nonce()
    clock.take(SignedTime(at=NOW, nonce=nonce))
    hands.sleep(3600)
    assert clock.now() == NOW + timedelta(hours=1)
    assert clock.ahead_s == pytest.approx(3 * 86400)
    hands.wall = NOW + timedelta(hours=1)  # somebody set it right
    assert clock.ahead_s is None
    assert clock.new_nonce() is None
    assert not clock.ask()


def test_only_the_nonce_of_the_last_poll_proves_anything() -> None:
    clock = Hands(NOW + timedelta(days=3)).clock()
    clock.ask()
    first, last = clock.new_nonce(), clock.new_nonce()
    assert first != last
    for nonce in (None, first):
        clock.take(SignedTime(at=NOW, nonce=nonce))
        assert not clock.proven
    clock.take(SignedTime(at=NOW, nonce=last))
    assert clock.proven


def test_what_replaced_keys_signed_is_forgotten() -> None:
    clock = Hands(NOW).clock()
    clock.know(NOW + timedelta(days=4000))
    clock.forget()
    assert (clock.now(), clock.ahead_s) == (NOW, None)
