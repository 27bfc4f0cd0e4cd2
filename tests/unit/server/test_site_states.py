"""How a plan of a site moves, decided on what its members said and on whether its time is up."""

import itertools

import pytest

from sprat_server.sites.states import MemberStatus as M
from sprat_server.sites.states import PlanStatus, Step, next_step


def steps(status: PlanStatus, *members: M, late: bool = False, trouble: str | None = None) -> tuple[Step, str]:
    named = {f"device-{at}": one for at, one in enumerate(members)}
    decided = next_step(status, named, late=late, trouble=trouble)
    return decided.step, decided.why


def test_all_are_ready_before_any_switches() -> None:
    assert steps(PlanStatus.HOLDING, M.READY, M.READY)[0] == Step.SWITCH
    assert steps(PlanStatus.HOLDING, M.READY, M.SERVING)[0] == Step.SWITCH
    assert steps(PlanStatus.HOLDING, M.READY, M.ASKED)[0] == Step.WAIT


@pytest.mark.parametrize(
    ("members", "late", "trouble", "why"),
    [
        ((M.READY, M.REFUSED), False, None, "device-1 refused it"),
        ((M.LEFT, M.READY), False, None, "device-0 left"),
        ((M.READY, M.ASKED, M.ASKED), True, None, "device-1, device-2 was not ready in time"),
        ((M.READY, M.ASKED), False, "no room", "no room"),
    ],
)
def test_what_is_held_ends_with_the_first_that_will_not(
    *, members: tuple[M, ...], late: bool, trouble: str | None, why: str
) -> None:
    assert steps(PlanStatus.HOLDING, *members, late=late, trouble=trouble) == (Step.FAIL, why)


def test_who_is_lost_while_it_switches_holds_up_nobody() -> None:
    assert steps(PlanStatus.SWITCHING, M.SERVING, M.READY)[0] == Step.WAIT
    assert steps(PlanStatus.SWITCHING, M.SERVING, M.REFUSED, M.LEFT) == (Step.SETTLE, "")
    assert steps(PlanStatus.SWITCHING, M.SERVING, M.READY, late=True) == (
        Step.SETTLE,
        "device-1 did not say so in time",
    )


def test_what_has_begun_to_switch_is_never_failed() -> None:
    for members in itertools.product(M, repeat=2):
        for late in (False, True):
            assert steps(PlanStatus.SWITCHING, *members, late=late, trouble="no room")[0] != Step.FAIL


@pytest.mark.parametrize("status", set(PlanStatus) - {PlanStatus.HOLDING, PlanStatus.SWITCHING})
def test_a_plan_that_is_not_under_way_waits_for_people(status: PlanStatus) -> None:
    assert steps(status, M.REFUSED, M.ASKED, late=True, trouble="no room") == (Step.WAIT, "")
