"""How a plan of a site moves: decided on what its members said and on whether its time is up. Pure.

    planned -> holding -> switching -> serving -> draining -> retired
                  |-> failed, aborted                (the plan before served all along)

`holding` ends when every member is ready, or with the first that is not. What begins to switch is not taken back:
whoever is silent then, refuses or leaves is left behind, and the other members serve.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class PlanStatus(StrEnum):
    """Where a plan of a site stands."""

    PLANNED = "planned"
    HOLDING = "holding"
    SWITCHING = "switching"
    SERVING = "serving"
    DRAINING = "draining"
    RETIRED = "retired"
    FAILED = "failed"
    ABORTED = "aborted"


UNDER_WAY = (PlanStatus.HOLDING, PlanStatus.SWITCHING)
"""A site has at most one such plan."""
SIGNED = (*UNDER_WAY, PlanStatus.SERVING, PlanStatus.DRAINING)
"""Devices hold what these plans name."""
ENDED = (PlanStatus.RETIRED, PlanStatus.FAILED, PlanStatus.ABORTED)


class Cause(StrEnum):
    """What a plan was made for; but for the first, because of another plan, its parent."""

    ASKED = "asked"
    REPAIR = "repair"  # its parent served on devices that left
    IMPROVEMENT = "improvement"  # of all that its parent, a repair, left where it was
    RENEWAL = "renewal"  # its parent was about to end
    STEP = "step"  # on the way to its parent


class MemberStatus(StrEnum):
    """How far a member is with a plan."""

    ASKED = "asked"
    READY = "ready"
    SERVING = "serving"
    REFUSED = "refused"
    LEFT = "left"


class Step(StrEnum):
    """What a plan does next."""

    WAIT = "wait"
    SWITCH = "switch"
    SETTLE = "settle"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Decision:
    """The next step of a plan, and why."""

    step: Step
    why: str = ""


_WAIT = Decision(Step.WAIT)


def next_step(
    status: PlanStatus, members: Mapping[str, MemberStatus], *, late: bool, trouble: str | None = None
) -> Decision:
    """Return what a plan does next.

    Args:
        status: where it stands.
        members: name of each member -> how far it is.
        late: whether the time of its phase is up.
        trouble: what else ends a plan that is held, such as a module that a member could not fetch.
    """
    if status == PlanStatus.HOLDING:
        return _held(members, late=late, trouble=trouble)
    if status == PlanStatus.SWITCHING:
        awaited = _of(members, MemberStatus.ASKED, MemberStatus.READY)
        if not awaited or late:
            return Decision(Step.SETTLE, f"{', '.join(awaited)} did not say so in time" if awaited else "")
    return _WAIT


def _held(members: Mapping[str, MemberStatus], *, late: bool, trouble: str | None) -> Decision:
    if trouble is not None:
        return Decision(Step.FAIL, trouble)
    for status, what in ((MemberStatus.REFUSED, "refused it"), (MemberStatus.LEFT, "left")):
        if who := _of(members, status):
            return Decision(Step.FAIL, f"{', '.join(who)} {what}")
    if awaited := _of(members, MemberStatus.ASKED):
        return Decision(Step.FAIL, f"{', '.join(awaited)} was not ready in time") if late else _WAIT
    return Decision(Step.SWITCH)


def _of(members: Mapping[str, MemberStatus], *statuses: MemberStatus) -> list[str]:
    return sorted(name for name, status in members.items() if status in statuses)
