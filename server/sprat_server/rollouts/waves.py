"""Who is in which wave, and what happens next: pure decisions, without database or clock."""

import hashlib
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from uuid import UUID

from sprat_shared.errors import InvalidInput

_REACH: Final = re.compile(r"([1-9][0-9]{0,8})(%?)")
_WHOLE: Final = 100


class RolloutState(StrEnum):
    """Where a rollout is."""

    DRAFT = "draft"
    RUNNING = "running"
    PAUSED = "paused"  # no wave opens; a failure still halts
    HALTED = "halted"  # a device failed: exposed devices go back
    ABORTED = "aborted"  # a person stopped it: exposed devices go back
    SUCCEEDED = "succeeded"


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
    LEFT = "left"  # it was revoked meanwhile and is waited for no more


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


# What a person may ask for, by the state it is asked in; anything else is a conflict.
ALLOWED: Final[dict[str, frozenset[RolloutState]]] = {
    "prefetch": frozenset({RolloutState.DRAFT}),
    "start": frozenset({RolloutState.DRAFT}),
    "pause": frozenset({RolloutState.RUNNING}),
    "resume": frozenset({RolloutState.PAUSED}),
    "promote": frozenset({RolloutState.RUNNING}),
    "abort": frozenset({RolloutState.DRAFT, RolloutState.RUNNING, RolloutState.PAUSED}),
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


def next_step(state: RolloutState, waves: Sequence[WaveView], gate: GateView | None = None) -> Step:
    """Return what to do now; the caller does it and asks again until the answer is `HOLD`, `HALT` or `SUCCEED`.

    Without a gate: halt on the first failure of any exposed device, close a wave when every device of it has committed
    (or left), open the next only when none is open.
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
            if gate is not None:
                return _within(gate, wave, waves[at + 1 :], waves)
            done = set(wave.devices) <= {DeviceState.COMMITTED, DeviceState.LEFT}
            return Step.CLOSE_WAVE if done else Step.HOLD
    return Step.OPEN_WAVE if any(wave.state is WaveState.WAITING for wave in waves) else Step.SUCCEED


def _within(gate: GateView, wave: WaveView, later: Sequence[WaveView], waves: Sequence[WaveView]) -> Step:
    if DeviceState.WAITING in wave.devices:
        return Step.EXPOSE if gate.room > 0 else Step.HOLD
    if any(DeviceState.WAITING in other.devices for other in later):
        return Step.CLOSE_WAVE if gate.room > 0 else Step.HOLD
    done = not any(DeviceState.EXPOSED in other.devices for other in waves)
    return Step.CLOSE_WAVE if done else Step.HOLD


def check_reaches(reaches: Sequence[str]) -> list[str]:
    """Return the waves' reaches if they make a plan: counts or percents, each going further than the one before.

    Raises:
        InvalidInput: there is none, one is neither `3` nor `50%`, or one does not grow.
    """
    if not 1 <= len(reaches) <= _WHOLE:
        raise InvalidInput(f"a rollout has 1 to {_WHOLE} waves, got {len(reaches)}", code="rollout.bad-waves")
    seen: dict[str, int] = {}
    for text in reaches:
        match = _REACH.fullmatch(text)
        if match is None or (match[2] and int(match[1]) > _WHOLE):
            raise InvalidInput(
                f"wave {text[:20]!r}: write a number of devices such as '3', or 1% to 100%", code="rollout.bad-waves"
            )
        amount = int(match[1])
        if amount <= seen.get(match[2], 0):
            raise InvalidInput(
                f"wave {text!r} reaches no further than one before it; count from the start, as in 1, 50%, 100%",
                code="rollout.bad-waves",
            )
        seen[match[2]] = amount
    return list(reaches)


def place_devices(reaches: Sequence[str], cohort: Collection[UUID], salt: bytes) -> dict[UUID, int | None]:
    """Return for each device its wave, counted from 1; None where no wave reaches it.

    The order is by salted hash: arbitrary, the same for everyone who computes it, another for each rollout (the
    salt is the rollout's id), so that not always the same devices go first. A percentage is rounded up.
    """
    order = in_order(cohort, salt)
    places: dict[UUID, int | None] = dict.fromkeys(order)
    reached = 0
    for ordinal, text in enumerate(check_reaches(reaches), start=1):
        amount = math.ceil(len(order) * int(text[:-1]) / _WHOLE) if text.endswith("%") else int(text)
        for device in order[reached:amount]:
            places[device] = ordinal
        reached = max(reached, min(amount, len(order)))
    return places


def in_order(devices: Collection[UUID], salt: bytes) -> list[UUID]:
    """Return the devices in the order in which the rollout of this salt reaches them."""
    return sorted(devices, key=lambda device: hashlib.sha256(salt + device.bytes).digest())


def reaches_everyone(reaches: Sequence[str]) -> bool:
    """Say whether the plan ends with the whole cohort, whatever its size."""
    return reaches[-1] == f"{_WHOLE}%"
