"""The agent's states and events for one model, and beside them where a power cut resumes.

The caller stores the next state durably before it acts on it. An event that the table does not know is a bug.
"""

from collections.abc import Mapping
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
        (S.VERIFYING, E.REJECTED): S.IDLE,
        (S.VERIFYING, E.SUPERSEDED): S.IDLE,
        (S.REBUILDING, E.DONE): S.READY,
        (S.REBUILDING, E.REJECTED): S.IDLE,
        (S.REBUILDING, E.SUPERSEDED): S.IDLE,
        (S.READY, E.DONE): S.VALIDATING,
        (S.READY, E.REJECTED): S.IDLE,
        (S.READY, E.SUPERSEDED): S.IDLE,
        (S.VALIDATING, E.DONE): S.TRIAL,
        (S.VALIDATING, E.WATCH): S.SHADOW,
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


def resume(state: State, trial_cuts: int) -> Event | None:
    """Return the event that a restart in `state` raises by itself, after `trial_cuts` cuts of this trial."""
    if state is State.TRIAL and trial_cuts > TRIAL_CUTS_ALLOWED:
        return Event.UNHEALTHY
    return None
