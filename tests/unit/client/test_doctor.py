"""What `sprat doctor` makes of the server's answer."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sprat_client.cli.doctor import judge

NOW = datetime(2026, 8, 1, tzinfo=UTC)


def custody(*, renew_days: float = 10, expires_days: float = 20, online: bool = True, **more: Any) -> Any:
    role = {
        "role": "root",
        "version": 3,
        "expires_at": (NOW + timedelta(days=expires_days)).isoformat(),
        "renew_at": (NOW + timedelta(days=renew_days)).isoformat(),
        "threshold": 2,
        "keys": [{"keyid": "ab" * 32, "holder": name, "scheme": "ed25519"} for name in ("alice", "bob")],
        "online": online,
        "waiting": 0,
    }
    return {"now": NOW.isoformat(), "roles": [role], "waiting": [], **more}


def levels(said: Any, here: datetime = NOW) -> dict[str, str]:
    return {finding.check: finding.level for finding in judge(said, here)}


@pytest.mark.parametrize(
    ("said", "level"),
    [
        (custody(), "ok"),
        (custody(renew_days=-1), "wrong"),
        (custody(renew_days=-1, online=False), "soon"),
        (custody(renew_days=-9, expires_days=-1), "wrong"),
        (custody(renew_days=-9, expires_days=-1, online=False), "wrong"),
    ],
)
def test_a_role_is_well_until_half_of_its_life_then_its_holders_are_asked_and_expired_is_wrong(
    said: Any, level: str
) -> None:
    assert levels(said)["root"] == level


def test_a_clock_half_a_minute_off_is_wrong() -> None:
    assert levels(custody(), NOW + timedelta(seconds=29))["clock"] == "ok"
    assert levels(custody(), NOW - timedelta(seconds=31))["clock"] == "wrong"
    assert "31.0 s ahead of ours" in next(judge(custody(), NOW - timedelta(seconds=31))).detail


def test_whose_signature_is_missing_stands_in_the_line() -> None:
    keys = [{"keyid": "ab" * 32, "holder": "alice", "scheme": "ed25519"}]
    need = {"by": "root 2", "threshold": 1, "missing": 1, "keys": keys, "signed": []}
    draft = {"role": "root", "version": 3, "release": None, "reason": "half of its life is over", "needs": [need]}
    found = list(judge(custody(waiting=[draft]), NOW))[-1]
    assert (found.check, found.level) == ("signatures of root", "soon")
    assert found.detail == "root 3 (half of its life is over) waits for 1 of alice"
