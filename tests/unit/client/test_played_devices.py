"""How releases do on played devices: by chance, but by the same chance each time, and as bad as was asked for."""

import json
import time
from random import Random
from statistics import fmean, stdev

import pytest

from sprat_client.simulate.behaviour import SAMPLES, TROUBLES, Reaction, Trouble, first, react
from sprat_client.simulate.device import PlayedDevice
from sprat_client.simulate.fleet import PlayedFleet
from sprat_shared.ids import new_id
from sprat_shared.protocol.report import Evidence, Outcome
from sprat_shared.trust.assignments import DIRECTOR_REPOSITORY, Assigned

DEVICES = 1500
DEVICE = new_id()


def reactions(trouble: Trouble, profile: str = "cam-a", seed: int = 1) -> list[Reaction | None]:
    draw = Random(seed)
    return [react(trouble, profile, draw) for _ in range(DEVICES)]


def losses(seen: list[Reaction | None]) -> list[float]:
    return [((one.evidence.old_correct or 0) - one.evidence.new_correct) / SAMPLES for one in seen if one is not None]


def test_a_release_without_trouble_is_kept_by_nearly_all_and_loses_nothing_on_average() -> None:
    seen = reactions(Trouble())
    assert sum(one is not None and one.outcome is Outcome.COMMITTED for one in seen) > 0.9 * DEVICES
    assert abs(fmean(losses(seen))) < 0.002
    assert 0.012 < stdev(losses(seen)) < 0.016  # 1.4 points a device


def test_a_drop_is_as_large_as_was_asked_for_and_shows_on_its_profile_only() -> None:
    worse = TROUBLES["worse-on-one-profile"]
    assert fmean(losses(reactions(worse, "cam-b"))) == pytest.approx(0.05, abs=0.003)
    assert abs(fmean(losses(reactions(worse, "cam-a")))) < 0.002
    refused = [one for one in reactions(worse, "cam-b") if one is not None and one.outcome is Outcome.REFUSED]
    assert refused
    assert {one.error_code for one in refused} == {"validation.worse"}


@pytest.mark.parametrize(("trouble", "share"), [("silence", 0.3), ("crashes", 0.3)])
def test_so_many_devices_are_silent_or_crash(trouble: str, share: float) -> None:
    seen = reactions(TROUBLES[trouble])
    bad = sum(
        one is None if trouble == "silence" else one is not None and one.error_code == "trial.crashed" for one in seen
    )
    assert bad / DEVICES == pytest.approx(share, abs=0.05)


def test_a_slow_release_takes_longer_than_the_one_before() -> None:
    ratios = [
        one.evidence.new_latency_s / (one.evidence.old_latency_s or 1.0) for one in reactions(TROUBLES["slow"]) if one
    ]
    assert fmean(ratios) == pytest.approx(1.5, rel=0.05)


def test_how_often_devices_poll_changes_nothing_of_what_they_draw() -> None:
    quick, slow = (
        PlayedFleet("http://127.0.0.1:9", "m", ["a", "b"], seed=5, troubles={}, interval_s=interval_s)
        for interval_s in (0.001, 60.0)
    )
    with quick, slow:
        quick.start()
        time.sleep(0.2)  # nobody answers: each tries again and again
        drawn = [[device.draw.random() for device in fleet.devices] for fleet in (quick, slow)]
    assert drawn[0] == drawn[1]


def test_the_same_seed_plays_the_same() -> None:
    assert reactions(TROUBLES["worse"], seed=3) == reactions(TROUBLES["worse"], seed=3)
    assert reactions(TROUBLES["worse"], seed=3) != reactions(TROUBLES["worse"], seed=4)


@pytest.mark.parametrize("trouble", TROUBLES.values())
def test_what_a_played_device_says_is_evidence_that_the_protocol_takes(trouble: Trouble) -> None:
    for one in (first(Random(1)), *reactions(trouble)[:50]):
        if one is not None:
            assert Evidence.of(one.evidence.as_json()) == one.evidence


def test_a_played_device_lets_be_what_is_assigned_of_other_models() -> None:
    device = PlayedDevice("a", "mine", "cam-a", Random(1))
    wishes = [Assigned(device=DEVICE, model=name, release=1, assignment=3, path=()) for name in ("mine", "other")]
    said = {"signed": {"targets": {wish.full: {"custom": wish.to_custom()} for wish in wishes}}}
    device._files[DIRECTOR_REPOSITORY, "targets"] = json.dumps(said).encode()
    assert device._assigned() == wishes[:1]
