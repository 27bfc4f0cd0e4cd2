"""What rollouts look like in requests and answers."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from sprat_server.rollouts.explain import Explanation, GateLine, ProofLine, RatioLine
from sprat_server.rollouts.gate_plan import Rule
from sprat_server.rollouts.gates import Decision
from sprat_server.rollouts.models import Rollout, RolloutDevice, Wave
from sprat_server.rollouts.waves import DeviceState, Prefetch, RolloutState, WaveState


class NewRollout(BaseModel):
    """A rollout to be drafted. Waves reach so many devices, or so much of the cohort, counted from the start."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"model": "pcb-defects", "release": 2, "waves": ["1", "50%", "100%"]},
                {
                    "model": "pcb-defects",
                    "release": 2,
                    "waves": ["10", "20", "40", "80", "160", "100%"],
                    "gates": {"rule": "evidence", "policy": {"metrics": {"accuracy": {"tolerance": 0.01}}}},
                },
            ]
        },
    )

    model: Annotated[str, Field(max_length=63)]
    release: Annotated[int, Field(ge=1)]
    waves: Annotated[list[str], Field(min_length=1, max_length=100)]
    devices: Annotated[list[UUID] | None, Field(max_length=100_000)] = None
    gates: Annotated[
        dict[str, Any] | None,
        Field(description="rule (evidence or first_failure), silence_s, and the policy of the gate; docs/gates.md"),
    ] = None


class Reason(BaseModel):
    """Why something is done; kept in the audit log."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"reason": "line 3 is under maintenance"}]}
    )

    reason: Annotated[str, Field(min_length=1, max_length=1000)]


class MaybeReason(BaseModel):
    """Why something is done, where a reason is not asked for."""

    model_config = ConfigDict(extra="forbid")

    reason: Annotated[str | None, Field(max_length=1000)] = None


class RolloutDeviceView(BaseModel):
    """One device's part: its state, the release it had, and the assignments that offered and took back.

    `prefetch` says how far it is with fetching the release ahead; None: it was not asked to.
    """

    device: UUID
    name: str
    state: DeviceState
    previous: int | None
    exposed_by: int | None
    returned_by: int | None
    prefetch: Prefetch | None


class WaveView(BaseModel):
    """A wave and its devices."""

    ordinal: int
    reach: str
    state: WaveState
    opened_at: datetime | None
    ended_at: datetime | None
    devices: list[RolloutDeviceView]


class RolloutView(BaseModel):
    """A rollout; `exposed` counts the devices that were offered the release, `rule` says who decides once it runs.

    `prefetched` counts those that were asked to fetch it ahead, and `ready` those that have it.
    """

    id: UUID
    model: str
    release: int
    state: RolloutState
    whole_fleet: bool
    reason: str | None
    rule: Rule | None
    exposed: int
    committed: int
    failed: int
    prefetched: int
    ready: int
    waves: list[WaveView]
    unplaced: list[RolloutDeviceView]
    created_by: str
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None

    @classmethod
    def of(
        cls,
        rollout: Rollout,
        model: str,
        waves: Sequence[Wave],
        devices: Sequence[RolloutDevice],
        names: Mapping[UUID, str],
    ) -> Self:
        """Show these rows; `unplaced` are devices without a wave (before the start, or out of every wave's reach)."""
        states = [device.state for device in devices]
        ahead = [device.prefetch for device in devices if device.prefetch and device.state != DeviceState.LEFT]
        return cls(
            id=rollout.id,
            model=model,
            release=rollout.number,
            state=RolloutState(rollout.state),
            whole_fleet=rollout.whole_fleet,
            reason=rollout.reason,
            rule=None if rollout.rule is None else Rule(rollout.rule),
            exposed=sum(device.exposed_by is not None for device in devices),
            committed=states.count(DeviceState.COMMITTED),
            failed=states.count(DeviceState.FAILED),
            prefetched=len(ahead),
            ready=ahead.count(Prefetch.READY),
            waves=[
                WaveView(
                    ordinal=wave.ordinal,
                    reach=wave.reach,
                    state=WaveState(wave.state),
                    opened_at=wave.opened_at,
                    ended_at=wave.ended_at,
                    devices=[_part(device, names) for device in devices if device.ordinal == wave.ordinal],
                )
                for wave in waves
            ],
            unplaced=[_part(device, names) for device in devices if device.ordinal is None],
            created_by=rollout.created_by,
            created_at=rollout.created_at,
            started_at=rollout.started_at,
            ended_at=rollout.ended_at,
        )


class WhyView(BaseModel):
    """What the gate of a rollout says, and what it rests on; `decides` is false where the first failure decides."""

    rollout: UUID
    rule: Rule | None
    decides: bool
    decision: Decision
    reasons: list[str]
    exposed: int
    reported: int
    failed: int
    lost: int
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
    def of(cls, rollout: Rollout, said: Explanation) -> Self:
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


def _part(device: RolloutDevice, names: Mapping[UUID, str]) -> RolloutDeviceView:
    return RolloutDeviceView(
        device=device.device_id,
        name=names.get(device.device_id, ""),
        state=DeviceState(device.state),
        previous=device.previous,
        exposed_by=device.exposed_by,
        returned_by=device.returned_by,
        prefetch=None if device.prefetch is None else Prefetch(device.prefetch),
    )
