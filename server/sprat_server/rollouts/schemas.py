"""What rollouts look like in answers."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any, Literal, Self
from uuid import UUID

from pydantic import BaseModel

from sprat_server.rollouts.explain import Explanation, GateLine, ProofLine, RatioLine
from sprat_server.rollouts.gate_plan import Rule
from sprat_server.rollouts.gates import Decision
from sprat_server.rollouts.models import Approval, Rollout, RolloutDevice, Wave
from sprat_server.rollouts.retries import Failure
from sprat_server.rollouts.service import Tally
from sprat_server.rollouts.waves import DeviceState, Prefetch, RolloutState, WaveState


class RolloutDeviceView(BaseModel):
    """One device's part: its wave and state, the release it had, and the assignments that offered and took back.

    `failure` is the class of its last failure; at `retry_at` it is asked again, which it was `retries` times.
    `prefetch` says how far it is with fetching the release ahead; None: it was not asked to.
    """

    device: UUID
    name: str
    wave: int | None
    state: DeviceState
    previous: int | None
    exposed_by: int | None
    returned_by: int | None
    failure: Failure | None
    retries: int
    retry_at: datetime | None
    prefetch: Prefetch | None

    @classmethod
    def of(cls, part: RolloutDevice, name: str) -> Self:
        """Show this row, of the device of this name."""
        return cls(
            device=part.device_id,
            name=name,
            wave=part.ordinal,
            state=DeviceState(part.state),
            previous=part.previous,
            exposed_by=part.exposed_by,
            returned_by=part.returned_by,
            failure=None if part.failure is None else Failure(part.failure),
            retries=part.retries,
            retry_at=part.retry_at,
            prefetch=None if part.prefetch is None else Prefetch(part.prefetch),
        )


class ApprovalView(BaseModel):
    """A second person's word."""

    by: str
    reason: str
    at: datetime


class WaveView(BaseModel):
    """A wave; how many devices are its own, and how many of those are in each state that some are in."""

    ordinal: int
    reach: str
    state: WaveState
    opened_at: datetime | None
    ended_at: datetime | None
    devices: int
    states: dict[DeviceState, int]


class RolloutView(BaseModel):
    """A rollout; `exposed` counts the devices that were offered the release, `rule` says who decides once it runs.

    `prefetched` counts those that were asked to fetch it ahead, `fetching` those that are at it, and `ready` those that
    have it. `excused` failed, which a person acknowledged; `retrying` failed and are asked again; `controls` are held
    back; `unplaced` are in no wave (before the start, or out of every wave's reach). `plan` is how it is run, and
    `waits_for` what holds it back now, beside devices that have not answered. `held_since`: all exposed devices were
    heard, and its gate neither opens nor halts; that ends with a halt in time.
    """

    id: UUID
    name: str | None
    model: str
    release: int
    state: RolloutState
    whole_fleet: bool
    reason: str | None
    rule: Rule | None
    exposed: int
    committed: int
    failed: int
    excused: int
    retrying: int
    prefetched: int
    fetching: int
    ready: int
    plan: dict[str, Any]
    approvals: list[ApprovalView]
    waits_for: list[str]
    held_since: datetime | None
    waves: list[WaveView]
    devices: int
    unplaced: int
    controls: int
    digest: str | None
    created_by: str
    created_at: datetime
    start_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None

    @classmethod
    def of(
        cls,
        rollout: Rollout,
        model: str,
        waves: Sequence[Wave],
        tally: Tally,
        *,
        approvals: Sequence[Approval],
        waits_for: Sequence[str],
    ) -> Self:
        """Show these rows."""
        return cls(
            id=rollout.id,
            name=rollout.name,
            model=model,
            release=rollout.number,
            state=RolloutState(rollout.state),
            whole_fleet=rollout.whole_fleet,
            reason=rollout.reason,
            rule=None if rollout.rule is None else Rule(rollout.rule),
            exposed=tally.exposed,
            committed=tally.states[DeviceState.COMMITTED],
            failed=tally.states[DeviceState.FAILED],
            excused=tally.states[DeviceState.EXCUSED],
            retrying=tally.retrying,
            prefetched=tally.prefetches.total(),
            fetching=tally.prefetches[Prefetch.ASKED],
            ready=tally.prefetches[Prefetch.READY],
            plan=rollout.plan,
            approvals=[ApprovalView(by=one.actor, reason=one.reason, at=one.at) for one in approvals],
            waits_for=list(waits_for),
            held_since=rollout.held_since,
            waves=[
                WaveView(
                    ordinal=wave.ordinal,
                    reach=wave.reach,
                    state=WaveState(wave.state),
                    opened_at=wave.opened_at,
                    ended_at=wave.ended_at,
                    devices=tally.waves[wave.ordinal].total(),
                    states=dict(tally.waves[wave.ordinal]),
                )
                for wave in waves
            ],
            devices=tally.states.total(),
            unplaced=tally.unplaced,
            controls=tally.states[DeviceState.CONTROL],
            digest=rollout.digest,
            created_by=rollout.created_by,
            created_at=rollout.created_at,
            start_at=rollout.start_at,
            started_at=rollout.started_at,
            ended_at=rollout.ended_at,
        )


class DoesView(BaseModel):
    """How devices do on the holdouts that their applications keep, as far as they said so since the rollout started."""

    devices: int
    reported: int
    samples: int
    accuracy: float | None


class WhyView(BaseModel):
    """What the gate of a rollout says, and what it rests on; `decides` is false where the first failure decides.

    `failures` counts the devices of each class of failure. `control` is how the devices that are held back do, and
    `treated` those that have the release; None where none are held back.
    """

    rollout: UUID
    rule: Rule | None
    decides: bool
    decision: Decision
    reasons: list[str]
    exposed: int
    reported: int
    failed: int
    lost: int
    failures: dict[Failure, int]
    control: DoesView | None
    treated: DoesView | None
    next_reach: int | None
    reach: int
    e_value: float
    halts_at: float
    halted_after: int | None
    exposed_at_halt: int | None
    gates: list[GateLine]
    proofs: list[ProofLine]
    ratios: list[RatioLine]
    would_change: list[str]

    @classmethod
    def of(
        cls,
        rollout: Rollout,
        said: Explanation,
        failures: Mapping[Failure, int] = MappingProxyType({}),
        control: DoesView | None = None,
        treated: DoesView | None = None,
    ) -> Self:
        """Show an explanation."""
        return cls(
            rollout=rollout.id,
            rule=None if rollout.rule is None else Rule(rollout.rule),
            decides=rollout.rule == Rule.EVIDENCE,
            decision=said.verdict.decision,
            reasons=list(said.verdict.reasons),
            exposed=said.exposed,
            reported=said.reported,
            failed=said.failed,
            lost=said.lost,
            failures=dict(failures),
            control=control,
            treated=treated,
            next_reach=said.next_reach,
            reach=said.verdict.reach,
            e_value=said.e_value,
            halts_at=said.halts_at,
            halted_after=said.halted_after,
            exposed_at_halt=said.exposed_at_halt,
            gates=list(said.gates),
            proofs=list(said.proofs),
            ratios=list(said.ratios),
            would_change=list(said.would_change),
        )


class PlannedWave(BaseModel):
    """A wave as it would be: its own devices and those that are reached with it; what opens the next one."""

    ordinal: int
    reach: str
    devices: int
    reached: int
    opens: str


class Change(BaseModel):
    """One value that would change."""

    field: str
    before: Any
    after: Any


class PlanView(BaseModel):
    """What a rollout would be: its waves, who decides, when it starts, and what stands in its way.

    `action` says what applying it would do: `create` it, nothing (`unchanged`), `replace` the draft of its name, or
    be refused (`conflict`); `changes` are the differences from the rollout of that name.
    """

    model: str
    release: int
    rule: Rule
    devices: int
    controls: int
    starts: datetime | None
    waves: list[PlannedWave]
    unreached: int
    obstacles: list[str]
    notes: list[str]
    action: Literal["create", "unchanged", "replace", "conflict"]
    rollout: UUID | None
    changes: list[Change]


class AppliedView(BaseModel):
    """What applying did: `created`, `unchanged`, `replaced` or `started`."""

    action: Literal["created", "unchanged", "replaced", "started"]
    rollout: RolloutView
