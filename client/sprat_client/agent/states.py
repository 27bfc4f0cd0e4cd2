"""The agent's states and events for one model, and beside them where a power cut resumes and how long each may last.

The caller stores the next state durably before it acts on it. An event that the table does not know is a bug.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class State(StrEnum):
    """What the agent is doing for one model."""

    IDLE = "idle"  # the active release serves; nothing is wished that is not settled
    FETCHING = "fetching"  # metadata, payloads and graph are being downloaded
    VERIFYING = "verifying"  # what was downloaded is checked against the signed metadata
    REBUILDING = "rebuilding"  # the new weights are being computed, in a process of its own
    READY = "ready"  # the new release lies beside the old one and waits until it may be activated
    VALIDATING = "validating"  # old and new answer the same holdout samples
    SHADOW = "shadow"  # the new release answers beside the old one; its answers are compared and not served
    TRIAL = "trial"  # the new release serves, the old one waits in its slot
    ROLLING_BACK = "rolling_back"  # the release in the other slot becomes the active one again


class Event(StrEnum):
    """What can happen to a state."""

    ASSIGNED = "assigned"  # a release is wished that no slot holds
    RETURN = "return"  # a release is wished that the other slot still holds, committed
    DONE = "done"  # the state's work succeeded
    WATCH = "watch"  # validation succeeded, and the release is to answer in the shadow first
    AGAIN = "again"  # what the update needs of this disk, or what was fetched, is damaged or gone: it is fetched anew
    REJECTED = "rejected"  # the update must not, or cannot, be installed here
    SUPERSEDED = "superseded"  # a newer assignment arrived
    HEALTHY = "healthy"  # shadow or trial showed no harm
    UNHEALTHY = "unhealthy"  # the trial showed harm, or was cut too often


S, E = State, Event

NEXT: Final[Mapping[tuple[State, Event], State]] = MappingProxyType(
    {
        (S.IDLE, E.ASSIGNED): S.FETCHING,
        (S.IDLE, E.RETURN): S.ROLLING_BACK,
        (S.FETCHING, E.DONE): S.VERIFYING,
        (S.FETCHING, E.REJECTED): S.IDLE,
        (S.FETCHING, E.SUPERSEDED): S.IDLE,
        (S.VERIFYING, E.DONE): S.REBUILDING,
        (S.VERIFYING, E.AGAIN): S.FETCHING,
        (S.VERIFYING, E.REJECTED): S.IDLE,
        (S.VERIFYING, E.SUPERSEDED): S.IDLE,
        (S.REBUILDING, E.DONE): S.READY,
        (S.REBUILDING, E.AGAIN): S.FETCHING,
        (S.REBUILDING, E.REJECTED): S.IDLE,
        (S.REBUILDING, E.SUPERSEDED): S.IDLE,
        (S.READY, E.DONE): S.VALIDATING,
        (S.READY, E.AGAIN): S.FETCHING,
        (S.READY, E.REJECTED): S.IDLE,
        (S.READY, E.SUPERSEDED): S.IDLE,
        (S.VALIDATING, E.DONE): S.TRIAL,
        (S.VALIDATING, E.WATCH): S.SHADOW,
        (S.VALIDATING, E.AGAIN): S.FETCHING,
        (S.VALIDATING, E.REJECTED): S.IDLE,
        (S.VALIDATING, E.SUPERSEDED): S.IDLE,
        (S.SHADOW, E.HEALTHY): S.TRIAL,
        (S.SHADOW, E.REJECTED): S.IDLE,
        (S.SHADOW, E.SUPERSEDED): S.IDLE,
        (S.TRIAL, E.HEALTHY): S.IDLE,
        (S.TRIAL, E.UNHEALTHY): S.ROLLING_BACK,
        (S.TRIAL, E.SUPERSEDED): S.ROLLING_BACK,
        (S.ROLLING_BACK, E.DONE): S.IDLE,
    }
)

# Every state is re-entered: each one's work can be done again from what is on the disk.
AFTER_POWER_CUT: Final[Mapping[State, State]] = MappingProxyType({state: state for state in State})

# Up to so many cuts resume the trial; the next one counts as unhealthy.
TRIAL_CUTS_ALLOWED: Final = 2

_HOUR_S: Final = 3600.0
_DAY_S: Final = 24 * _HOUR_S


class Late(StrEnum):
    """What a state does that lasts too long."""

    GIVE_UP = "give up"  # the update ends as failed, and the old release serves on
    SAY = "say"  # nothing else would help: it is said, and the work goes on


@dataclass(frozen=True, slots=True)
class Rule:
    """How long a state may last, and what restarts in it are worth.

    Time is what the agent spent in the state while it ran, on a clock that nobody sets, kept in the journal: the
    device's own clock may stand in 1970 or jump, and a device that is off for a year was not slow.

    Attributes:
        deadline_s: so long; None: for ever.
        late: what happens then.
        restarts: only so many restarts go on with the work before it is given up; None: any number.
        stuck_s: one step of it that lasts longer is stuck, unless the step says that it has a limit of its own.
    """

    deadline_s: float | None
    late: Late
    restarts: int | None
    stuck_s: float = 300.0


# A device may be switched off each night: restarts count where the agent itself may be what crashes. In FETCHING they
# count until bytes arrive, in SHADOW until a minute of it is in the journal. READY waits, by policy for weeks; TRIAL
# counts its cuts itself.
RULES: Final[Mapping[State, Rule]] = MappingProxyType(
    {
        S.IDLE: Rule(None, Late.SAY, None),
        S.FETCHING: Rule(14 * _DAY_S, Late.GIVE_UP, 10),
        S.VERIFYING: Rule(1 * _HOUR_S, Late.GIVE_UP, 10),
        S.REBUILDING: Rule(6 * _HOUR_S, Late.GIVE_UP, 10),
        S.READY: Rule(180 * _DAY_S, Late.GIVE_UP, None),
        S.VALIDATING: Rule(6 * _HOUR_S, Late.GIVE_UP, 10, stuck_s=_HOUR_S),
        S.SHADOW: Rule(180 * _DAY_S, Late.GIVE_UP, TRIAL_CUTS_ALLOWED),
        S.TRIAL: Rule(None, Late.SAY, None),
        S.ROLLING_BACK: Rule(_HOUR_S, Late.SAY, None),
    }
)

# States in which nothing new serves: there is nothing to reject.
AT_REST: Final = frozenset({S.IDLE, S.ROLLING_BACK})
# States in which the new release does not serve yet, and never did.
BEFORE_TRIAL: Final = frozenset(State) - AT_REST - {S.TRIAL}
# States in which the new release lies whole beside the old one.
BUILT: Final = frozenset({S.READY, S.VALIDATING, S.SHADOW, S.TRIAL})


class ImpossibleEvent(AssertionError):
    """An event that the table does not know: a bug in the agent, not bad luck."""


def step(state: State, event: Event) -> State:
    """Return the next state; the caller stores it durably before acting on it.

    Raises:
        ImpossibleEvent: the event cannot happen in this state.
    """
    try:
        return NEXT[state, event]
    except KeyError:
        raise ImpossibleEvent(f"{event} cannot happen in {state}") from None


def resume(state: State, trial_cuts: int, restarts: int = 0) -> Event | None:
    """Return the event that a restart in `state` raises by itself; None: its work goes on.

    Args:
        state: as the journal says.
        trial_cuts: restarts during this trial.
        restarts: that brought this state no further.
    """
    if state is State.TRIAL and trial_cuts > TRIAL_CUTS_ALLOWED:
        return Event.UNHEALTHY
    allowed = RULES[state].restarts
    return Event.REJECTED if allowed is not None and restarts > allowed else None


def is_late(state: State, spent_s: float) -> bool:
    """Return whether a state has lasted longer than it may."""
    deadline_s = RULES[state].deadline_s
    return deadline_s is not None and spent_s > deadline_s
