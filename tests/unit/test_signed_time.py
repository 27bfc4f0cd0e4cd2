"""The time that the director signs is read back as it was said, and never misread."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from sprat_shared.errors import InvalidInput, UntrustedUpdate
from sprat_shared.trust.signed_time import SignedTime, check_nonce

AT = datetime(2026, 5, 1, 12, 0, 3, tzinfo=UTC)
NONCE = "abcdefghij-_0123456789"


@pytest.mark.parametrize("said", [SignedTime(at=AT), SignedTime(at=AT, nonce=NONCE)])
def test_a_time_is_read_as_it_was_said(said: SignedTime) -> None:
    assert SignedTime.from_fields({**said.to_fields(), "version": 3}) == said


def test_a_time_is_said_in_utc_whatever_the_zone_of_the_server() -> None:
    local = AT.astimezone(timezone(timedelta(hours=5, minutes=30)))
    assert SignedTime(at=local).to_fields() == {"sprat": {"at": "2026-05-01T12:00:03Z"}}


def test_a_timestamp_without_a_time_says_none() -> None:
    assert SignedTime.from_fields({}) is None


@pytest.mark.parametrize(
    "said", [[], "now", {}, {"at": 5}, {"at": "2026-05-01"}, {"at": "2026-05-01T12:00:03Z", "nonce": "short"}]
)
def test_what_is_missing_or_wrong_is_refused_by_name(said: Any) -> None:
    with pytest.raises(UntrustedUpdate, match="signed time"):
        SignedTime.from_fields({"sprat": said})


@pytest.mark.parametrize("nonce", ["", NONCE[1:], NONCE + "a", "!" * 22, "é" * 22])
def test_a_nonce_of_another_form_is_refused(nonce: str) -> None:
    with pytest.raises(InvalidInput, match="Sprat-Nonce"):
        check_nonce(nonce)
