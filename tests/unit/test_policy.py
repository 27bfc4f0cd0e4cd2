"""The policy that the director signs with an assignment: read strictly, said briefly."""

import pytest
from securesystemslib.formats import encode_canonical

from sprat_shared.errors import InvalidInput
from sprat_shared.trust.policy import DevicePolicy, Wanted, Window

SAID = DevicePolicy(
    fetch=Wanted(unmetered=True, windows=(Window(start=22 * 60, end=4 * 60, days=(5, 6), local=True),)),
    activate=Wanted(charging=True, idle=True, windows=(Window(start=0, end=90),)),
    daily_bytes=10_000_000,
    alpha=0.01,
    tolerance=0.02,
    min_samples=50,
    too_few="refuse",
    max_latency_ratio=1.5,
    max_memory_ratio=2.0,
    min_agreement=0.9,
    max_confidence_drop=0.1,
    shadow_s=600.0,
    shadow_requests=100,
    trial_s=60.0,
    trial_requests=1000,
    trial_errors=3,
    attempts=5,
)


def test_a_policy_is_read_back_as_it_was_said() -> None:
    assert DevicePolicy.of(SAID.as_json()) == SAID


def test_a_policy_can_be_signed_and_says_the_same_then() -> None:
    encode_canonical(SAID.as_signed())  # refuses what canonical JSON cannot say
    assert DevicePolicy.of_signed(SAID.as_signed()) == SAID
    assert DevicePolicy(alpha=0.05, trial_s=60.0).as_signed() == {"alpha": "0.05", "trial_s": 60}


@pytest.mark.parametrize("said", [[], {"alpha": "much"}, {"alpha": "nan"}, {"alpha": "0.6"}, {"attempts": "3"}])
def test_a_signed_policy_is_read_as_strictly(said: object) -> None:
    with pytest.raises(InvalidInput, match="policy"):
        DevicePolicy.of_signed(said)


def test_a_policy_that_says_nothing_takes_no_bytes() -> None:
    assert DevicePolicy().as_json() == {}
    assert DevicePolicy.of({}) == DevicePolicy()


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ([], "must be a JSON object"),
        ({"trials": 3}, "has no 'trials'; it may have activate, "),
        ({"trial_s": "3"}, "trial_s must be a number from 0 to"),
        ({"trial_s": float("nan")}, "trial_s must be a number"),
        ({"trial_requests": 1.5}, "trial_requests must be a whole number"),
        ({"attempts": True}, "attempts must be a whole number"),
        ({"attempts": 0}, "attempts must be a whole number from 1 to 1000"),
        ({"too_few": "ask"}, "must be one of accept, refuse"),
        ({"fetch": {"unmetered": 1}}, "unmetered must be true or false"),
        ({"fetch": {"mettered": True}}, "conditions has no 'mettered'"),
        ({"fetch": {"windows": {}}}, "must be a list"),
        ({"fetch": {"windows": [{"from": "24:00", "to": "01:00"}]}}, "'24:00' is no time of day"),
        ({"fetch": {"windows": [{"from": "9", "to": "10:00"}]}}, "'9' is no time of day"),
        ({"fetch": {"windows": [{"from": "09:00"}]}}, "None is no time of day"),
        ({"fetch": {"windows": [{"from": "09:00", "to": "10:00", "days": [7]}]}}, "0 .Monday. to 6"),
    ],
)
def test_a_policy_that_cannot_be_meant_says_what_is_wrong(said: object, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        DevicePolicy.of(said)
