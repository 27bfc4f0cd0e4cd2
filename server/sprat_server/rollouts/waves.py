"""The states of a rollout and what happens next: pure decisions, without database or clock."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class RolloutState(StrEnum):
    """Where a rollout is."""

    DRAFT = "draft"
    RUNNING = "running"
    PAUSED = "paused"  # no wave opens; a failure still halts
    HALTED = "halted"  # a device failed: exposed devices go back
    ABORTED = "aborted"  # a person stopped it: exposed devices go back, or keep the release
    SUPERSEDED = "superseded"  # a later rollout took its devices over
    SUCCEEDED = "succeeded"
    UNDONE = "undone"  # it had succeeded, and a person had it taken back


class WaveState(StrEnum):
    """Where a wave is."""

    WAITING = "waiting"
    OPEN = "open"
    SUCCEEDED = "succeeded"
    HALTED = "halted"


class DeviceState(StrEnum):
    """Where a device is in a rollout."""

    WAITING = "waiting"
    EXPOSED = "exposed"  # the release was assigned to it; how it ended is not known yet
    COMMITTED = "committed"
    FAILED = "failed"  # it refused, rolled back, could not, or (where a gate decides) was silent for too long
    EXCUSED = "excused"  # it failed, and a person who resumed the rollout holds that against the release no more
    LEFT = "left"  # it was revoked meanwhile and is waited for no more
    CONTROL = "control"  # it is held back: this rollout never reaches it


class Prefetch(StrEnum):
    """How far a device is with a release that it was asked to fetch ahead of the rollout."""

    ASKED = "asked"
    READY = "ready"  # it is there, verified and rebuilt, and waits
    FAILED = "failed"  # the device could not, or would not; its wave asks it again


class Step(StrEnum):
    """What a rollout does next."""

    HOLD = "hold"  # nothing, until something is reported
    HALT = "halt"
    CLOSE_WAVE = "close_wave"  # the open wave has succeeded
    OPEN_WAVE = "open_wave"  # the first one that waits
    EXPOSE = "expose"  # devices of the open wave that wait, as many as the gate lets
    SUCCEED = "succeed"


_DONE: Final = frozenset({DeviceState.COMMITTED, DeviceState.EXCUSED, DeviceState.LEFT})

# What a person may ask for, by the state it is asked in; anything else is a conflict.
ALLOWED: Final[dict[str, frozenset[RolloutState]]] = {
    "approve": frozenset({RolloutState.DRAFT}),
    "prefetch": frozenset({RolloutState.DRAFT}),
    "start": frozenset({RolloutState.DRAFT}),
    "pause": frozenset({RolloutState.RUNNING}),
    "resume": frozenset({RolloutState.PAUSED, RolloutState.HALTED}),
    "promote": frozenset({RolloutState.RUNNING}),
    "abort": frozenset({RolloutState.DRAFT, RolloutState.RUNNING, RolloutState.PAUSED}),
    "undo": frozenset({RolloutState.SUCCEEDED, RolloutState.ABORTED}),
}


@dataclass(frozen=True, slots=True)
class WaveView:
    """One wave as the decision sees it: its state, and the states that its devices are in (no matter how many)."""

    state: WaveState
    devices: Collection[DeviceState]


@dataclass(frozen=True, slots=True)
class GateView:
    """What a gate lets a rollout do: whether it halts, and how many devices more may be exposed now."""

    halts: bool
    room: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What holds back further devices, whatever is proven.

    Attributes:
        open: whether a maintenance window is open; outside nobody is exposed and no wave opens.
        free: devices more that may be in flight, exposed and not ended; None: any number.
    """

    open: bool = True
    free: int | None = None


NO_LIMITS: Final = Limits()


def next_step(
    state: RolloutState, waves: Sequence[WaveView], gate: GateView | None = None, limits: Limits = NO_LIMITS
) -> Step:
    """Return what to do now; the caller does it and asks again until the answer is `HOLD`, `HALT` or `SUCCEED`.

    Without a gate: halt on the first failure of any exposed device, close a wave when every device of it has committed
    (or left, or was excused), open the next only when none is open.
    With a gate: halt where it halts. Expose devices of the open wave while there is room, close the wave when all of
    them are exposed and there is room for more, or, where none waits in a later wave, when every exposed one is done.
    """
    if state not in {RolloutState.RUNNING, RolloutState.PAUSED}:
        return Step.HOLD
    if gate.halts if gate is not None else any(DeviceState.FAILED in wave.devices for wave in waves):
        return Step.HALT
    if state is RolloutState.PAUSED:
        return Step.HOLD
    for at, wave in enumerate(waves):
        if wave.state is WaveState.OPEN:
            step = _alone(wave) if gate is None else _within(gate, wave, waves[at + 1 :], waves)
            blocked = step is Step.EXPOSE and (not limits.open or limits.free == 0)
            return Step.HOLD if blocked else step
    if not any(wave.state is WaveState.WAITING for wave in waves):
        return Step.SUCCEED
    return Step.OPEN_WAVE if limits.open else Step.HOLD


def room_for(gate: GateView | None, limits: Limits) -> int | None:
    """Return how many devices `Step.EXPOSE` may expose now; None: all that wait in the wave."""
    bounds = [bound for bound in (None if gate is None else gate.room, limits.free) if bound is not None]
    return min(bounds, default=None)


def _alone(wave: WaveView) -> Step:
    if DeviceState.WAITING in wave.devices:
        return Step.EXPOSE
    return Step.CLOSE_WAVE if set(wave.devices) <= _DONE else Step.HOLD


def _within(gate: GateView, wave: WaveView, later: Sequence[WaveView], waves: Sequence[WaveView]) -> Step:
    if DeviceState.WAITING in wave.devices:
        return Step.EXPOSE if gate.room > 0 else Step.HOLD
    if any(DeviceState.WAITING in other.devices for other in later):
        return Step.CLOSE_WAVE if gate.room > 0 else Step.HOLD
    done = not any(DeviceState.EXPOSED in other.devices for other in waves)
    return Step.CLOSE_WAVE if done else Step.HOLD
