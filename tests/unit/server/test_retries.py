"""Which failures of devices are tried again, how often, and after how long."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sprat_server.rollouts.plan import RolloutPlan
from sprat_server.rollouts.reaches import Growth
from sprat_server.rollouts.retries import RETRIED, Failure, Retries, class_of, judges_the_model
from sprat_shared.errors import InvalidInput
from sprat_shared.trust.policy import Window


@pytest.mark.parametrize(
    ("outcome", "code", "failure"),
    [
        ("failed", "link.too-slow", Failure.LINK),
        ("failed", "disk.no-space", Failure.DISK),
        ("failed", "memory.short", Failure.BUSY),
        ("failed", "agent.deadline", Failure.BUSY),
        ("failed", "agent.gave-up-often", Failure.OTHER),
        ("failed", "rebuild.failed", Failure.OTHER),
        ("failed", None, Failure.OTHER),
        ("refused", "validation.worse", Failure.REFUSED),
        ("refused", "link.down", Failure.REFUSED),
        ("rolled_back", "trial.slow", Failure.ROLLED_BACK),
        ("committed", None, Failure.OTHER),
    ],
)
def test_a_failure_has_a_class(outcome: str, code: str | None, failure: Failure) -> None:
    assert class_of(outcome, code) is failure


@pytest.mark.parametrize(
    ("outcome", "code", "judges"),
    [
        ("refused", "validation.worse", True),
        ("refused", "validation.memory", True),
        ("refused", "shadow.unsure", True),
        ("refused", "runtime.not-loadable", True),
        ("rolled_back", "trial.slow", True),
        ("rolled_back", "sharing.drifted", True),
        ("refused", "validation.too-few", False),
        ("rolled_back", "trial.cut-too-often", False),
        ("rolled_back", "operator.rolled-back", False),
        ("refused", "update.untrusted", False),
        ("refused", "agent.loop-broken", False),
        ("failed", "disk.full", False),
        ("failed", "validation.worse", False),
        ("refused", None, False),
    ],
)
def test_what_judges_a_model_is_told_from_what_befell_the_device(
    outcome: str, code: str | None, *, judges: bool
) -> None:
    assert judges_the_model(outcome, code) is judges


@given(st.sampled_from(list(Failure)), st.integers(0, 30))
def test_only_what_passes_is_tried_again_and_waits_grow_to_six_hours(failure: Failure, before: int) -> None:
    retries = Retries.of({"link": 20, "disk": 20, "busy": 20})
    wait_s = retries.wait_s(failure, before)
    if failure not in RETRIED or before >= 20:
        assert wait_s is None
    else:
        assert wait_s == min(600 * 2**before, 21600)
        later = retries.wait_s(failure, before + 1)
        assert later is None or later >= wait_s


def test_a_refused_validation_is_never_tried_again() -> None:
    for said in ({"refused": 3}, {"rolled_back": 1}, {"silence": 1}, {"other": 1}):
        with pytest.raises(InvalidInput, match="is not retried"):
            Retries.of(said)
    assert Retries().wait_s(Failure.REFUSED, 0) is None


@pytest.mark.parametrize(
    "said", [[], {"link": -1}, {"link": 21}, {"link": True}, {"link": "3"}, {"first_wait_s": 0}, {"first_wait_s": True}]
)
def test_retries_that_are_wrong_are_refused(said: Any) -> None:
    with pytest.raises(InvalidInput, match="retries"):
        Retries.of(said)


def test_a_plan_is_read_back_as_it_was_written() -> None:
    plan = RolloutPlan(
        growth=Growth(20, 3.0),
        control="2.5%",
        in_flight=7,
        approvals=2,
        windows=(Window(start=1320, end=300, days=(0, 4)),),
        retries=Retries.of({"link": 9, "first_wait_s": 60}),
        supersede=True,
        override_quarantine="the dataset was fixed",
    )
    assert RolloutPlan.of(plan.as_json()) == plan
    assert RolloutPlan.of({}) == RolloutPlan()


@pytest.mark.parametrize(
    "said",
    [
        {"control": "200%"},
        {"in_flight": 0},
        {"approvals": 11},
        {"windows": (Window(start=0, end=60, local=True),)},
        {"override_quarantine": "  "},
    ],
)
def test_a_plan_that_cannot_be_run_is_refused(said: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        RolloutPlan(**said)
